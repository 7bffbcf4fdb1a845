"""What fairseq gets of the loss, which tests/mist/test_objective.py is about."""

import math
import os

import pytest
import torch
import torch.distributed
import torch.multiprocessing
from fairseq.dataclass.configs import DistributedTrainingConfig
from fairseq.logging import metrics
from fairseq.models import DistributedFairseqModel

from mist_fairseq.criterions.mist_loss import MistLoss, MistLossConfig
from mist_fairseq.mist.objective import Batch, Objective
from tests.helpers import assert_same_gradients, batch, gradients, part, tiny_dictionary, tiny_model

SOURCES, TARGETS = [9, 4, 13, 2, 7, 7], [5, 12, 1, 7, 2, 9]


def criterion(**options) -> MistLoss:
    return MistLoss.build_criterion(MistLossConfig(**options), None)


def training_model(dictionary):
    return tiny_model(dictionary, dropout=0.0, attention_dropout=0.0).train()


def test_options_are_the_objectives():
    options = dict(
        glancing_ratio=0.3, mist_loss_factor=0.5, mist_targets="random", length_loss_factor=0.1, label_smoothing=0.2
    )
    assert criterion().objective == Objective() and criterion(**options).objective == Objective(**options)
    with pytest.raises(ValueError, match="--glancing-ratio is 1.5"):
        criterion(glancing_ratio=1.5)


def test_the_loss_is_the_objectives(dictionary):
    model, sample = training_model(dictionary), batch(SOURCES, TARGETS, dictionary)
    loss, size, log = criterion(mist_loss_factor=0.5)(model, sample)
    objective, pairs = Objective(mist_loss_factor=0.5), Batch(**sample["net_input"])
    predictions = objective.predict(model.encoder, pairs, dictionary.tokenizer.special, 40)
    expected, parts = objective.losses(predictions, pairs)
    assert torch.equal(loss, expected) and size == sum(TARGETS)
    assert all(torch.equal(log[name], value) for name, value in parts.items())
    assert (log["ntokens"], log["nsentences"], log["sample_size"]) == (size, 6, size)


def train_one_worker(rank, folder):
    os.environ.update(MASTER_ADDR="127.0.0.1", GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=2)
    dictionary = tiny_dictionary()
    model = training_model(dictionary)
    cfg = DistributedTrainingConfig(ddp_backend="legacy_ddp", distributed_world_size=2, tpu=False)
    wrapped = DistributedFairseqModel(cfg, model, torch.distributed.group.WORLD, torch.device("cpu"))
    sample = part(batch(SOURCES, TARGETS, dictionary), [[0, 1, 2, 3], [4, 5]][rank])
    criterion()(wrapped, sample)[0].backward()
    wrapped.all_reduce_grads()  # the mean over workers; fairseq's trainer multiplies by their number
    torch.save({name: value * 2 for name, value in gradients(model).items()}, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_workers_give_the_gradients_of_one(tmp_path, dictionary):
    model, other = (training_model(dictionary) for _ in range(2))
    criterion()(model, batch(SOURCES, TARGETS, dictionary))[0].backward()
    torch.multiprocessing.start_processes(train_one_worker, (str(tmp_path),), nprocs=2, start_method="fork")
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        for name, parameter in other.named_parameters():
            parameter.grad = found[name]
        assert_same_gradients(other, model)


def test_logged_figures(dictionary):
    model, sample = training_model(dictionary), batch(SOURCES, TARGETS, dictionary)
    loss, size, log = criterion()(model, sample)
    with metrics.aggregate(new_root=True) as logged:
        MistLoss.reduce_metrics([log, log])
    values = logged.get_smoothed_values()
    assert values["loss"] == pytest.approx(float(loss) / size / math.log(2), abs=1e-3)
    parts = values["nat_loss"] + values["mist_loss"] + values["length_loss"]
    assert values["loss"] == pytest.approx(parts, abs=3e-3)
    assert values["revealed"] == pytest.approx(int(log["revealed"]) / size, abs=1e-3) and values["revealed"] > 0.2
    for name, counted in (("accuracy", "correct"), ("mist_accuracy", "mist_correct")):
        assert values[name] == pytest.approx(int(log[counted]) / size, abs=1e-3)
    assert values["length_accuracy"] == pytest.approx(int(log["length_correct"]) / 6, abs=1e-3)


def test_logged_numbers_are_read_at_once(monkeypatch):
    """A GPU is waited for once; numbers of several batches, which lack some, are added up."""
    names = ["loss", "nat_loss", "length_loss", "nll_loss", "correct", "length_correct", "revealed"]
    logs = [{name: torch.tensor(float(i + j)) for i, name in enumerate(names)} for j in (1, 2)]
    logs[1]["mist_loss"] = torch.tensor(3.0)
    for log in logs:
        log |= {"ntokens": 10, "nsentences": 2, "sample_size": 10}
    read, to_list = [], torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda self: True))
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: read.append(self) or to_list(self))
    with metrics.aggregate() as logged:
        MistLoss.reduce_metrics(logs)
    assert len(read) == 1
    assert logged["loss"].avg == pytest.approx(3 / 20 / math.log(2))
    assert logged["mist_loss"].avg == pytest.approx(3 / 20 / math.log(2))
    assert logged["length_accuracy"].avg == pytest.approx(13 / 4) and "mist_accuracy" not in logged
