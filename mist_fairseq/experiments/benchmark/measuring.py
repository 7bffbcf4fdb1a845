"""How the benchmarks measure: time, memory, the machine, and how far a figure can be trusted."""

import multiprocessing
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from mist_fairseq.experiments.results import processor

RESAMPLES = 1000
_Result = TypeVar("_Result")


def milliseconds(work: Callable[..., _Result], *args, **kwargs) -> tuple[float, _Result]:
    """Run *work* and return the milliseconds that it took, on a GPU to its end, and its result."""
    _wait_for_gpu()
    start = time.perf_counter()
    result = work(*args, **kwargs)
    _wait_for_gpu()
    return 1000 * (time.perf_counter() - start), result


def _wait_for_gpu():
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def median_seconds(work: Callable[[], object], repeats: int) -> float:
    """Run *work* once, and then *repeats* times that count."""
    work()
    return statistics.median(milliseconds(work)[0] for _ in range(repeats)) / 1000


def resampled(count: int) -> np.ndarray:
    """Return indices of bootstrap samples of *count* measurements, the same each time. *Shape:* (RESAMPLES, count)."""
    return np.random.default_rng(1).integers(count, size=(RESAMPLES, count))


def interval(values: np.ndarray) -> list[float]:
    """Return the ends of the middle 95 % of what bootstrap samples gave."""
    return [float(end) for end in np.percentile(values, [2.5, 97.5])]


def in_new_process(work: Callable[..., _Result], *args) -> _Result:
    """Run *work* in a process that has done nothing else, with this one's number of threads."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_with_threads, torch.get_num_threads(), work, *args).result()


def _with_threads(threads: int, work: Callable[..., Any], *args):
    torch.set_num_threads(threads)
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
