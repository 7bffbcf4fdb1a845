"""Workers beside each other: each has its share of the texts, and rates add up."""

import json
import multiprocessing
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from mist_fairseq.experiments.benchmark import workers as benchmark
from mist_fairseq.experiments.benchmark.workers import Workers, markdown, measure
from mist_fairseq.release.onnx_folder import save_onnx
from tests.experiments.preparation import run_script
from tests.helpers import tiny_released


class Here(ThreadPoolExecutor):
    """One worker in this process."""

    def __init__(self, load, given):
        super().__init__(1, initializer=load, initargs=given)


TEXTS = ["how can you learn", "what is it", "who do you", "the best way to learn it fast"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    folder = str(tmp_path_factory.mktemp("workers") / "onnx")
    save_onnx(tiny_released(), folder, "")
    return folder


def test_real_workers(folder):
    arrangements = [Workers(1, 2), Workers(2, 1)]
    runs = measure(folder, arrangements, TEXTS, [1, 3], 0.05, 2, precision="int8")
    assert [(run["batch_size"], run["workers"]) for run in runs] == [(n, w) for n in (1, 3) for w in ("1x2", "2x1")]
    for run in runs:
        assert len(run["rates"]) == 2 and min(run["rates"]) <= run["rate"] <= max(run["rates"]) and run["rate"] > 0


def test_a_worker_counts_its_texts(monkeypatch):
    """By a clock that goes on by a second whenever somebody looks."""
    seen, clock = [], iter(range(100))

    class Generator:
        def generate(self, texts, batch_size):
            seen.append((texts, batch_size))
            return texts

    monkeypatch.setattr(benchmark, "_generator", Generator(), raising=False)
    monkeypatch.setattr(benchmark, "_together", multiprocessing.Barrier(1), raising=False)
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: float(next(clock)))
    rate = benchmark._generate(["a", "b", "c"], 1, 2.5)
    assert seen == [(list("abcabcab"), 1), (list("cabcabca"), 1), (list("bcabcabc"), 1)]
    assert rate == 24 / 4  # it looked before, three times between, and after


def test_shares():
    assert benchmark._shares(Workers(2, 1), TEXTS[:3], 4, 1.0) == [
        ([TEXTS[0], TEXTS[2]], 4, 1.0),
        ([TEXTS[1]], 4, 1.0),
    ]
    assert benchmark._shares(Workers(2, 1), TEXTS[:1], 4, 1.0)[1] == (TEXTS[:1], 4, 1.0)  # something to do for all


def test_the_table():
    runs = [
        {"workers": "1x2", "batch_size": 1, "rates": [90.0, 100.0], "rate": 95.0},
        {"workers": "2x1", "batch_size": 1, "rates": [140.0, 145.0], "rate": 142.5},
    ]
    shown = {"model": "m", "precision": "int8", "accelerate": "auto", "texts": 4, "device": "d", "cpus": 2}
    lines = markdown(shown | {"runs": runs, "rounds": 2, "seconds": 5.0}).splitlines()
    assert lines[2:4] == ["| 1 | 1x2 | 95 (90 - 100) | 1.00 |", "| 1 | 2x1 | 142 (140 - 145) | 1.50 |"]


def test_the_script(folder, tmp_path, monkeypatch, capsys):
    texts, out = tmp_path / "texts", tmp_path / "out.json"
    texts.write_text("how can you\n\nlearn it\n")
    run = partial(run_script, monkeypatch, "benchmark_workers.py", folder, "--texts", texts, "--out", out, "--workers")
    for wrong in ["2", "0x1", "2x", "axb"]:
        assert run(wrong) == 2 and f"{wrong!r} is not PROCESSESxTHREADS" in capsys.readouterr().err
    monkeypatch.setattr(benchmark, "ProcessPoolExecutor", lambda processes, context, load, given: Here(load, given))
    assert run("1x1", "--batch-size", 2, "--seconds", 0.05, "--rounds", 1) is None
    assert out.with_suffix(".md").read_text() in capsys.readouterr().out
    assert json.loads(out.read_text())["texts"] == 2
    texts.write_text("\n")
    assert run("1x1") == f"error: {texts} has no text"
