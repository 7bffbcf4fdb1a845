"""Training shared by several worker processes, over gloo on CPUs: the same updates, and no worker left waiting."""

import math
import os
import re
import signal
import subprocess
import sys
import time
from itertools import chain
from pathlib import Path

import pytest
import torch

from mist_fairseq.files.torch_files import load_torch_file
from tests.end_to_end.conftest import ENVIRONMENT, LIMITS, ROOT, SMALL
from tests.end_to_end.warm import environment, start_module

UPDATES = 20
MODEL = ["--user-dir", "mist_fairseq", "--task", "mist", "--arch", "mist_tiny", *SMALL, *LIMITS]
TRAINING = ["--criterion", "mist_loss", "--dropout", "0", "--attention-dropout", "0", "--disable-validation"]
TRAINING += ["--optimizer", "sgd", "--lr", "0.02", "--lr-scheduler", "fixed", "--max-update", str(UPDATES)]
TRAINING += ["--required-batch-size-multiple", "1", "--cpu", "--num-workers", "0", "--no-epoch-checkpoints"]
TRAINING += ["--no-progress-bar", "--log-format", "simple", "--log-interval", "1"]
SHARED = ["--distributed-backend", "gloo", "--ddp-backend", "legacy_ddp", "--distributed-world-size", "2"]
IN_ORDER = ["--curriculum", "99"]  # of source lengths, so that two batches in a row make one of twice the size


def meet(folder: Path) -> list[str]:
    """No port is taken that another test might have."""
    return ["--distributed-init-method", f"file://{folder}/meeting"]


class Workers:
    """fairseq-train in one process or two, started one by one as by hand. Leaving ends them."""

    def __init__(self, folder: Path, number: int, *options, **environment: str):
        folder.mkdir()
        self.logs = [folder / f"{rank}.log" for rank in range(number)]
        self.processes = []
        for rank, log in enumerate(self.logs):
            line = ["tests.end_to_end.telling", folder, *MODEL, *TRAINING, *options, "--save-dir", folder]
            if number > 1:
                line += [*SHARED, *meet(folder), "--distributed-no-spawn", "--distributed-rank", rank]
            self.processes.append(
                start_module(list(map(str, line)), str(ROOT), {**ENVIRONMENT, **environment}, str(log))
            )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()

    def end(self, seconds: float) -> list[int]:
        """Wait for all, and give back their exit statuses."""
        deadline = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0, deadline - time.monotonic()))
        return [process.exitcode for process in self.processes]

    def printed(self) -> str:
        return "\n".join(log.read_text() for log in self.logs)


def train(folder: Path, number: int, *options) -> list[dict]:
    """What each worker told, when all went well."""
    with Workers(folder, number, *options) as workers:
        assert workers.end(300) == [0] * number, workers.printed()
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(number)]


def assert_equal_updates(workers: list[dict], one: dict):
    """To 1e-5 of the largest gradient, with the same sentences in each update."""
    first, second = workers
    for a, b, c in zip(first["updates"], second["updates"], one["updates"], strict=True):
        assert sorted(chain(*a["batches"], *b["batches"])) == sorted(chain(*c["batches"]))
        largest = max(float(gradient.abs().max()) for gradient in c["gradients"])
        assert 0.01 < largest < math.inf
        for mine, other, expected in zip(a["gradients"], b["gradients"], c["gradients"], strict=True):
            assert torch.equal(mine, other)
            torch.testing.assert_close(mine, expected, rtol=0, atol=1e-5 * largest)
    assert len(one["updates"]) == UPDATES
    for name, value in one["model"].items():
        assert torch.equal(first["model"][name], second["model"][name]), name
        torch.testing.assert_close(first["model"][name], value, rtol=0, atol=1e-5)


# -- the same updates ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("update_freq", "last"), [(2, ([12, 8], [12, 0])), (1, ([8], [0]))])
def test_two_workers_learn_what_one_does_with_the_double_batch(data, tmp_path, update_freq, last):
    """In an epoch of seven batches, so that the second worker has nothing to end it with."""
    common = [data, *IN_ORDER, "--glancing-ratio", "0", "--update-freq", update_freq, "--no-save"]
    workers = train(tmp_path / "two", 2, *common, "--batch-size", "12")
    for worker, sizes in zip(workers, last):
        assert [len(batch) for batch in worker["updates"][4 // update_freq - 1]["batches"]] == sizes
    (one,) = train(tmp_path / "one", 1, *common, "--batch-size", "24")
    assert_equal_updates(workers, one)


def test_two_workers_glance_as_one(data, tmp_path):
    """With glancing, in fairseq's random order: a sentence reveals the same wherever it is, and no two alike."""
    common = [data, "--glancing-ratio", "0.5", "--batch-size", "6"]
    workers = train(tmp_path / "two", 2, *common, "--update-freq", "2")
    (one,) = train(tmp_path / "one", 1, *common, "--update-freq", "4", "--no-save")
    assert_equal_updates(workers, one)
    for a, b, c in zip(*(worker["updates"] for worker in workers), one["updates"]):
        assert not a["noise"].keys() & b["noise"].keys()
        found = a["noise"] | b["noise"]
        assert {int(noise[0]) for noise in found.values()} == {int(noise[0]) for noise in c["noise"].values()}
        assert len({int(noise[0]) for noise in found.values()}) == len(found) > 6
        for sentence, noise in c["noise"].items():
            size = min(len(noise), len(found[sentence]))  # as long as the longest target of the batch
            assert torch.equal(noise[:size], found[sentence][:size])
    stored = load_torch_file(tmp_path / "two" / "checkpoint_last.pt")["model"]
    for name, value in workers[1]["model"].items():
        assert torch.equal(stored[name], value), name
    assert workers[0]["saved"] > 0 and workers[1]["saved"] == 0

    common += ["--restore-file", tmp_path / "two" / "checkpoint_last.pt", "--no-save"]
    resumed = train(tmp_path / "on", 2, *common, "--max-update", str(UPDATES + 1))
    assert [len(worker["updates"]) for worker in resumed] == [1, 1]
    for name, value in resumed[0]["model"].items():
        assert torch.equal(value, resumed[1]["model"][name]), name
    first, second = ({*chain(*worker["updates"][0]["batches"])} for worker in resumed)
    assert first and second and not first & second


# -- the end of a worker ------------------------------------------------------------------------------------------


def test_a_killed_worker_ends_the_other(data, tmp_path):
    with Workers(tmp_path / "run", 2, data, "--batch-size", "8", MISHAP="0 3 pause") as workers:
        wait_until((tmp_path / "run" / "paused").exists)
        workers.processes[0].kill()
        assert workers.end(60) == [-signal.SIGKILL, 1], workers.printed()
    assert "RuntimeError: [" in workers.logs[1].read_text()  # from gloo's source, in words that vary


@pytest.mark.parametrize(
    ("what", "errors"),
    [("nan", ["FloatingPointError", "FloatingPointError"]), ("raise", ["RuntimeError: [", "ValueError: a mishap"])],
)
def test_an_error_of_one_worker_ends_all(data, tmp_path, what, errors):
    with Workers(tmp_path / "run", 2, data, "--batch-size", "8", MISHAP=f"1 3 {what}") as workers:
        assert workers.end(60) == [1, 1], workers.printed()
    assert all(error in log.read_text() for error, log in zip(errors, workers.logs, strict=True)), workers.printed()


def test_a_killed_worker_ends_those_that_fairseq_started(data, tmp_path):
    folder = tmp_path / "run"
    spawning = {"SPAWN": "1", "MISHAP": "1 3 pause"}
    with Workers(folder, 1, data, *SHARED, *meet(folder), "--batch-size", "8", **spawning) as parent:
        wait_until((folder / "paused").exists)
        first, second = processes(folder)
        os.kill(second, signal.SIGKILL)
        assert parent.end(60) == [1]
    assert "process 1 terminated with signal SIGKILL" in parent.printed()
    wait_until(lambda: not is_alive(first))


# -- scripts/train_cpu_workers.sh ---------------------------------------------------------------------------------


def start_script(folder: Path, worker: str, *arguments, **variables) -> subprocess.Popen:
    """Start scripts/train_cpu_workers.sh with an executable file of these contents for fairseq-train."""
    command = folder / "bin" / "fairseq-train"
    command.parent.mkdir()
    command.write_text(worker)
    command.chmod(0o755)
    path = f"{command.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    line = ["bash", "scripts/train_cpu_workers.sh", *arguments, "--save-dir", folder / "checkpoints"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    variables = {**ENVIRONMENT, "PATH": path, "FOLDER": str(folder), **variables}
    return subprocess.Popen(list(map(str, line)), cwd=ROOT, env=variables, **pipes)


def test_a_killed_worker_ends_the_script(data, tmp_path):
    worker = f'#!/bin/sh\nexec "{environment()["WARM_PYTHON"]}" -m tests.end_to_end.telling "$FOLDER" "$@"\n'
    arguments = [data, *MODEL, *TRAINING, "--batch-size", "8"]
    process = start_script(tmp_path, worker, *arguments, MISHAP="1 3 pause")
    wait_until((tmp_path / "paused").exists)
    workers = processes(tmp_path)
    os.kill(workers[1], signal.SIGKILL)
    log, _ = process.communicate(timeout=60)  # its end is that of all who could still print
    assert process.returncode == 128 + signal.SIGKILL, log
    assert "error: worker 1 ended with status 137: ending all" in log
    assert re.search(r"bsz=16\b.* num_updates=2\b", log)  # eight sentences from each worker
    assert "rank 1" in (tmp_path / "checkpoints" / "worker1.log").read_text()
    wait_until(lambda: not any(map(is_alive, workers)))


# Workers that train nothing: one of them would never end by itself.
STAND_IN = """#!/bin/sh
for rank; do :; done
echo $$ > "$FOLDER/$rank.new" && mv "$FOLDER/$rank.new" "$FOLDER/$rank.pid"
echo "$@"
exec sleep $SECONDS_OF_WORK
"""


def test_the_script_ends_with_its_workers(tmp_path):
    process = start_script(tmp_path, STAND_IN, "DATA", "--seed", "7", SECONDS_OF_WORK="0", WORKERS="3")
    log, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    for rank in range(3):
        printed = (tmp_path / "checkpoints" / f"worker{rank}.log").read_text() if rank else log
        assert printed.startswith(f"DATA --seed 7 --save-dir {tmp_path}/checkpoints --cpu ")
        assert printed.endswith(f" --distributed-world-size 3 --distributed-rank {rank}\n")


@pytest.mark.parametrize("victim", ["first worker", "script"])
def test_no_worker_is_left_behind(tmp_path, victim):
    process = start_script(tmp_path, STAND_IN, "DATA", SECONDS_OF_WORK="600")
    wait_until(lambda: all((tmp_path / f"{rank}.pid").exists() for rank in range(2)))
    workers = processes(tmp_path)
    assert all(map(is_alive, workers))
    if victim == "script":
        process.terminate()
    else:
        os.kill(workers[0], signal.SIGKILL)
    log, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + (signal.SIGTERM if victim == "script" else signal.SIGKILL)
    assert ("error: worker 0 ended with status 137: ending all" in log) == (victim != "script")
    wait_until(lambda: not any(map(is_alive, workers)))


def processes(folder: Path) -> list[int]:
    return [int((folder / f"{rank}.pid").read_text()) for rank in range(2)]


def wait_until(condition):
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True
