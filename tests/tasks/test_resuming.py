"""tests/end_to_end/test_resume.py kills trainings."""

import sys

import fairseq_cli.train
import pytest
from omegaconf import OmegaConf

from mist_fairseq.tasks.base import TokenizerTask
from tests.tasks.test_finite import trainer as trainer
from tests.tasks.test_shards import Numbers


class Task(TokenizerTask):
    pass


@pytest.fixture
def task():
    return Task(OmegaConf.create({"train_subset": "train"}))


def test_shuffling_begins_where_it_is_asked_for(task):
    dataset = Numbers()
    iterator = task.get_batch_iterator(dataset, max_sentences=1, seed=3)
    epochs = [[batch["id"].item() for batch in iterator.next_epoch_itr(shuffle=epoch > 2)] for epoch in (1, 2, 3)]
    assert epochs[0] == epochs[1] == [0, 1, 2, 3, 4] != epochs[2] and sorted(epochs[2]) == epochs[0]


def test_the_count_of_patience_is_kept(task, monkeypatch):
    cfg = OmegaConf.create({"checkpoint": {"patience": 3, "maximize_best_checkpoint_metric": False}})
    stop = fairseq_cli.train.should_stop_early
    for name in ("best", "num_runs"):
        monkeypatch.setattr(stop, name, None, raising=False)
    assert not any(stop(cfg, loss) for loss in (2.0, 2.5, 2.5))
    saved = task.get_checkpoint_dict()["Task"]
    assert saved == {"best": 2.0, "num_runs": 2}
    stop.best = stop.num_runs = None  # another process
    task.set_checkpoint_dict(saved)
    assert stop(cfg, 2.1)


def test_other_programs_count_nothing(task, monkeypatch):
    monkeypatch.delitem(sys.modules, "fairseq_cli.train")
    assert task.get_checkpoint_dict() == {"Task": {"best": None, "num_runs": None}}
    task.set_checkpoint_dict({"best": 1.0, "num_runs": 1})


def test_every_worker_reads_the_checkpoint(trainer):
    """torch refuses to unpack one that the first worker sends to the others."""
    assert trainer.cfg.checkpoint.load_checkpoint_on_all_dp_ranks
