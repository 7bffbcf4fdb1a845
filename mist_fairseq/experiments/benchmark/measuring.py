"""How the benchmarks measure: time, memory, the machine, and how far a figure can be trusted."""

import gc
import multiprocessing
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from mist_fairseq.experiments.results import processor

_Result = TypeVar("_Result")


def milliseconds(work: Callable[..., _Result], *args) -> tuple[float, _Result]:
    """Run *work* and return the milliseconds that it took, on a GPU to its end, and its result."""
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    wait()
    start = time.perf_counter()
    result = work(*args)
    wait()
    return 1000 * (time.perf_counter() - start), result


def median_seconds(work: Callable[[], object], repeats: int) -> float:
    """Run *work* once, and then *repeats* times that count."""
    work()
    return statistics.median(milliseconds(work)[0] for _ in range(repeats)) / 1000


def bootstrap_interval(statistic: Callable[..., np.ndarray], *measured: np.ndarray) -> list[float]:
    """Return the ends of the middle 95 % of a statistic over 1000 bootstrap samples, the same ones each time.

    It gets samples of each of *measured*, (count), *Shapes:* (1000, count), and returns a value for each, (1000).
    """
    samples = np.random.default_rng(1).integers(len(measured[0]), size=(1000, len(measured[0])))
    return np.percentile(statistic(*(values[samples] for values in measured)), [2.5, 97.5]).tolist()


def in_new_process(work: Callable[..., _Result], *args) -> _Result:
    """Run *work* in a process that has done nothing else, with this one's number of threads."""
    spawn, threads = multiprocessing.get_context("spawn"), (torch.get_num_threads(),)
    with ProcessPoolExecutor(1, spawn, torch.set_num_threads, threads) as pool:
        return pool.submit(work, *args).result()


def apart(work: Callable[..., _Result], *args) -> _Result:
    """Run *work* where its memory can be told from other work's: on a GPU, whose allocator counts, in this process."""
    if not torch.cuda.is_available():
        return in_new_process(work, *args)
    gc.collect()
    return work(*args)


def memory_status(field: str) -> int | None:
    """Return bytes from /proc/self/status (``VmRSS`` now, ``VmHWM`` at most), None where there is no such file."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))


def machine() -> dict:
    """Describe what the benchmark runs on, for JSON."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else processor()
    return {"device": name, "threads": torch.get_num_threads(), "torch": torch.__version__}
