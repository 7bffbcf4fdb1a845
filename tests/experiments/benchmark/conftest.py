import pytest

from mist_fairseq.experiments.benchmark.inputs import write_data

SENTENCES = 12


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """Random sentences with sources of 4 to 9 and targets of 3 to 12 tokens, over BERT's number of words."""
    folder = tmp_path_factory.mktemp("benchmark") / "data-bin"
    folder.mkdir()
    write_data(folder, {"source": {4: 1, 6: 1, 9: 1}, "target": {3: 1, 5: 1, 12: 1}}, SENTENCES)
    return str(folder)
