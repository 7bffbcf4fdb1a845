import json
from dataclasses import replace

import pytest
import torch

from mist_fairseq.experiments.benchmark import floor, training
from mist_fairseq.experiments.benchmark.floor import training_operations
from mist_fairseq.experiments.benchmark.measuring import machine
from mist_fairseq.experiments.benchmark.training import ARMS, Training, markdown, measure_memory, time_training
from tests.experiments.benchmark.helpers import MIST, entry
from tests.experiments.preparation import run_script

PROFILE = {"source": {4: 1, 6: 1, 9: 1}, "target": {3: 1, 12: 1}}
PRODUCT = 10**9  # operations
SIZES = MIST.removeprefix("--task mist ")


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    folder = tmp_path_factory.mktemp("training")
    training.write_batches(folder, PROFILE, 3)
    return entry(str(folder), SIZES)


@pytest.fixture
def clocked(monkeypatch):
    """The arms that are updated in turn; an update takes 3 s with mixing, 2 s without, a product 1 ms."""
    order = []

    def clock(work, number):
        order.append((work.__self__.arm, number))
        return 3000 if work.__self__.arm == "MIST" else 2000, None

    monkeypatch.setattr(training.measuring, "milliseconds", clock)
    monkeypatch.setattr(training, "fastest_product", lambda *_, **__: (None, PRODUCT))
    monkeypatch.setattr(training.measuring, "median_seconds", lambda *_: 1e-3)
    return order


def test_an_update_is_one_of_fairseq(setting):
    """The criterion's gradients, divided by the tokens, clipped and given to AdamW."""
    torch.manual_seed(0)
    one = Training(replace(setting, arguments=f"{SIZES} --dropout 0 --attention-dropout 0"), "MIST")
    model, criterion = one.trainer.get_model(), one.trainer.get_criterion()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    one.trainer._set_seed()
    batch, _ = one.trainer._prepare_sample(one.batches[1])  # on the model's device
    loss, size, _ = criterion(model.train(), batch)
    (loss / size).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    one.update(1)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], atol=1e-6, rtol=1e-4, msg=name)
        decay = 3e-5 * 0.01 if parameter.dim() >= 2 else 0.0
        step = expected[name] / (expected[name].abs() + 1e-8)  # Adam's first is the gradient's sign
        after = before[name] * (1 - decay) - 3e-5 * step
        torch.testing.assert_close(parameter.detach(), after, atol=1e-6, rtol=0, msg=name)


def test_operations_are_those_of_the_batch(setting):
    for arm in ARMS:
        one = Training(setting, arm)
        assert len(set(one.operations)) > 1, "the batches differ"
        for batch, counted in zip(one.batches, one.operations):
            lengths = [batch["net_input"][f"{side}_lengths"].tolist() for side in ("src", "target")]
            assert counted == training_operations(one.trainer.get_model().encoder, *lengths, mixing=arm == "MIST")


def test_arms_and_products_take_turns(setting, clocked):
    result = time_training(setting, updates=4, warm_up=1)
    assert clocked == [(arm, number) for number in range(5) for arm in list(ARMS)[:: 1 if number % 2 else -1]]
    mist, plain = result["arms"].values()
    assert result["product_flops"] == {"median": PRODUCT * 1e3, "interval": [PRODUCT * 1e3] * 2}
    assert result["time_ratio"] == {"median": 1.5, "interval": [1.5, 1.5]}
    assert result["operations_ratio"] == pytest.approx(mist["operations"] / plain["operations"]) and mist != plain
    assert mist["samples_per_second"]["median"] == 1 and plain["samples_per_second"]["median"] == 1.5
    assert mist["share"]["median"] == pytest.approx(mist["flops"]["median"] / PRODUCT / 1e3)


def test_shares_are_of_the_same_rounds(tmp_path, monkeypatch):
    """A machine that is half as fast for a while makes updates and products take twice as long."""
    training.write_batches(tmp_path, {"source": {5: 1}, "target": {4: 1}}, 2)
    round_ = []

    def clock(work, number):
        round_.append(number)
        return 1000 * (1 + number % 2), None

    monkeypatch.setattr(training, "fastest_product", lambda *_, **__: (None, PRODUCT))
    monkeypatch.setattr(training.measuring, "milliseconds", clock)
    monkeypatch.setattr(training.measuring, "median_seconds", lambda *_: 1e-3 * (1 + round_[-1] % 2))
    for actual in time_training(entry(str(tmp_path), SIZES), updates=5)["arms"].values():
        share = actual["operations"] / PRODUCT / 1e3
        assert actual["share"]["interval"] == pytest.approx([share, share])
        assert actual["seconds"]["interval"][0] < actual["seconds"]["interval"][1]


def test_memory_is_of_a_process_alone(setting, monkeypatch, warm_processes):
    """Weights, gradients and two moments of embeddings that nothing else of this size comes near to."""
    monkeypatch.setattr(training, "ARMS", {"MIST": 1.0})
    large = replace(setting, arguments=f"{SIZES} --max-positions 1000000")
    actual, small = measure_memory(large), measure_memory(setting)
    if small["MIST"] is None:
        pytest.skip("this system does not tell")
    assert 0.9 < (actual["MIST"] - small["MIST"]) / (4 * 4 * 16 * 1_000_000) < 2


def test_the_peak_is_that_of_all_updates(setting, monkeypatch):
    """fairseq's trainer resets the allocator's peak at the end of each update."""
    peak = [99]

    class OnGpu:
        def __init__(self, *_):
            pass

        def update(self, number):
            peak.append(10 - number)
            torch.cuda.reset_peak_memory_stats()
            peak.append(5)

    monkeypatch.setattr(training, "Training", OnGpu)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 3)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: max(peak))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", peak.clear)
    monkeypatch.setattr(training.logging, "disable", lambda _: None)
    assert measure_memory(setting) == dict.fromkeys(ARMS, 7)


def test_table(setting, clocked):
    run = time_training(setting, updates=2) | {"memory": {"MIST": 3 * 2**30, "no mixing": None}}
    text = markdown(machine() | {"arguments": ["--arch", "x y"], "profile": "quora", "runs": [run]})
    assert "| fp32 | 3 | MIST | 1.0 |" in text and "| 3.00 GiB |" in text and "| fp32 | 3 | no mixing | 1.5 |" in text
    assert "| MIST / no mixing | 1.500 (1.500 - 1.500) |" in text and "`--arch 'x y'`" in text


def test_script(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(floor._SIZES, "cpu", 256)  # of products, which take seconds
    (tmp_path / "lengths.yaml").write_text("source: 5\ntarget: {3: 1, 4: 1}\n")
    out = tmp_path / "result.json"
    given = f"--profile {tmp_path / 'lengths.yaml'} --batch-size 2 --updates 2 --precision fp32 bf16 --no-memory"
    given = ["benchmark_training.py", *f"{SIZES} {given} --threads 1 --out {out}".split()]
    assert run_script(monkeypatch, *given) is None
    result = json.loads(out.read_text())
    assert [run["precision"] for run in result["runs"]] == ["fp32", "bf16"] and result["arguments"] == SIZES.split()
    assert result["threads"] == 1 and "benchmark_training.py" in result["command"]
    assert out.with_suffix(".md").read_text() in capsys.readouterr().out
    assert run_script(monkeypatch, *given, "--profile", "none").startswith("error: no profile 'none'")
