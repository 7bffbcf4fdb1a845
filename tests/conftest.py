import os
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.hub_server import HubServer


def pytest_collection():
    """Not in the process that gives pytest-xdist's workers their tests: it runs none, and they wait for it."""
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))


@pytest.fixture(scope="session")
def dictionary():
    from tests.helpers import tiny_dictionary

    return tiny_dictionary()


@pytest.fixture(scope="session")
def minilm() -> str:
    """The real MiniLM-L6 folder, downloaded once into .cache (scripts/test.sh does that before the tests run)."""
    from mist_fairseq.pretrained.download import get_pretrained

    folder = Path(__file__).parent.parent / ".cache" / "minilm-l6"
    get_pretrained("minilm-l6", str(folder))
    return str(folder)


@pytest.fixture
def hub_server(tmp_path, monkeypatch):
    """A Hugging Face hub on this machine, with nothing in it and an empty cache, in the place of the real one."""
    server = HubServer()
    settings = {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "huggingface"), "HF_HUB_DISABLE_XET": "1"}
    with fresh_library(monkeypatch, **settings):
        yield server
    server.shutdown()
    server.server_close()


@contextmanager
def fresh_library(monkeypatch, **settings):
    """Within it the package huggingface_hub, which reads the environment when it is imported, is imported anew."""

    def modules() -> list[str]:
        return [name for name in sys.modules if name.partition(".")[0] == "huggingface_hub"]

    before = {name: sys.modules.pop(name) for name in modules()}
    with monkeypatch.context() as patch:
        for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE", "HUGGING_FACE_HUB_TOKEN"):
            patch.delenv(name, raising=False)
        for name, value in settings.items():
            patch.setenv(name, value)
        yield
    for name in modules():
        del sys.modules[name]
    sys.modules.update(before)
