import json
import random

import pytest

from mist_fairseq.release.onnx_folder import save_onnx
from tests.helpers import WORDS, tiny_released


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> str:
    """A small model in ONNX."""
    folder = str(tmp_path_factory.mktemp("bulk") / "onnx")
    save_onnx(tiny_released(), folder)
    return folder


@pytest.fixture(scope="session")
def questions(tmp_path_factory):
    """Rows of texts of many lengths, one of them too long for the model, some bad."""
    words = random.Random(0)
    path = tmp_path_factory.mktemp("questions") / "q.jsonl"
    lines = [json.dumps({"id": i, "q": " ".join(words.choices(WORDS, k=words.randint(0, 9)))}) for i in range(200)]
    lines[30] = json.dumps({"id": 30, "q": " ".join(WORDS * 9)})
    lines[3], lines[77], lines[199] = '{"id": 3, "q":', '{"id": 77}', '{"id": 199, "q": 5}'
    path.write_text("\n".join(lines))
    return path
