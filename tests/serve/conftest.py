import pytest

from tests.serve.helpers import FakeGenerator, serving


@pytest.fixture(scope="package")
def running():
    """A server for tests that do not look at batches."""
    with serving(FakeGenerator()) as running:
        yield running


@pytest.fixture
def generator():
    return FakeGenerator()
