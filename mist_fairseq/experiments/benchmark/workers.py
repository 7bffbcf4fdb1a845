"""Many texts on one machine: several processes of few threads beside one of many."""

import multiprocessing
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import cycle, islice
from threading import Barrier
from typing import Any

from mist_fairseq import OnnxGenerator
from mist_fairseq.files.markdown import markdown_table

_PATIENCE = 300.0  # seconds that a worker waits for the others to load

# Of a worker's process.
_generator: OnnxGenerator
_together: Barrier


@dataclass(frozen=True)
class Workers:
    """So many *processes*, each with a model of so many *threads*."""

    processes: int
    threads: int

    def __post_init__(self):
        if min(self.processes, self.threads) < 1:
            raise ValueError(f"{self} has no thread: both numbers start at 1")

    def __str__(self):
        return f"{self.processes}x{self.threads}"


def measure(
    folder: str,
    arrangements: list[Workers],
    texts: list[str],
    batch_sizes: list[int],
    seconds: float,
    rounds: int,
    **options: Any,
) -> list[dict]:
    """Let each arrangement generate for so many *seconds*, in turn, *rounds* times over.

    Args:
        folder: what ``scripts/export.py --to onnx`` wrote.
        arrangements: of workers; all are loaded at the start and wait for their turns.
        texts: dealt out to the workers, and over again.
        batch_sizes: texts that a worker generates at once.
        seconds: of each measurement.
        rounds: of which the median counts.
        options: of ``OnnxGenerator.from_pretrained``.

    Returns:
        By batch size and arrangement: texts a second in all, of each round and their median.
    """
    spawn, runs = multiprocessing.get_context("spawn"), []
    with ExitStack() as stack:
        pools = {}
        for each in arrangements:
            given = (spawn.Barrier(each.processes), folder, options | {"threads": each.threads})
            pools[each] = stack.enter_context(ProcessPoolExecutor(each.processes, spawn, _load, given))
            list(pools[each].map(_generate, *zip(*_shares(each, texts, batch_sizes[0], 0))))
        for batch_size in batch_sizes:
            rates: dict[Workers, list[float]] = {each: [] for each in arrangements}
            for _ in range(rounds):
                for each, pool in pools.items():
                    shares = _shares(each, texts, batch_size, seconds)
                    rates[each].append(sum(pool.map(_generate, *zip(*shares))))
            runs += [
                {"workers": str(each), "batch_size": batch_size, "rates": rate, "rate": statistics.median(rate)}
                for each, rate in rates.items()
            ]
    return runs


def _shares(workers: Workers, texts: list[str], batch_size: int, seconds: float) -> list[tuple]:
    return [(texts[i :: workers.processes] or texts, batch_size, seconds) for i in range(workers.processes)]


def _load(together: Barrier, folder: str, options: dict):
    global _generator, _together
    _generator, _together = OnnxGenerator.from_pretrained(folder, **options), together


def _generate(texts: list[str], batch_size: int, seconds: float) -> float:
    """Texts a second of this process, from the moment at which all workers are there."""
    batches, done = cycle(texts), 0
    _together.wait(_PATIENCE)  # each process holds one share, so all have one
    start = time.perf_counter()
    while not done or time.perf_counter() - start < seconds:
        done += len(_generator.generate(list(islice(batches, 8 * batch_size)), batch_size=batch_size))
    return done / (time.perf_counter() - start)


def markdown(result: dict) -> str:
    """Return the table of a result of ``scripts/benchmark_workers.py``."""
    first: dict[int, float] = {}
    rows = []
    for run in result["runs"]:
        base = first.setdefault(run["batch_size"], run["rate"])
        spread = f"{min(run['rates']):.0f} - {max(run['rates']):.0f}"
        rows.append([run["batch_size"], run["workers"], f"{run['rate']:.0f} ({spread})", f"{run['rate'] / base:.2f}"])
    note = (
        f"{result['model']}, {result['precision']}, {result['accelerate']}; {result['texts']} texts; "
        f"{result['device']}, {result['cpus']} cores. Medians of {result['rounds']} turns of {result['seconds']:g} "
        "seconds, and the range."
    )
    heads = ["batch", "processes x threads", "texts/s", "over the first"]
    return f"{markdown_table(heads, [list(map(str, row)) for row in rows])}\n\n{note}\n"
