"""Workers: the same answers in the same order, and none is left when they are wanted no more."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from mist_fairseq import OnnxGenerator
from mist_fairseq.bulk.workers import Model, answer_all
from mist_fairseq.generate.decoding import Decoding

ROOT = Path(__file__).parents[2]
DEADLINE = 120  # seconds, on a busy machine


@dataclass
class Chunk:
    texts: list


CHUNKS = [Chunk([f"how {'can ' * (i + j)}it" for j in range(i % 4)]) for i in range(9)]


def eventually(condition):
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_running(process: int) -> bool:
    """Also not a zombie, which waits for whoever started it."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except FileNotFoundError:
        return False


def test_workers_answer_as_one_does(folder):
    """In order; a chunk is only read when there is room for it; a worker that dies is told of."""
    model, read = Model(folder, {"threads": 1}, Decoding(nbest=2), batch_size=2), []
    alone = list(answer_all(iter(CHUNKS), model, 1))
    answers = answer_all((read.append(chunk) or chunk for chunk in CHUNKS), model, 2)
    first = next(answers)
    assert len(read) == 4
    assert [first, *answers] == alone and [chunk for chunk, _ in alone] == CHUNKS
    generator = OnnxGenerator.from_pretrained(folder, threads=1)
    for chunk, answered in alone:
        expected = generator.generate(chunk.texts, nbest=2)
        assert [[one.text for one in each.best] for each in answered] == expected
    assert multiprocessing.active_children() == []

    answers = answer_all(iter(CHUNKS * 9), model, 2)
    next(answers)
    os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
    with pytest.raises(ChildProcessError, match="a worker died: was it killed for want of memory"):
        list(answers)
    eventually(lambda: multiprocessing.active_children() == [])


def test_a_model_that_cannot_be_loaded(tmp_path):
    (tmp_path / "config.json").write_text('{"format": "onnx"}')
    for workers in (1, 2):
        with pytest.raises(ValueError, match="config.json: version is None, expected 2"):
            list(answer_all(iter(CHUNKS), Model(str(tmp_path), {}), workers))
    assert multiprocessing.active_children() == []


SCRIPT = """
import multiprocessing, signal, sys, time
from mist_fairseq.bulk.workers import Model, answer_all
from tests.bulk.test_workers import CHUNKS
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored, where the tests run in the background
    answers = answer_all(iter(CHUNKS * 1000), Model(sys.argv[1], {"threads": 1}), 2)
    next(answers)
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    time.sleep(1000)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_the_process_that_started_them(folder, number):
    command = [sys.executable, "-c", SCRIPT, folder]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        workers = [int(pid) for pid in process.stdout.readline().split()]
        assert workers and all(map(is_running, workers))
        process.send_signal(number)
        process.wait(DEADLINE)
        eventually(lambda: not any(map(is_running, workers)))
