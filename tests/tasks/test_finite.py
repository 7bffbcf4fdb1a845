"""One update of fairseq's Trainer at a time; tests/end_to_end/test_numbers.py runs fairseq-train."""

import os
import sys

import pytest
import torch
from fairseq import tasks
from fairseq.trainer import Trainer

from mist_fairseq.mist import layers
from mist_fairseq.mist.kernels import attend
from tests.configurations import configuration
from tests.helpers import batch
from tests.tasks.test_mist_task import write_data

# fairseq's search for the first NaN uses them.
pytestmark = pytest.mark.filterwarnings("ignore:Using .*non-full backward hook:FutureWarning")

SIZES = ["--encoder-layers", "1", "--encoder-embed-dim", "32", "--encoder-ffn-embed-dim", "64"]
SIZES += ["--encoder-attention-heads", "2", "--max-positions", "80"]
TRAINING = ["--criterion", "mist_loss", "--optimizer", "bert_adamw", "--lr", "0.005", "--cpu", "--batch-size", "3"]
LIMITS = ["--max-source-positions", "40", "--max-target-positions", "20"]


@pytest.fixture
def trainer(tmp_path) -> Trainer:
    return begin(tmp_path)


def begin(folder, **precision) -> Trainer:
    """A training on a CPU; *precision* are fairseq's options, which its command line refuses there."""
    line = ["--task", "mist", "--arch", "mist_tiny", *SIZES, *LIMITS, *TRAINING]
    cfg = configuration(write_data(folder), *line)
    cfg.checkpoint.save_dir = str(folder)
    cfg.common.update(precision)
    task = tasks.setup_task(cfg.task)
    torch.manual_seed(0)
    trainer = Trainer(cfg, task, task.build_model(cfg.model), task.build_criterion(cfg.criterion))
    trainer.lr_step_begin_epoch(1)
    return trainer


def batches(task, *numbers) -> list[dict]:
    """Of three sentences each, with these numbers."""
    made = []
    for ids in numbers:
        made.append(batch([5, 9, 7], [3, 6, 4], task.dictionary, seed=ids[0]))
        made[-1]["id"] = made[-1]["net_input"]["ids"] = torch.tensor(ids)
    return made


def parameters(trainer) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in trainer.model.parameters()]


def check_stops(trainer, samples, folder, message):
    """At the second update, with parameters as they are after the first, and crash.pt holds them."""
    before = parameters(trainer)
    with pytest.raises(FloatingPointError, match=message):
        trainer.train_step(samples)
    assert trainer.get_num_updates() == 1
    assert all(torch.equal(*pair) for pair in zip(parameters(trainer), before, strict=True))
    crash = torch.load(folder / "crash.pt", weights_only=True)["model"]
    assert all(torch.equal(crash[name], value) for name, value in trainer.model.state_dict().items())


def with_loss(monkeypatch, trainer, change):
    """A criterion whose loss of the batch with sentence 8 is changed."""
    original = type(trainer.criterion).forward

    def forward(self, model, sample, reduce=True):
        loss, size, log = original(self, model, sample)
        return change(loss) if 8 in sample["id"] else loss, size, log

    monkeypatch.setattr(type(trainer.criterion), "forward", forward)


@pytest.mark.parametrize("value", ["inf", "-inf", "nan"])
def test_a_wrong_loss_with_finite_gradients(trainer, tmp_path, monkeypatch, value):
    """fairseq would learn on. The same batch alone, and as the second of three for one update."""
    one, bad, two = batches(trainer.task, [4, 1, 9], [8, 2, 6], [0, 3, 5])
    with_loss(monkeypatch, trainer, lambda loss: loss + float(value))
    trainer.train_step([one, two])
    message = rf"^the loss is not finite at update 2: the loss is {value} in the batch of the sentences \[2, 6, 8\] "
    for samples in ([one, bad, two], [bad]):
        check_stops(trainer, samples, tmp_path, message)


def test_wrong_gradients_with_a_finite_loss(trainer, tmp_path, monkeypatch):
    """It cannot be told which batch of an update they come from."""
    one, bad = batches(trainer.task, [4, 1, 9], [8, 2, 6])
    trainer.train_step([one])

    def spoil(loss):
        loss = loss.clone()
        loss.register_hook(lambda gradient: gradient * float("nan"))
        return loss

    with_loss(monkeypatch, trainer, spoil)
    message = r"^gradients are Nan/Inf at update 2: the losses are finite, of the sentences \[1, 4, 9, 2, 6, 8\] "
    check_stops(trainer, [one, bad], tmp_path, message)


def test_training_goes_on_after_all_finite_updates(trainer, tmp_path, monkeypatch, caplog):
    """A failed update leaves nothing behind: whoever catches the error can go on with other batches."""
    one, bad = batches(trainer.task, [4, 1, 9], [8, 2, 6])
    with_loss(monkeypatch, trainer, lambda loss: loss * float("nan"))
    trainer.train_step([one])
    check_stops(trainer, [bad], tmp_path, r"the loss is nan in the batch of the sentences \[2, 6, 8\] ")
    assert [record.message for record in caplog.records if "[2, 6, 8]" in record.message] != []  # in --log-file
    before = parameters(trainer)
    trainer.train_step([one])
    assert trainer.get_num_updates() == 2 and not torch.equal(before[0], parameters(trainer)[0])


def test_a_training_that_ended_makes_no_further_update(trainer, monkeypatch):
    """Started again, with --max-update as it was, fairseq would make one more before it looks."""
    (one,) = batches(trainer.task, [4, 1, 9])
    monkeypatch.setattr(trainer.task, "_max_update", 1)
    trainer.train_step([one])
    before = parameters(trainer)
    with pytest.raises(SystemExit) as ended:
        trainer.train_step([one])
    assert ended.value.code == 0 and trainer.get_num_updates() == 1
    ends = []
    monkeypatch.setattr(sys, "argv", ["/usr/bin/fairseq-train"])
    monkeypatch.setattr(os, "_exit", ends.append)
    with pytest.raises(SystemExit):
        trainer.train_step([one])
    assert ends == [0]  # at once: fairseq's threads may be at work
    assert all(map(torch.equal, before, parameters(trainer)))


def test_a_skipped_update_with_a_wrong_loss_stops_the_next(trainer, tmp_path, monkeypatch):
    """fairseq skips updates whose gradients overflow with --fp16, and says nothing of their loss."""
    one, bad = batches(trainer.task, [4, 1, 9], [8, 2, 6])
    with_loss(monkeypatch, trainer, lambda loss: loss * float("nan"))
    trainer.train_step([one])
    trainer.task.train_step(bad, trainer.model, trainer.criterion, trainer.optimizer, trainer.get_num_updates())
    trainer.zero_grad()
    check_stops(trainer, [one], tmp_path, r"the loss is nan in the batch of the sentences \[2, 6, 8\] ")


def test_an_update_of_the_other_workers_batches(trainer):
    """Where one ran out of memory fairseq lets it take part, with no batch of its own."""
    before = parameters(trainer)
    trainer.task.optimizer_step(trainer.optimizer, trainer.model, 0)
    assert all(torch.equal(*pair) for pair in zip(parameters(trainer), before, strict=True))


def test_fp16_learns_what_fp32_learns(trainer, tmp_path, monkeypatch):
    """By weights in fp32 beside the model's, of which matrices alone decay, and a GPU's attention."""
    monkeypatch.setattr(layers, "attend", lambda *inputs: attend(*inputs[:-1], False))
    (sample,) = batches(trainer.task, [4, 1, 9])
    half = begin(tmp_path, fp16=True)
    for _ in range(5):
        expected, found = trainer.train_step([sample]), half.train_step([sample])
        assert found == pytest.approx(expected, rel=0.02)
    groups = half.optimizer.param_groups
    assert [{weight.dim() for weight in group["params"]} for group in groups] == [{2}, {1}]
    assert {weight.dtype for group in groups for weight in group["params"]} == {torch.float32}
    assert torch.equal(half.get_model().fingerprint, trainer.get_model().fingerprint)


@pytest.mark.parametrize("value", ["inf", "nan"])
def test_a_wrong_loss_of_the_validation(trainer, monkeypatch, value):
    """fairseq would keep no best checkpoint from here on, or a worse one."""
    good, bad = batches(trainer.task, [4, 1, 9], [8, 2, 6])
    with_loss(monkeypatch, trainer, lambda loss: loss + float(value))
    trainer.valid_step(good)
    message = rf"^the loss is {value} in the batch of the sentences \[2, 6, 8\] \(lines of the validation data"
    with pytest.raises(FloatingPointError, match=message):
        trainer.valid_step(bad)
