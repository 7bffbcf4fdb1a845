from copy import deepcopy
from types import SimpleNamespace

import pytest

from mist_fairseq.experiments.benchmark import measuring, systems, training
from mist_fairseq.experiments.benchmark.inputs import write_data
from tests.end_to_end.warm import FORKS

SENTENCES = 12


@pytest.fixture(scope="package", autouse=True)
def remembered_configurations():
    """A system's configuration, for which hydra takes most of a second, is made once."""
    made, make = {}, systems.training_configuration

    def configuration(entry):
        key = entry.data_path, entry.arguments
        if key not in made:
            made[key] = make(entry)
        return deepcopy(made[key])

    with pytest.MonkeyPatch.context() as patch:
        for module in (systems, training):
            patch.setattr(module, "training_configuration", configuration)
        yield


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """Random sentences with sources of 4 to 9 and targets of 3 to 12 tokens, over BERT's number of words."""
    folder = tmp_path_factory.mktemp("benchmark") / "data-bin"
    folder.mkdir()
    write_data(folder, {"source": {4: 1, 6: 1, 9: 1}, "target": {3: 1, 5: 1, 12: 1}}, SENTENCES)
    return str(folder)


@pytest.fixture
def warm_processes(monkeypatch):
    """New processes do nothing else, but are forked from one that has imported fairseq."""
    monkeypatch.setattr(measuring, "multiprocessing", SimpleNamespace(get_context=lambda _: FORKS))
