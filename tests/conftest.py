import os
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import settings

from tests.hub_server import HubServer

GPU_TESTS = Path(__file__).parent / "gpu"

# A busy machine makes no test fail: how long an example takes says nothing of what is right.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


def pytest_configure(config):
    """Only the tests that ask for a GPU see one: fairseq with --cpu is not itself where there is one."""
    paths = [(config.invocation_params.dir / argument.partition("::")[0]).resolve() for argument in config.args]
    if config.option.markexpr != "gpu" and not all(path.is_relative_to(GPU_TESTS) for path in paths):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_modifyitems(config, items):
    """Without a GPU one line stands for all that need one. MIST_GPU_TEST_DEVICE=cpu runs them all the same."""
    import torch

    if torch.cuda.is_available() or "MIST_GPU_TEST_DEVICE" in os.environ:
        return
    gpu = [item for item in items if item.get_closest_marker("gpu")]
    for item in gpu[:1]:
        item.add_marker(pytest.mark.skip(reason=f"{len(gpu)} tests need a GPU: pytest -m gpu"))
    config.hook.pytest_deselected(items=gpu[1:])
    items[:] = [item for item in items if item not in gpu[1:]]


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
