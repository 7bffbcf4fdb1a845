"""A server under load: throughput and latency with and without batching, and whether everyone gets their own answer.

Clients are coroutines of one process on the same machine; each sends its next request when its last one is answered.
"""

import asyncio
import contextlib
import http.client
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mist_fairseq.files.output import markdown_table

ARMS = {
    "batches": [],
    "batches, waiting 5 ms": ["--max-wait", "5"],
    "one by one": ["--max-batch", "1"],
}

_WARM_UP = 1.0  # seconds of load that do not count
_PATIENCE = 60.0  # seconds without an answer, after which a request counts as lost


@dataclass
class Load:
    """What clients saw.

    Attributes:
        seconds: from the first request to the last answer.
        latencies: of each right answer, seconds.
        lost: requests without an answer of status 200.
        swapped: answers with another request's id or the right answer to another text.
        different: other answers than the text alone had.
        examples: of what went wrong, a few.
    """

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    lost: int = 0
    swapped: int = 0
    different: int = 0
    examples: list[str] = field(default_factory=list)


@contextlib.contextmanager
def started(command: list[str]) -> Iterator[int]:
    """Starts a server; gives its port on 127.0.0.1, and ends it.

    Raises:
        ValueError: it did not start, or did not end well.
    """
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline() if process.stdout else ""
            found = re.fullmatch(r"listening on http://127\.0\.0\.1:(\d+)\n", line)
            if not found:
                raise ValueError(f"{' '.join(command)} did not say where it listens, but {line!r}")
            yield int(found[1])
        finally:
            process.terminate()
            status = process.wait(_PATIENCE)
    if status:
        raise ValueError(f"{' '.join(command)} ended with status {status}, expected 0")


def server_command(folder: str | Path, *options: str) -> list[str]:
    """Of a server for a model's folder, on a free port."""
    return [sys.executable, "-m", "mist_fairseq.serve", str(folder), "--port", "0", *options]


def answer_alone(port: int, texts: list[str | list[str]], options: dict) -> list[str]:
    """The answer to each text, asked for one after the other.

    Raises:
        ValueError: the server refuses one; says why.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_PATIENCE)
    found = []
    with contextlib.closing(connection):
        for text in texts:
            body = json.dumps({"text": text, **options})
            connection.request("POST", "/generate", body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            answer = json.loads(response.read())
            if response.status != 200:
                raise ValueError(f"the server answers {str(text)[:60]!r} with {response.status}: {answer['error']}")
            found.append(answer["outputs"][0][0]["text"])
    return found


def read_metrics(port: int) -> dict[str, float]:
    """The server's Prometheus samples, by name and labels."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_PATIENCE)
    with contextlib.closing(connection):
        connection.request("GET", "/metrics")
        lines = connection.getresponse().read().decode().splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}


# -- load -------------------------------------------------------------------------------------------------------


async def drive(port: int, texts: list, expected: list[str], options: dict, concurrency: int, seconds: float) -> Load:
    """Ask for as long as *seconds*, with so many requests on their way at any time, and check every answer.

    Args:
        port: on 127.0.0.1.
        texts: asked for in turn; each client begins elsewhere.
        expected: the right answers.
        options: of each request.
        concurrency: clients, each with a connection of its own.
        seconds: after which no new request is sent.

    Raises:
        OSError: the server takes no connections.
    """
    load, start = Load(), time.perf_counter()
    numbers = iter(range(sys.maxsize))
    every = set(expected)

    async def client(first: int):
        connection, i = None, first
        while time.perf_counter() - start < seconds:
            connection = connection or await asyncio.open_connection("127.0.0.1", port)
            i, number = (i + 1) % len(texts), next(numbers)
            body = json.dumps({"text": texts[i], "id": number, **options}).encode()
            sent = time.perf_counter()
            try:
                status, answer = await asyncio.wait_for(_ask(*connection, body), _PATIENCE)
            except (OSError, EOFError, ValueError, TimeoutError) as error:
                load.lost += 1
                load.examples.append(f"{texts[i]!r}: {error!r}")
                connection[1].close()
                connection = None
                continue
            latency = time.perf_counter() - sent
            if status != 200:
                load.lost += 1
            elif (found := answer["outputs"][0][0]["text"]) == expected[i] and answer["id"] == number:
                load.latencies.append(latency)
                continue
            elif answer["id"] != number or found in every:
                load.swapped += 1
            else:
                load.different += 1
            load.examples.append(f"{texts[i]!r}: {status} {answer}, expected {expected[i]!r}")
        if connection:
            connection[1].close()

    async with asyncio.TaskGroup() as group:
        for number in range(concurrency):
            group.create_task(client(number * len(texts) // concurrency))
    load.seconds = time.perf_counter() - start
    del load.examples[5:]
    return load


async def _ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> tuple[int, dict]:
    """Status and JSON of an answer."""
    writer.write(
        b"POST /generate HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
    )
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"(?i)^content-length: *(\d+)", head, flags=re.MULTILINE)
    if not length:
        raise ValueError(f"an answer without a length: {head[:200]!r}")
    return int(head.split(b" ", 2)[1]), json.loads(await reader.readexactly(int(length[1])))


# -- measurements -----------------------------------------------------------------------------------------------


def measure(
    commands: dict[str, list[str]], texts: list, options: dict, concurrencies: list[int], seconds: float
) -> list[dict]:
    """Servers side by side, in turn at each concurrency.

    Args:
        commands: that start the servers, by name. The first one's answers to texts alone are the right ones for all.
        texts: strings or pairs.
        options: of each request, such as ``{"decoding": "mist"}``.
        concurrencies: numbers of clients.
        seconds: of each measurement.

    Returns:
        For JSON: of each concurrency and server ``summary``, and their names.

    Raises:
        ValueError: a server does not start, or refuses a text.
    """
    runs = []
    with contextlib.ExitStack() as stack:
        ports = {name: stack.enter_context(started(command)) for name, command in commands.items()}
        expected = answer_alone(next(iter(ports.values())), texts, options)
        for concurrency in concurrencies:
            for name, port in ports.items():
                asyncio.run(drive(port, texts, expected, options, concurrency, min(_WARM_UP, seconds)))
                before = read_metrics(port)
                load = asyncio.run(drive(port, texts, expected, options, concurrency, seconds))
                runs.append({"server": name, "concurrency": concurrency, **summary(load, before, read_metrics(port))})
    return runs


def summary(load: Load, before: dict[str, float], after: dict[str, float]) -> dict:
    """For JSON.

    Args:
        load: what clients saw.
        before, after: the server's metrics; the difference is the load's.
    """
    batches, texts, busy = (
        after[name] - before[name]
        for name in ("mist_batch_texts_count", "mist_batch_texts_sum", "mist_model_seconds_sum")
    )
    found = {"requests": len(load.latencies), "seconds": load.seconds}
    found["throughput"] = len(load.latencies) / load.seconds
    if len(load.latencies) > 1:
        cuts = statistics.quantiles(load.latencies, n=100, method="inclusive")
        found |= {f"p{percent}_ms": 1000 * cuts[percent - 1] for percent in (50, 90, 99)}
    found |= {"mean_batch": texts / batches if batches else 0.0, "in_model": busy / load.seconds}
    return found | {"lost": load.lost, "swapped": load.swapped, "different": load.different, "examples": load.examples}


def machine() -> dict:
    """For JSON."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = "unknown processor"
    return {"device": name, "cpus": os.cpu_count()}


def markdown(result: dict) -> str:
    """The table of a result of ``scripts/benchmark_serving.py``."""
    heads = ["clients", "server", "requests/s", "p50 ms", "p90 ms", "p99 ms", "mean batch", "in the model", "lost"]
    lines = [
        [
            str(run["concurrency"]),
            run["server"],
            f"{run['throughput']:.1f}",
            *(f"{run[name]:.1f}" if name in run else "" for name in ("p50_ms", "p90_ms", "p99_ms")),
            f"{run['mean_batch']:.1f}",
            f"{run['in_model']:.0%}",
            f"{run['lost']} / {run['swapped']} / {run['different']}",
        ]
        for run in result["runs"]
    ]
    options = ", ".join(f"{name} {value}" for name, value in result["options"].items())
    note = (
        f"{result['model']}, {result['texts']} texts, {options or 'single-pass'}; {result['device']}, {result['cpus']} "
        f"cores, which the clients share; {result['seconds']:g} seconds each"
        + (f"; server: {' '.join(result['server_options'])}" if result["server_options"] else "")
        + ". Lost: requests without an answer / answered with another's text / with another text than alone."
    )
    return f"{markdown_table([*heads[:-1], 'lost / swapped / different'], lines)}\n\n{note}\n"
