import os
from pathlib import Path

import pytest
import torch

from mist_fairseq.pretrained.download import get_pretrained
from tests.helpers import tiny_dictionary

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))


@pytest.fixture(scope="session")
def dictionary():
    return tiny_dictionary()


@pytest.fixture(scope="session")
def minilm() -> str:
    """The real MiniLM-L6 folder, downloaded once into .cache (scripts/test.sh does that before the tests run)."""
    folder = Path(__file__).parent.parent / ".cache" / "minilm-l6"
    get_pretrained("minilm-l6", str(folder))
    return str(folder)
