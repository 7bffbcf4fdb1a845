import copy
import math
import os

import pytest
import torch
import torch.distributed
import torch.multiprocessing
import torch.nn.functional as F
from fairseq.dataclass.configs import DistributedTrainingConfig
from fairseq.logging import metrics
from fairseq.models import DistributedFairseqModel
from hypothesis import given, settings
from hypothesis import strategies as st

from mist_fairseq.criterions.mist_loss import MistLoss, smoothed_nll
from tests.helpers import batch, indices, tiny_dictionary, tiny_model

SOURCES, TARGETS = [9, 4, 13, 2, 7, 7], [5, 12, 1, 7, 2, 9]


def criterion(glancing=0.0, mist=1.0, length=1.0, smoothing=0.1):
    return MistLoss(None, glancing, mist, length, smoothing)


def part(sample, rows):
    """Some sentences of a batch, without padding columns that none of them needs."""
    inputs = sample["net_input"]
    S, T = int(inputs["src_lengths"][rows].max()), int(inputs["target_lengths"][rows].max())
    lengths = inputs["target_lengths"][rows]
    return {
        "nsentences": len(lengths),
        "ntokens": int(lengths.sum()),
        "net_input": {
            "src_tokens": inputs["src_tokens"][rows, :S],
            "src_lengths": inputs["src_lengths"][rows],
            "target_tokens": inputs["target_tokens"][rows, :T],
            "target_lengths": lengths,
            "ids": inputs["ids"][rows],
            **indices(inputs["src_lengths"][rows], lengths),
        },
    }


def training_model(dictionary):
    return tiny_model(dictionary, dropout=0.0, attention_dropout=0.0).train()


def gradients(model):
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def assert_same_gradients(found, expected):
    for name, value in expected.items():
        scale = max(1.0, float(value.abs().max()))
        torch.testing.assert_close(found[name] / scale, value / scale, atol=1e-5, rtol=0, msg=name)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 150), st.sampled_from([0.0, 0.1, 0.3]), st.integers(0, 1000))
def test_smoothed_nll_equals_torch(rows, smoothing, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.randn(rows, 37, generator=generator) * 3).requires_grad_()
    target = torch.randint(0, 37, (rows,), generator=generator)
    loss, nll = smoothed_nll(logits, target, smoothing)
    (found,) = torch.autograd.grad(loss * 3, logits)
    expected = F.cross_entropy(logits, target, label_smoothing=smoothing, reduction="sum")
    (gradient,) = torch.autograd.grad(expected * 3, logits)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(found, gradient, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(nll, F.cross_entropy(logits, target, reduction="sum").detach())


@pytest.mark.parametrize("mist, length", [(1.0, 1.0), (0.5, 0.1), (0.0, 1.0)])
def test_loss_is_a_sum_over_target_tokens(dictionary, mist, length):
    """Equations 2-4 and the length loss, with plain loops over sentences and tokens."""
    model, sample = training_model(dictionary), batch(SOURCES, TARGETS, dictionary)
    loss, size, log = criterion(mist=mist, length=length)(model, sample)
    inputs = sample["net_input"]
    output = model(**inputs, mixing=mist > 0)
    expected, position = 0.0, 0
    for row, T in enumerate(TARGETS):
        for t in range(T):
            gold = inputs["target_tokens"][row, t]
            for logits, factor in ((output["nat_logits"], 1.0), (output["mist_logits"], mist)):
                if factor:
                    log_p = logits[position].log_softmax(-1)
                    expected += factor * -(0.9 * log_p[gold] + 0.1 * log_p.mean())
            expected += length * -output["length_logits"][row].log_softmax(-1)[T]
            position += 1
    torch.testing.assert_close(loss, expected, atol=1e-3, rtol=1e-5)
    assert size == sum(TARGETS) == log["sample_size"] and ("mist_loss" in log) == (mist > 0)


@pytest.mark.parametrize("glancing", [0.0, 0.5])
@pytest.mark.parametrize("rows", [[[0, 1, 2], [3, 4, 5]], [[2], [0, 1, 3, 4, 5]]])
def test_a_batch_gives_the_gradients_of_its_parts(dictionary, rows, glancing):
    """As with --update-freq 2. Glancing included: its noise belongs to the sentences."""
    whole, parts = (training_model(dictionary) for _ in range(2))
    torch.manual_seed(7)  # fairseq does so before each update
    sample = batch(SOURCES, TARGETS, dictionary)
    loss = criterion(glancing)
    loss(whole, sample)[0].backward()
    for some in rows:
        loss(parts, part(sample, torch.tensor(some)))[0].backward()
    assert_same_gradients(gradients(parts), gradients(whole))


def train_one_worker(rank, folder):
    os.environ.update(MASTER_ADDR="127.0.0.1", GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=2)
    dictionary = tiny_dictionary()
    model = training_model(dictionary)
    cfg = DistributedTrainingConfig(ddp_backend="legacy_ddp", distributed_world_size=2, tpu=False)
    wrapped = DistributedFairseqModel(cfg, model, torch.distributed.group.WORLD, torch.device("cpu"))
    sample = part(batch(SOURCES, TARGETS, dictionary), torch.tensor([[0, 1, 2, 3], [4, 5]][rank]))
    criterion()(wrapped, sample)[0].backward()
    wrapped.all_reduce_grads()  # the mean over workers; fairseq's trainer multiplies by their number
    torch.save({name: value * 2 for name, value in gradients(model).items()}, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_workers_give_the_gradients_of_one(tmp_path, dictionary):
    model = training_model(dictionary)
    criterion()(model, batch(SOURCES, TARGETS, dictionary))[0].backward()
    torch.multiprocessing.spawn(train_one_worker, (str(tmp_path),), nprocs=2)
    for rank in range(2):
        assert_same_gradients(torch.load(tmp_path / f"{rank}.pt"), gradients(model))


def test_logged_figures(dictionary):
    model, sample = training_model(dictionary), batch(SOURCES, TARGETS, dictionary)
    loss, size, log = criterion(glancing=0.5)(model, sample)
    with metrics.aggregate(new_root=True) as logged:
        MistLoss.reduce_metrics([log, log])
    values = logged.get_smoothed_values()
    assert values["loss"] == pytest.approx(float(loss) / size / math.log(2), abs=1e-3)
    parts = values["nat_loss"] + values["mist_loss"] + values["length_loss"]
    assert values["loss"] == pytest.approx(parts, abs=3e-3)
    assert values["revealed"] == pytest.approx(int(log["revealed"]) / size, abs=1e-3) and values["revealed"] > 0.2
    for name in ("accuracy", "mist_accuracy", "length_accuracy"):
        assert 0 <= values[name] <= 1


def test_accuracy_counts_right_tokens(dictionary):
    model, sample = training_model(dictionary), batch(SOURCES, TARGETS, dictionary)
    learner = copy.deepcopy(model)
    optimizer = torch.optim.Adam(learner.parameters(), lr=5e-3)
    for _ in range(80):
        optimizer.zero_grad()
        loss, size, log = criterion(smoothing=0.0)(learner, sample)
        (loss / size).backward()
        optimizer.step()
    assert int(log["correct"]) == int(log["mist_correct"]) == size and int(log["length_correct"]) == len(SOURCES)


@pytest.mark.parametrize("wrong", [{"glancing": 1.5}, {"mist": -1.0}, {"length": -0.1}, {"smoothing": 1.0}])
def test_impossible_factors_are_refused(wrong):
    with pytest.raises(ValueError, match="expected|negative"):
        criterion(**wrong)
