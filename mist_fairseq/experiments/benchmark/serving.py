"""A server under load: throughput and latency with and without batching, and whether everyone gets their own answer."""

import contextlib
import http.client
import itertools
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from mist_fairseq.experiments.results import processor
from mist_fairseq.files.markdown import markdown_table

ARMS = {"batches": [], "batches, waiting 5 ms": ["--max-wait", "5"], "one by one": ["--max-batch", "1"]}
_WARM_UP = 1.0  # seconds of load that do not count
_PATIENCE = 60.0  # seconds without an answer, after which a request counts as lost


@dataclass
class Load:
    """What clients saw."""

    seconds: float = 0.0  # from the first request to the last answer
    latencies: list[float] = field(default_factory=list)  # of each right answer, seconds
    lost: int = 0  # requests without an answer of status 200
    swapped: int = 0  # answers with another request's id or the right answer to another text
    different: int = 0  # other answers than the text alone had
    examples: list[str] = field(default_factory=list)  # of what went wrong, a few


@contextlib.contextmanager
def started(command: list[str]) -> Iterator[int]:
    """Start a server, give its port on 127.0.0.1, and end it after the block; ValueError if one of both fails."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline() if process.stdout else ""
            match = re.fullmatch(r"listening on http://127\.0\.0\.1:(\d+)\n", line)
            if not match:
                raise ValueError(f"{' '.join(command)} did not say where it listens, but {line!r}")
            yield int(match[1])
        finally:
            process.terminate()
            status = process.wait(_PATIENCE)
    if status:
        raise ValueError(f"{' '.join(command)} ended with status {status}, expected 0")


def server_command(folder: str | Path, *options: str) -> list[str]:
    """Return what starts a server for a model's folder, on a free port."""
    return [sys.executable, "-m", "mist_fairseq.serve", str(folder), "--port", "0", *options]


def _connect(port: int) -> contextlib.closing[http.client.HTTPConnection]:
    return contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=_PATIENCE))


def _generate(connection: http.client.HTTPConnection, request: dict) -> tuple[int, Any]:
    """Return status and content of an answer."""
    connection.request("POST", "/generate", json.dumps(request), {"Content-Type": "application/json"})
    response = connection.getresponse()
    return response.status, json.loads(response.read())


def answer_alone(port: int, texts: list[str | list[str]], options: dict) -> list[str]:
    """Ask for the answer to each text, one after the other; a ValueError says why the server refuses one."""
    answers = []
    with _connect(port) as connection:
        for text in texts:
            status, answer = _generate(connection, {"text": text, **options})
            if status != 200:
                raise ValueError(f"the server answers {str(text)[:60]!r} with {status}: {answer['error']}")
            answers.append(answer["outputs"][0][0]["text"])
    return answers


def read_metrics(port: int) -> dict[str, float]:
    """Return the server's Prometheus samples, by name and labels."""
    with _connect(port) as connection:
        connection.request("GET", "/metrics")
        lines = connection.getresponse().read().decode().splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}


def drive(port: int, texts: list, expected: list[str], options: dict, concurrency: int, seconds: float) -> Load:
    """Ask a server on 127.0.0.1 for *texts* in turn, and check every answer against the *expected* ones.

    As many clients as *concurrency* says begin at different texts. Each has a connection and one request on its way,
    with these *options*, and sends none after so many *seconds*. OSError: the server takes no connections.
    """
    numbers, start, load = itertools.count(), time.perf_counter(), Load()
    wrong = list[str]()

    def client(first: int):
        i = first * len(texts) // concurrency
        with _connect(port) as connection:
            connection.connect()
            while time.perf_counter() - start < seconds:
                i, number = (i + 1) % len(texts), next(numbers)
                sent = time.perf_counter()
                try:
                    status, answer = _generate(connection, {"text": texts[i], "id": number, **options})
                except (OSError, http.client.HTTPException, ValueError) as error:
                    connection.close()  # the next request opens it again
                    status, answer = 0, {"error": repr(error)}
                latency = time.perf_counter() - sent
                output = answer["outputs"][0][0]["text"] if status == 200 else None
                if output == expected[i] and answer["id"] == number:
                    load.latencies.append(latency)
                    continue
                is_swapped = output is not None and (answer["id"] != number or output in expected)
                wrong.append("lost" if output is None else "swapped" if is_swapped else "different")
                if len(load.examples) < 5:
                    load.examples.append(f"{texts[i]!r}: {status} {answer}, expected {expected[i]!r}")

    with ThreadPoolExecutor(concurrency) as pool:
        list(pool.map(client, range(concurrency)))
    counts: dict = {kind: wrong.count(kind) for kind in ("lost", "swapped", "different")}
    return replace(load, seconds=time.perf_counter() - start, examples=load.examples[:5], **counts)


def measure(
    commands: dict[str, list[str]], texts: list, options: dict, concurrencies: list[int], seconds: float
) -> list[dict]:
    """Load servers side by side, in turn at each concurrency; ValueError if one does not start, or refuses a text.

    *commands* start them, by name. The first one's answers to *texts* (strings or pairs) alone are the right ones for
    all. *options* are those of each request, such as ``{"decoding": "mist"}``, *seconds* those of each measurement.
    """
    runs = []
    with contextlib.ExitStack() as stack:
        ports = {name: stack.enter_context(started(command)) for name, command in commands.items()}
        expected = answer_alone(next(iter(ports.values())), texts, options)
        for concurrency, (name, port) in itertools.product(concurrencies, ports.items()):
            drive(port, texts, expected, options, concurrency, min(_WARM_UP, seconds))
            before = read_metrics(port)
            load = drive(port, texts, expected, options, concurrency, seconds)
            runs.append({"server": name, "concurrency": concurrency, **summary(load, before, read_metrics(port))})
    return runs


def summary(load: Load, before: dict[str, float], after: dict[str, float]) -> dict:
    """Summarize a load for JSON; *before* and *after* are the server's metrics."""
    names = ("mist_batch_texts_count", "mist_batch_texts_sum", "mist_model_seconds_sum")
    batches, texts, busy = (after[name] - before[name] for name in names)
    content = {"requests": len(load.latencies), "seconds": load.seconds}
    content["throughput"] = len(load.latencies) / load.seconds
    if len(load.latencies) > 1:
        percentiles = np.percentile(load.latencies, [50, 90, 99])
        content |= {f"p{percent}_ms": 1000 * value for percent, value in zip((50, 90, 99), percentiles.tolist())}
    content |= {"mean_batch": texts / batches if batches else 0.0, "in_model": busy / load.seconds}
    return content | {key: value for key, value in asdict(load).items() if key != "latencies"}


def machine() -> dict:
    """Describe what servers and clients run on, for JSON."""
    return {"device": processor(), "cpus": os.cpu_count()}


def markdown(result: dict) -> str:
    """Return the table of a result of ``scripts/benchmark_serving.py``."""
    heads = ["clients", "server", "requests/s", "p50 ms", "p90 ms", "p99 ms", "mean batch", "in the model"]
    lines = []
    for run in result["runs"]:
        percentiles = [f"{run[name]:.1f}" if name in run else "" for name in ("p50_ms", "p90_ms", "p99_ms")]
        cells = [str(run["concurrency"]), run["server"], f"{run['throughput']:.1f}", *percentiles]
        wrong = f"{run['lost']} / {run['swapped']} / {run['different']}"
        lines.append([*cells, f"{run['mean_batch']:.1f}", f"{run['in_model']:.0%}", wrong])
    options = ", ".join(f"{name} {value}" for name, value in result["options"].items())
    note = (
        f"{result['model']}, {result['texts']} texts, {options or 'single-pass'}; {result['device']}, {result['cpus']} "
        f"cores, which the clients share; {result['seconds']:g} seconds each"
        + (f"; server: {' '.join(result['server_options'])}" if result["server_options"] else "")
        + ". Lost: requests without an answer / answered with another's text / with another text than alone."
    )
    return f"{markdown_table([*heads, 'lost / swapped / different'], lines)}\n\n{note}\n"
