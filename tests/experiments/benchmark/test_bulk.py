"""Rates of a file by a clock that is looked at, and the table."""

import json
from pathlib import Path

import pytest

from mist_fairseq.bulk.output import Progress
from mist_fairseq.experiments.benchmark import bulk
from mist_fairseq.experiments.benchmark.bulk import Setup, arrangements, markdown, measure
from mist_fairseq.experiments.benchmark.workers import Workers
from mist_fairseq.generate.decoding import Decoding
from mist_fairseq.release.onnx_folder import save_onnx
from tests.experiments.preparation import run_script
from tests.helpers import tiny_released


def test_arrangements():
    assert list(map(str, arrangements([2, 1, 2]))) == ["1x1", "2x1", "1x2"]


def test_rates_do_not_count_the_start(monkeypatch):
    """Three chunks, written 5, 6 and 8 seconds after the beginning; in the second round 7, 9 and 11."""
    clock = iter([0.0, 5.0, 6.0, 8.0, 0.0, 7.0, 9.0, 11.0])
    monkeypatch.setattr(bulk.time, "perf_counter", lambda: next(clock))
    seen = []

    def run(job, report):
        seen.append((job.workers, job.model.options, Path(job.input).read_text().count("\n")))
        for rows in (512, 512, 100):
            report(Progress(0), None, rows)

    monkeypatch.setattr(bulk, "run", run)
    (result,) = measure([Setup("a/m", "int8", "auto", Workers(2, 1))], ["x", "y"], 1124, 2, 64, Decoding())
    assert seen == [(2, {"precision": "int8", "accelerate": "auto", "threads": 1}, 1124)] * 2
    assert result["rates"] == [612 / 3, 612 / 4] and result["starts"] == [5, 7]
    assert result["rate"] == (612 / 3 + 612 / 4) / 2 and result["start"] == 6


def test_the_table():
    one = {"model": "m", "precision": "int8", "accelerate": "auto"}
    runs = [
        one | {"workers": "1x1", "rates": [90.0, 110.0], "rate": 100.0, "starts": [1.0], "start": 1.0},
        one | {"workers": "2x1", "rates": [190.0], "rate": 190.0, "starts": [2.0], "start": 2.0},
        one | {"precision": "bf16", "workers": "1x1", "skipped": "no such precision"},
    ]
    shown = {"rows": 1000, "texts": 5, "rounds": 1, "batch_size": 64, "decoding": "mist", "device": "d", "cpus": 2}
    lines = markdown(shown | {"runs": runs, "price_per_hour": 0.36}).splitlines()
    assert lines[2] == "| m | int8 | auto | 1x1 | 100 (90 - 110) | 1.00 | 1.0 | 166.7 | 1.000 |"
    assert lines[3].endswith("| 190 (190 - 190) | 1.90 | 2.0 | 87.7 | 0.526 |")
    assert lines[4] == "| m | bf16 | auto | 1x1 | no such precision |  |  |  |  |"
    assert "cost" not in markdown(shown | {"runs": runs, "price_per_hour": 0.0})


def test_the_script(tmp_path, monkeypatch, capsys):
    save_onnx(tiny_released(), str(tmp_path / "onnx"), precisions=["fp32"])
    texts, out = tmp_path / "texts", tmp_path / "out.json"
    texts.write_text("how can you\nlearn it\n")
    given = ["benchmark_bulk.py", tmp_path / "onnx", "--texts", texts, "--workers", 1, "--rounds", 1, "--out", out]
    assert run_script(monkeypatch, *given, "--rows", 600, "--accelerate", "onnxruntime", "native") is None
    ran, skipped = json.loads(out.read_text())["runs"]
    assert ran["rate"] > 0 and "accelerate native is for precision int8" in skipped["skipped"]
    assert out.with_suffix(".md").read_text() in capsys.readouterr().out
    assert run_script(monkeypatch, *given, "--rows", 0) == 2


def test_too_few_rows(tmp_path):
    save_onnx(tiny_released(), str(tmp_path), precisions=["fp32"])
    (run,) = measure([Setup(str(tmp_path), "fp32", "auto", Workers(1, 1))], ["how"], 5, 1, 8, Decoding())
    assert run["skipped"] == "5 rows are a single chunk: give more --rows"
    with pytest.raises(ValueError, match="starts at 1|both numbers start at 1"):
        Workers(0, 1)
