"""The example with Ray Data, on a cluster of this machine: pytest -m slow tests/test_batch_inference.py."""

import os
import random
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mist_fairseq import OnnxGenerator
from mist_fairseq.generate.decoding import Decoding
from mist_fairseq.release.onnx_folder import save_onnx
from tests.helpers import WORDS, tiny_released

ray = pytest.importorskip("ray")
pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
SCRIPT = Path(__file__).parents[1] / "examples" / "batch_inference" / "generate.py"


def workers_of(driver: int) -> list[int]:
    """The processes that hold a model: children of Ray's daemon, which is a child of the driver."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if b"MapWorker(MapBatches(Worker))" in (folder / "cmdline").read_bytes():
                parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
                grandparent = Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[1]
                found += [int(folder.name)] if int(grandparent) == driver else []
        except OSError:  # it has ended
            continue
    return found


def test_a_worker_answers_all_but_nulls(tmp_path):
    example = runpy.run_path(str(SCRIPT))
    save_onnx(tiny_released(), tmp_path)
    worker = example["Worker"](str(tmp_path), "fp32", ["a", "b"], Decoding("mist", 2))
    columns = {"a": ["how can", None, "what", "is it " * 40], "b": ["the guitar", "it", None, ""], "n": [3, 1, None, 2]}
    answers = worker(pa.table(columns)).to_pydict()
    assert {name: answers.pop(name) for name in columns} == columns
    generator = OnnxGenerator.from_pretrained(str(tmp_path), threads=1)
    texts = [(columns["a"][i], columns["b"][i]) for i in (0, 3)]
    first, last = generator.generate(texts, decoding="mist", iterations=2, return_scores=True)
    assert answers["output"] == [first.text, None, None, last.text]
    assert answers["score"] == [pytest.approx(first.score), None, None, pytest.approx(last.score)]
    assert answers["cut"] == [False, None, None, True]


def test_columns_are_checked_before_any_work():
    check = runpy.run_path(str(SCRIPT))["check_columns"]
    assert check("q", ["a", "b"], ["b"]) is None
    with pytest.raises(ValueError, match="^q has no column c, but a, b$"):
        check("q", ["a", "b"], ["b", "c"])
    with pytest.raises(ValueError, match="^q has score already, which"):
        check("q", ["a", "score"], ["a"])


@pytest.mark.slow  # half a minute, most of which Ray takes to start
def test_a_killed_worker_loses_and_repeats_nothing(tmp_path):
    rng = random.Random(0)
    texts = [" ".join(rng.choices(WORDS, k=rng.randint(1, 9))) for _ in range(30_000)]
    texts[7] = None
    parquet.write_table(pa.table({"number": range(len(texts)), "query": texts}), tmp_path / "queries.parquet")
    save_onnx(tiny_released(), tmp_path / "model")
    files = ["queries.parquet", "answers", "--model", "model", "--field", "query"]
    options = ["--precision", "fp32", "--workers", "2", "--block", "500", "--file", "1000"]
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
    with open(tmp_path / "log", "w") as log:
        command = [sys.executable, SCRIPT, *files, *options]
        driver = subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=log, stderr=subprocess.STDOUT)
    try:
        workers: list[int] = []
        while driver.poll() is None and not (list(tmp_path.glob("answers/*")) and len(workers) == 2):
            time.sleep(0.02)
            workers = workers_of(driver.pid)
        written = len(list(tmp_path.glob("answers/*")))
        for worker in workers[:1]:
            os.kill(worker, signal.SIGKILL)
        assert driver.wait(timeout=600) == 0 and workers, (tmp_path / "log").read_text()
    finally:
        driver.kill()
    assert 0 < written < len(list(tmp_path.glob("answers/*"))) - 2  # it was in the middle

    answers = parquet.read_table(tmp_path / "answers").sort_by("number").to_pydict()
    assert answers["number"] == list(range(len(texts))) and answers["query"] == texts
    assert answers["output"][7] is answers["score"][7] is answers["cut"][7] is None
    generator = OnnxGenerator.from_pretrained(str(tmp_path / "model"), threads=1)
    outputs = generator.generate([text or "" for text in texts], return_scores=True)
    assert all(found == output.text for i, (found, output) in enumerate(zip(answers["output"], outputs)) if i != 7)
    assert answers["score"][8] == pytest.approx(outputs[8].score, abs=1e-4) and answers["cut"][8] is False
