"""A file of rows through ``mist generate``: rows a second and what a million cost, by engine, precision and workers."""

import json
import statistics
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mist_fairseq.bulk.job import Job, run
from mist_fairseq.bulk.workers import Model
from mist_fairseq.experiments.benchmark.workers import Workers
from mist_fairseq.files.markdown import markdown_table
from mist_fairseq.generate.decoding import Decoding

_FIELD = "query"


@dataclass(frozen=True)
class Setup:
    """What is measured."""

    folder: str  #: a model
    precision: str
    accelerate: str
    workers: Workers


def arrangements(workers: Iterable[int]) -> list[Workers]:
    """So many processes of one thread, and one of as many threads."""
    every = [[Workers(number, 1), Workers(1, number)] for number in sorted(set(workers))]
    return list(dict.fromkeys(each for pair in every for each in pair))


def measure(
    setups: list[Setup], texts: list[str], rows: int, rounds: int, batch_size: int, decoding: Decoding
) -> list[dict]:
    """Run each setup over a file of so many *rows*, in turn, *rounds* times over.

    *texts* are the rows, over and over again. Gives for each setup, of each round and as their median, ``rates``, rows
    a second from the first chunk that is written on, and ``starts``, seconds until then; or ``skipped``, the reason why
    the model cannot be run so.
    """
    runs: list[dict[str, Any]] = [
        {
            "model": Path(each.folder).name,
            "precision": each.precision,
            "accelerate": each.accelerate,
            "workers": str(each.workers),
        }
        for each in setups
    ]
    with TemporaryDirectory() as scratch:
        source = Path(scratch) / "in.jsonl"
        source.write_text("".join(f"{json.dumps({_FIELD: text})}\n" for text in islice(cycle(texts), rows)))
        for _ in range(rounds):
            for setup, result in zip(setups, runs):
                if "skipped" in result:
                    continue
                options = {"precision": setup.precision, "accelerate": setup.accelerate}
                model = Model(setup.folder, options | {"threads": setup.workers.threads}, decoding, batch_size)
                job = Job(model, str(source), f"{scratch}/out.jsonl", fields=(_FIELD,), overwrite=True)
                try:
                    start, rate = _timed(replace(job, workers=setup.workers.processes))
                except ValueError as error:
                    result["skipped"] = str(error)
                    continue
                result.setdefault("starts", []).append(start)
                result.setdefault("rates", []).append(rate)
    for result in runs:
        if "rates" in result:
            result |= {name[:-1]: statistics.median(result[name]) for name in ("starts", "rates")}
    return runs


def _timed(job: Job) -> tuple[float, float]:
    """Seconds until the first chunk was written, and rows a second from then on."""
    begun, times = time.perf_counter(), []
    run(job, lambda _, __, rows: times.append((time.perf_counter(), rows)))
    if len(times) < 2:
        raise ValueError(f"{sum(rows for _, rows in times)} rows are a single chunk: give more --rows")
    (first, _), (last, _) = times[0], times[-1]
    return first - begun, sum(rows for _, rows in times[1:]) / (last - first)


def markdown(result: dict) -> str:
    """Return the table of a result of ``scripts/benchmark_bulk.py``."""
    heads = ["model", "precision", "engine", "processes x threads", "rows/s", "over the first", "start, s"]
    heads += ["a million rows, minutes"] + (["their cost"] if result["price_per_hour"] else [])
    note = (
        f"{result['rows']:,} rows of {result['texts']:,} texts, {result['decoding']}, batches of "
        f"{result['batch_size']}; {result['device']}, {result['cpus']} cores. Medians of {result['rounds']} turns, and "
        "the range."
    )
    if result["price_per_hour"]:
        note += f" Costs at {result['price_per_hour']:g} an hour for the machine."
    return f"{markdown_table(heads, _rows(result))}\n\n{note}\n"


def _rows(result: dict) -> Iterator[list[str]]:
    first: dict[tuple, float] = {}
    for one in result["runs"]:
        kind = (one["model"], one["precision"], one["accelerate"])
        if "skipped" in one:
            yield [*kind, one["workers"], one["skipped"], *[""] * (4 if result["price_per_hour"] else 3)]
            continue
        rate, hours = one["rate"], 1e6 / one["rate"] / 3600
        base = first.setdefault(kind, rate)
        shown = f"{rate:,.0f} ({min(one['rates']):,.0f} - {max(one['rates']):,.0f})"
        cells = [*kind, one["workers"], shown, f"{rate / base:.2f}", f"{one['start']:.1f}", f"{60 * hours:,.1f}"]
        yield cells + ([f"{result['price_per_hour'] * hours:.3f}"] if result["price_per_hour"] else [])
