"""Bodies that must not be taken, clients that leave, and what browsers are told."""

import contextlib
import gzip
import http.client
import json
import logging
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.serve.helpers import DEADLINE, FakeGenerator, answered, eventually, send_raw, serving

LEFT = 'mist_requests_total{path="/generate",status="499"}'


@pytest.mark.parametrize(
    "body, message",
    [
        ("", "the body is not JSON in UTF-8: Expecting value"),
        ("{", "the body is not JSON in UTF-8: Expecting property name"),
        ('{"text": "how"', "the body is not JSON in UTF-8: Expecting ',' delimiter: line 1 column 15"),
        (b'{"text": "\xe9t\xe9"}', "the body is not JSON in UTF-8: 'utf-8' codec can't decode byte 0xe9 in"),
        (gzip.compress(b"{}", mtime=0), "the body is not JSON in UTF-8: 'utf-8' codec can't decode byte 0x8b"),
        ('{"text": "how", "text": "it"}', "the body is not JSON in UTF-8: a key stands twice in an object"),
        ("[" * 100_000, "the body is not JSON in UTF-8: maximum recursion depth"),
        ('{"text": "how", "id": ' + "1" * 10_000 + "}", "the body is not JSON in UTF-8: Exceeds the limit ("),
    ],
    ids=["empty", "brace", "unfinished", "latin-1", "gzip", "twice", "deep", "long number"],
)
def test_a_body_that_is_not_json(running, body, message):
    status, answer = running.post(body)
    assert status == 400 and answer["error"].startswith(message) and "sys." not in answer["error"]


def test_other_content_types_are_refused(running):
    """A form on another site can send these without asking the browser's permission; JSON it cannot."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", "application/jsonp"):
        status, _, body = running.ask("POST", "/generate", '{"text": "how"}', content_type=kind)
        assert status == 415 and f"'{kind}', expected application/json" in json.loads(body)["error"]
    packed = {"content_type": "application/json", "content_encoding": "gzip"}
    status, _, body = running.ask("POST", "/generate", gzip.compress(b'{"text": "how"}'), **packed)
    assert status == 415 and "the body is compressed, 'gzip': send it as it is" in json.loads(body)["error"]
    status, _, _ = running.ask("POST", "/generate", '{"text": "how"}', content_type="Application/JSON; charset=utf-8")
    assert status == 200


def test_a_body_that_is_too_long():
    """In pieces there is no Content-Length, and a client that sends on until it is done gets its answer."""
    with serving(FakeGenerator(), max_body=2000) as running:
        refused = 413, {"error": "the body is longer than 2000 bytes (--max-body)"}
        assert running.post({"text": "i" * 3000}) == refused
        connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=DEADLINE)
        with contextlib.closing(connection):
            pieces = (b" " * 100_000 for _ in range(50))
            connection.request("POST", "/generate", pieces, {"Content-Type": "application/json"}, encode_chunked=True)
            response = connection.getresponse()
            assert (response.status, json.loads(response.read())) == refused


def test_a_body_that_does_not_come():
    with serving(FakeGenerator(), max_seconds=1) as running, send_raw(running.port, b'{"text"', 100) as connection:
        answer = connection.makefile("rb").read()
        assert answer.startswith(b"HTTP/1.1 408") and b"(--max-seconds)" in answer


# -- clients that leave -----------------------------------------------------------------------------------------


def warnings(caplog) -> list[str]:
    return [record.message for record in caplog.records if record.levelno >= logging.WARNING]


def test_texts_of_a_client_that_leaves_are_dropped(generator):
    with serving(generator) as running, ThreadPoolExecutor(2) as threads:
        generator.gate.clear()
        first = threads.submit(running.post, {"text": "how"})
        eventually(lambda: generator.entered == 1)
        leaving = send_raw(running.port, b'{"texts": ["why", "who"]}')
        eventually(lambda: len(running.batcher) == 2)
        stays = threads.submit(running.post, {"text": "what is it"})
        eventually(lambda: len(running.batcher) == 3)
        leaving.close()
        eventually(lambda: len(running.batcher) == 1)
        generator.gate.set()
        assert (first.result(DEADLINE), stays.result(DEADLINE)) == (answered("how"), answered("it is what"))
        eventually(lambda: running.metrics().get(LEFT))
        assert running.metrics()["mist_texts_total"] == 2
    assert [len(batch) for batch in generator.batches] == [1, 1]


def test_a_client_that_leaves_while_the_model_has_its_text(generator, caplog):
    with serving(generator) as running:
        generator.gate.clear()
        leaving = send_raw(running.port, b'{"text": "how"}')
        eventually(lambda: generator.entered == 1)
        leaving.close()
        eventually(lambda: running.metrics().get(LEFT))
        generator.gate.set()
        assert running.post({"text": "what is it"}) == answered("it is what")
    assert not warnings(caplog)


def test_a_client_that_leaves_before_its_body_has_come(running, caplog):
    before = running.metrics().get(LEFT, 0)
    send_raw(running.port, b'{"text"', 100).close()
    eventually(lambda: running.metrics().get(LEFT) == before + 1)
    assert not warnings(caplog)


# -- answers ----------------------------------------------------------------------------------------------------


def test_browsers_are_told_to_trust_only_the_page(running):
    status, headers, body = running.ask("GET", "/")
    policy = headers["Content-Security-Policy"]
    assert status == 200 and b"http" not in body.replace(b"http-equiv", b"")  # nothing from elsewhere
    assert "default-src 'none'" in policy and "unsafe" not in policy and policy.count("'sha256-") == 2
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert "Access-Control-Allow-Origin" not in running.ask("GET", "/health", origin="http://example.com")[1]


def test_an_answer_tells_what_it_took_in_the_server(running):
    _, headers, _ = running.ask("GET", "/health")
    name, _, duration = headers["Server-Timing"].partition(";dur=")
    assert name == "total" and 0 <= float(duration) < 60_000  # milliseconds
