"""The server's benchmark: it measures a real server, and notices answers that are lost, swapped or different."""

import asyncio
import contextlib
import json
import sys
import threading

import pytest

from mist_fairseq.experiments.benchmark import serving as benchmark
from mist_fairseq.experiments.benchmark.serving import ARMS, Load, answer_alone, drive, measure, started
from tests.experiments.preparation import run_script
from tests.serve.helpers import COMMAND, DEADLINE, FakeGenerator, eventually, serving

TEXTS = ["how can you learn", "what is it", "who do you", "the best way to learn it fast"]
OPTIONS = {"decoding": "mist", "iterations": 2}
RIGHT = FakeGenerator().generate(TEXTS, **OPTIONS)


def load(port: int, expected=RIGHT, concurrency=8, seconds=0.3) -> Load:
    return drive(port, TEXTS, expected, OPTIONS, concurrency, seconds)


def test_a_server_that_is_right():
    with serving(FakeGenerator()) as running:
        assert answer_alone(running.port, TEXTS, OPTIONS) == RIGHT
        actual = load(running.port)
    assert len(actual.latencies) >= 8 and 0.3 <= actual.seconds < DEADLINE
    assert max(actual.latencies) <= actual.seconds and min(actual.latencies) > 0
    assert (actual.lost, actual.swapped, actual.different, actual.examples) == (0, 0, 0, [])


def test_as_many_requests_as_clients_are_on_their_way():
    generator, actual = FakeGenerator(), []
    generator.gate.clear()
    with serving(generator) as running:
        thread = threading.Thread(target=lambda: actual.append(load(running.port)))
        thread.start()
        eventually(lambda: len(running.batcher) + running.batcher.running == 8)
        generator.gate.set()
        thread.join(DEADLINE)
    assert len(actual[0].latencies) >= 8 and not actual[0].lost


@pytest.mark.parametrize("expected, kind", [([RIGHT[1], RIGHT[0]], "swapped"), (["other", RIGHT[1]], "different")])
def test_an_answer_to_another_text_or_another_than_alone_is_noticed(expected, kind):
    with serving(FakeGenerator()) as running:
        # Each text is asked by five clients.
        actual = load(running.port, [*expected, *RIGHT[2:]], concurrency=5 * len(TEXTS), seconds=1.0)
    assert getattr(actual, kind) == actual.lost + actual.swapped + actual.different > 0 and actual.latencies
    assert len(actual.examples) == 5 and "expected" in actual.examples[0]


def test_a_refused_request_is_lost():
    with serving(FakeGenerator(), max_iterations=1) as running:
        with pytest.raises(ValueError, match="'how can you learn' with 422: iterations is 2"):
            answer_alone(running.port, TEXTS, OPTIONS)
        actual = load(running.port)
    assert actual.lost > 0 and not actual.latencies


@contextlib.contextmanager
def answering(content: bytes):
    """A server that sends this, whatever it is asked, and hangs up; gives its port."""

    async def answer(reader, writer):
        with contextlib.suppress(OSError, EOFError):
            await reader.readuntil(b"}")
            writer.write(content)
        writer.close()

    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_server(answer, "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    yield server.sockets[0].getsockname()[1]
    loop.call_soon_threadsafe(loop.stop)
    thread.join(DEADLINE)


@pytest.mark.parametrize(
    "content",
    [b"", b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{", b"\r\n\r\n"],
    ids=["nothing", "no length", "half a body", "no head"],
)
def test_a_broken_answer_is_lost(content):
    with answering(content) as port:
        actual = load(port, concurrency=2)
    assert actual.lost >= 2 and not actual.latencies and actual.examples


def test_the_right_text_under_another_id_is_swapped():
    body = json.dumps({"id": -1, "outputs": [[{"text": RIGHT[0]}]]}).encode()
    with answering(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)) as port:
        actual = load(port, [RIGHT[0]] * 4, concurrency=1)
    assert actual.swapped > 0 and not actual.latencies


# -- the whole --------------------------------------------------------------------------------------------------


def test_servers_side_by_side():
    commands = {name: [*COMMAND, "--slow", *arm] for name, arm in ARMS.items()}
    runs = measure(commands, TEXTS, OPTIONS, [1, 12], 0.4)
    assert [(run["concurrency"], run["server"]) for run in runs] == [(n, arm) for n in (1, 12) for arm in ARMS]
    for run in runs:
        assert run["lost"] == run["swapped"] == run["different"] == 0 and run["requests"] > 0
        assert run["p50_ms"] <= run["p90_ms"] <= run["p99_ms"]
        assert run["throughput"] == run["requests"] / run["seconds"] and 0 < run["in_model"] < 1
    *together, alone = runs[3:]
    assert all(run["mean_batch"] > 1.5 for run in together)
    assert all(run["mean_batch"] == 1 for run in [*runs[:3], alone])


def test_a_server_that_does_not_start_or_end_well():
    program = "import time; print('listening on http://127.0.0.1:1', flush=True); time.sleep(1000)"
    for command, message in [
        ([*COMMAND, "--max-batch", "0"], "did not say where it listens"),
        ([sys.executable, "-c", program], "ended with status -15, expected 0"),
    ]:
        with pytest.raises(ValueError, match=message), started(command):
            pass


def test_summary_and_table():
    before = {"mist_batch_texts_count": 5.0, "mist_batch_texts_sum": 9.0, "mist_model_seconds_sum": 1.0}
    after = {"mist_batch_texts_count": 15.0, "mist_batch_texts_sum": 49.0, "mist_model_seconds_sum": 2.0}
    actual = benchmark.summary(Load(4.0, [i / 1000 for i in range(1, 102)], lost=1), before, after)
    expected = {"requests": 101, "throughput": 25.25, "mean_batch": 4.0, "in_model": 0.25, "lost": 1}
    assert {name: actual[name] for name in expected} == expected
    assert [actual[f"p{percent}_ms"] for percent in (50, 90, 99)] == pytest.approx([51, 91, 100])
    empty = benchmark.summary(Load(1.0), before, before)  # nobody was answered
    runs = [{"server": "batches", "concurrency": 8, **actual}, {"server": "batches", "concurrency": 9, **empty}]
    given = dict(model="released", texts=4, options=OPTIONS, server_options=["--threads", "1"], seconds=4.0)
    table = benchmark.markdown(benchmark.machine() | given | {"runs": runs})
    assert "| 8 | batches | 25.2 | 51.0 | 91.0 | 100.0 | 4.0 | 25% | 1 / 0 / 0 |" in table
    assert "| 9 | batches | 0.0 |  |  |  | 0.0 | 0% | 0 / 0 / 0 |" in table
    assert "released, 4 texts, decoding mist, iterations 2" in table and "server: --threads 1" in table


def test_the_script_refuses_a_file_without_texts(tmp_path, monkeypatch):
    (tmp_path / "empty.txt").write_text("\n \n")
    given = [tmp_path, "--texts", tmp_path / "empty.txt", "--out", tmp_path / "result.json"]
    assert run_script(monkeypatch, "benchmark_serving.py", *given) == f"error: {tmp_path / 'empty.txt'} has no text"
    assert not (tmp_path / "result.json").exists()
