"""The client against the real server, and what a generator in its place would answer."""

import asyncio
import http.server
import itertools
import math
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from mist_fairseq.generate.decoding import Decoding
from mist_fairseq.serve import client as client_module
from mist_fairseq.serve.client import Client, ServerError
from tests.serve.helpers import DEADLINE, ROOT, FakeGenerator, distinct, eventually, serving

TEXTS = ["how can you learn", ("the best", "way"), "who", "what is it"]


@pytest.fixture(scope="module")
def client():
    with serving(FakeGenerator(), keys=["key"], max_texts=4) as running:
        yield Client(running.url + "/", api_key="key", timeout=DEADLINE)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"return_scores": True},
        {"nbest": 2},
        {"nbest": 2, "return_scores": True, "decoding": "mist", "iterations": 2},
        {"lengths": 2},
        {"lengths": [1, None, 1, 2], "batch_size": 3},
        {"decoding": Decoding("mist", iterations=2, nbest=3)},
        {"keep_repeats": True, "max_length": 9, "batch_size": 1},
    ],
)
def test_answers_are_those_of_the_generator(client, options):
    assert client.generate(TEXTS, **options) == FakeGenerator().generate(TEXTS, **options)


def test_one_text_an_iterator_and_none(client):
    assert client.generate("how can") == "can how" and client.generate([]) == []
    assert client.generate("how can", nbest=2) == FakeGenerator().generate(["how can"], nbest=2)[0]
    endless = (f"how {number}" for number in itertools.count())
    answers = client.generate(endless, batch_size=2)
    assert list(itertools.islice(answers, 5)) == FakeGenerator().generate([f"how {i}" for i in range(5)])


def test_an_answer_that_is_left_out(monkeypatch):
    generator = FakeGenerator()
    monkeypatch.setattr(generator, "_answers", lambda *_: [])
    with serving(generator) as running:
        client = Client(running.url)
        assert client.generate(["how"]) == [""] and client.generate(["how"], nbest=2) == [[]]
        assert client.generate("how", return_scores=True).score == -math.inf


def test_in_an_event_loop(client):
    async def ask():
        return await asyncio.gather(*(client.agenerate(text) for text in ("how can", "what is it")))

    assert asyncio.run(ask()) == ["can how", "it is what"]
    assert asyncio.run(client.agenerate(iter(["how can"]))) == ["can how"]


def test_info_and_whether_it_is_ready(client):
    assert client.is_ready() and client.info()["limits"]["max_texts"] == 4
    assert not Client("http://127.0.0.1:1").is_ready()
    with serving(FakeGenerator()) as running:
        assert Client(running.url).is_ready()
        running.batcher.close()
        assert not Client(running.url).is_ready()


def test_errors_have_the_servers_message(client):
    with pytest.raises(ServerError, match=r"^texts\[1\] is empty, expected a text") as raised:
        client.generate(["how", " "])
    assert raised.value.status == 422
    with pytest.raises(ServerError, match="unknown key 'beam'"):
        client.generate(["how"], beam=4)
    with pytest.raises(ServerError, match="no valid API key") as raised:
        Client(client.url).generate(["how"])
    assert raised.value.status == 401
    with pytest.raises(ValueError, match="2 lengths for 1 texts"):
        client.generate(["how"], lengths=[1, 2])
    with pytest.raises(ValueError, match="url is 'localhost:8000', expected one like http://"):
        Client("localhost:8000")
    with pytest.raises(OSError, match="refused"):
        Client("http://127.0.0.1:1").generate(["how"])


def test_a_full_queue_is_waited_for(generator, monkeypatch):
    with serving(generator, max_queue=1, max_texts=1) as running, ThreadPoolExecutor(2) as threads:
        generator.gate.clear()
        first, second, third = distinct(3)
        asked = threads.submit(running.post, {"text": first})
        eventually(lambda: generator.entered == 1)
        queued = threads.submit(running.post, {"text": second})
        eventually(lambda: len(running.batcher) == 1)
        with pytest.raises(ServerError, match=r"1 texts wait already: .* \(--max-queue\)") as raised:
            Client(running.url, retries=0).generate([third])
        assert raised.value.status == 503
        waits = []
        monkeypatch.setattr(client_module.time, "sleep", lambda seconds: (waits.append(seconds), generator.gate.set()))
        assert Client(running.url, retries=1000).generate([third]) == FakeGenerator().generate([third])
        assert 1.0 in waits and asked.result(DEADLINE)[0] == queued.result(DEADLINE)[0] == 200


def test_how_long_a_proxy_may_make_it_wait(monkeypatch):
    """And an error of a proxy's own, which is not JSON."""
    given = ["7", "900", "Wed, 21 Oct 2026 07:28:00 GMT", "", "1"]

    class Proxy(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            self.send_response(503 if len(given) > 1 else 502)
            self.send_header("Retry-After", given.pop(0))
            self.end_headers()
            self.wfile.write(b"<html>")

        def log_message(self, *_):
            pass

    waits = []
    monkeypatch.setattr(client_module.time, "sleep", waits.append)
    with http.server.HTTPServer(("127.0.0.1", 0), Proxy) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        with pytest.raises(ServerError, match="^502 Bad Gateway$"):
            Client(f"http://127.0.0.1:{proxy.server_port}", retries=9).generate(["how"])
        proxy.shutdown()
    assert waits == [7, 60, 1, 1]


def test_it_needs_the_standard_library_alone():
    script = """
import sys
before = set(sys.modules)
from mist_fairseq.serve.client import Client
new = {name.partition(".")[0] for name in set(sys.modules) - before}
print(sorted(new - set(sys.stdlib_module_names)))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "['mist_fairseq']\n"
