from pathlib import Path

import pytest

from tests.text.helpers import train_sentencepiece, write_bart_dictionary


@pytest.fixture(scope="package")
def bart_folder(tmp_path_factory) -> Path:
    return write_bart_dictionary(tmp_path_factory.mktemp("bart.base"))


@pytest.fixture(scope="package")
def sentencepiece_model(tmp_path_factory) -> Path:
    return train_sentencepiece(tmp_path_factory.mktemp("sentencepiece") / "sp.model")
