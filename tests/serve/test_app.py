"""Requests over a real socket: right ones, bad ones, many at once, and clients that leave."""

import asyncio
import contextlib
import gzip
import http.client
import json
import logging
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from mist_fairseq.serve.app import create_app
from mist_fairseq.serve.limits import Limits
from tests.serve.helpers import DEADLINE, WORDS, FakeGenerator, eventually, expected, serving


@pytest.fixture(scope="module")
def running():
    """For what does not look at batches."""
    with serving(FakeGenerator()) as running:
        yield running


@pytest.fixture
def generator():
    return FakeGenerator()


def distinct(number: int) -> list[str]:
    """Texts of which no two have the same answer."""
    count = len(WORDS)
    found = [f"{WORDS[i % count]} {WORDS[i // count % count]} it {'you ' * (i % 7)}{i}" for i in range(number)]
    found = [text.replace("guitar", "best") for text in found]
    assert len(set(found)) == number
    return found


# -- answers ----------------------------------------------------------------------------------------------------


def test_one_text(running):
    status, answer = running.post({"text": "how can you learn"})
    assert status == 200
    assert answer == {"id": None, "outputs": [[{"text": "learn you can how", "score": -0.25}]]}


def test_several_texts_and_pairs(running):
    texts = ["what is it", ["the best", "way to learn"], "who"]
    status, answer = running.post({"texts": texts, "id": "mine"})
    assert status == 200 and answer["id"] == "mine"
    assert [ranked[0]["text"] for ranked in answer["outputs"]] == FakeGenerator().generate(texts)
    assert running.post({"text": ["the best", "way"]})[1]["outputs"] == [[{"text": "way best the", "score": -0.25}]]


def test_details(running):
    status, answer = running.post({"text": "how can you", "decoding": "mist", "iterations": 2, "details": True})
    assert status == 200 and answer["outputs"][0][0] == {
        "text": "you can how",
        "score": -0.25,
        "tokens": ["you", "can", "how"],
        "token_scores": expected("how can you", return_scores=True).token_scores,
        "steps": 2,
        "history": ["how can you", "you can how"],
        "length_scores": {"3": 0.625, "4": 0.25, "5": 0.125},
        "cut": False,
    }


@pytest.mark.parametrize(
    "options", [{"nbest": 2}, {"nbest": 2, "length_beam": 3}, {"lengths": 2}, {"lengths": [2]}, {"decoding": "mist"}]
)
def test_options_mean_what_they_mean_in_python(running, options):
    status, answer = running.post({"texts": ["how can you learn"]}, **options)
    found = expected("how can you learn", **options)
    assert status == 200
    assert [each["text"] for each in answer["outputs"][0]] == (found if "nbest" in options else [found])


def test_a_text_longer_than_the_model_reads_is_cut_and_says_so(running):
    status, answer = running.post({"text": "how " * 500, "details": True})
    assert status == 200 and answer["outputs"][0][0]["cut"] and len(answer["outputs"][0][0]["tokens"]) == 38


def test_many_long_texts_are_read_beside_the_event_loop(running):
    texts = ["what is " * 900 + word for word in WORDS]
    status, answer = running.post({"texts": texts})
    assert status == 200 and [ranked[0]["text"] for ranked in answer["outputs"]] == FakeGenerator().generate(texts)


@pytest.mark.parametrize(
    "text",
    ["how\u0000 can\u0007 it", "\u4f60\u597d how", "\u0645\u0631\u062d\u0628\u0627", "\U0001f600 it", "[SEP] it"],
)
def test_unusual_characters(running, text):
    status, answer = running.post({"text": text})
    assert status == 200 and answer["outputs"][0][0]["text"] == expected(text) != ""


def test_two_requests_with_the_same_id_do_not_meet(generator):
    with serving(generator, max_batch=2, max_wait=10_000.0) as running, ThreadPoolExecutor(2) as threads:
        first = threads.submit(running.post, {"text": "what is it", "id": 7})
        eventually(lambda: len(running.batcher) == 1)
        second = running.post({"text": "who do you", "id": 7})
        assert second == (200, {"id": 7, "outputs": [[{"text": "you do who", "score": -0.25}]]})
        assert first.result(DEADLINE) == (200, {"id": 7, "outputs": [[{"text": "it is what", "score": -0.25}]]})
    assert [len(batch) for batch in generator.batches] == [2]


def test_half_characters(running):
    """Which JSON can write, but UTF-8 cannot."""
    status, answer = running.post(r'{"text": "how \ud800 it"}')
    assert status == 200 and answer["outputs"][0][0]["text"] == expected("how \ufffd it")


# -- bad requests -----------------------------------------------------------------------------------------------

LIMITS = dict(max_texts=3, max_characters=30, max_body=2000, max_iterations=4, max_nbest=2, max_length_beam=3)


@pytest.fixture(scope="module")
def strict():
    with serving(FakeGenerator(), **LIMITS) as running:
        yield running
        assert running.post({"text": "how is it"}) == (  # after all that
            200,
            {"id": None, "outputs": [[{"text": "it is how", "score": -0.25}]]},
        )


BAD = {
    "empty": ({"text": ""}, "text is empty, expected a text"),
    "whitespace": ({"texts": ["how", " \t\n "]}, "texts[1] is empty, expected a text"),
    "empty pair": ({"text": ["", " "]}, "text is empty, expected a text"),
    "no parts": ({"text": []}, "text is empty, expected a text"),
    "control characters": ({"text": "\u0000\u0001\u200b"}, "text has no characters that the model reads"),
    "control characters of several": ({"texts": ["it", "\u0000"]}, "texts[1] has no characters that the model reads"),
    "no texts": ({"texts": []}, "texts is empty, expected at least one text"),
    "neither": ({}, "expected either text, a single one, or texts, a list"),
    "both": ({"text": "how", "texts": ["how"]}, "expected either text, a single one, or texts, a list"),
    "number": ({"texts": ["how", 5]}, "texts[1]: 5 is no text: expected a string, or a list of strings such as a pair"),
    "null": ({"texts": [None]}, "texts[0]: None is no text"),
    "object": ({"text": {"a": 1}}, "text: {'a': 1} is no text"),
    "number in a pair": ({"text": ["how", 1]}, "text: ['how', 1] is no text"),
    "unknown key of half a character": (r'{"\ud800": 1}', r"given '\ud800'"),
    "id of half a character": (r'{"text": "how", "id": "\ud800"}', "id: 'utf-8' codec can't encode character"),
    "texts a string": ({"texts": "how"}, "texts: Input should be a valid list, given 'how'"),
    "list": ("[1, 2]", "Input should be"),
    "unknown key": ({"text": "how", "beam": 4}, "unknown key 'beam', expected some of text, texts, decoding"),
    "decoding": ({"text": "how", "decoding": "beam"}, "decoding is 'beam', expected one of single-pass, mist"),
    "iterations": ({"text": "how", "iterations": 2}, "iterations 2 needs decoding mist or mask-predict"),
    "iterations 0": ({"text": "how", "iterations": 0}, "iterations is 0, expected a whole number of at least 1"),
    "iterations a string": (
        {"text": "how", "iterations": "2"},
        "iterations: Input should be a valid integer, given '2'",
    ),
    "iterations true": ({"text": "how", "iterations": True}, "iterations: Input should be a valid integer, given True"),
    "nbest over length_beam": ({"text": "how", "nbest": 2, "length_beam": 1}, "nbest 2 needs a length_beam"),
    "lengths": ({"texts": ["how", "it"], "lengths": [1]}, "1 lengths for 2 texts"),
    "length": ({"text": "how", "lengths": 99}, "length is 99, expected a whole number from 1 to 39"),
    "min_length": ({"text": "how", "min_length": 40}, "min_length 40 is too long: the model makes at most 39"),
    "id": ({"text": "how", "id": "x" * 201}, f"id: '{'x' * 56}... is no id: expected a string of at most 200"),
    "id true": ({"text": "how", "id": True}, "id: True is no id: expected a string of at most 200 characters, or a wh"),
    "id a list": ({"text": "how", "id": [1]}, "id: [1] is no id"),
    "length of one text": ({"text": "how", "lengths": 0}, "text: length is 0, expected a whole number from 1 to 39"),
    "length of a list": ({"texts": ["how"], "lengths": [0]}, "texts[0]: length is 0, expected a whole number from 1"),
    "long nbest": ({"text": "how", "nbest": 10**1500}, f"nbest is 1{'0' * 56}...: at most 2 (--max-nbest)"),
    "long negative nbest": ({"text": "how", "nbest": -(10**1500)}, "0, expected a whole number of at least 1"),
    "long decoding": ({"text": "how", "decoding": "x " * 900}, "x ', expected one of single-pass, mist, mask-predict"),
    "long text": ({"texts": ["it", "i" * 31]}, "characters of texts[1] is 31: at most 30 (--max-characters)"),
    "long pair": ({"text": ["i" * 20, "t" * 20]}, "characters of text is 40: at most 30 (--max-characters)"),
    "many texts": ({"texts": ["how"] * 4}, "number of texts is 4: at most 3 (--max-texts)"),
    "many iterations": ({"text": "how", "decoding": "mist", "iterations": 5}, "at most 4 (--max-iterations)"),
    "many answers": ({"text": "how", "nbest": 3}, "nbest is 3: at most 2 (--max-nbest)"),
    "wide beam": ({"text": "how", "length_beam": 4}, "length_beam is 4: at most 3 (--max-length-beam)"),
}


@pytest.mark.parametrize("name", BAD)
def test_wrong_values(strict, name):
    body, message = BAD[name]
    status, answer = strict.post(body)
    assert status == 422 and list(answer) == ["error"] and message in answer["error"]
    assert len(answer["error"]) < 400
    assert "; " not in answer["error"]  # once is enough


@pytest.mark.parametrize(
    "body, message",
    [
        ("", "the body is empty"),
        ("{", "the body is not JSON: Expecting property name"),
        ('{"text": "how"', "the body is not JSON: Expecting ',' delimiter at character 14"),
        (b'{"text": "\xe9t\xe9"}', "the body is not JSON in UTF-8: 'utf-8' codec can't decode byte 0xe9 in"),
        (gzip.compress(b"{}", mtime=0), "the body is not JSON in UTF-8: 'utf-8' codec can't decode byte 0x8b"),
        ("[" * 1900, "the body is not JSON"),
    ],
)
def test_a_body_that_is_not_json(strict, body, message):
    status, answer = strict.post(body)
    assert status == 400 and message in answer["error"]


def test_a_very_long_number_is_no_json(running):
    status, answer = running.post('{"text": "how", "id": ' + "1" * 10_000 + "}")
    assert status == 400 and answer["error"].startswith("the body is not JSON in UTF-8: Exceeds the limit (")
    assert "sys." not in answer["error"]


def test_deep_nesting_is_no_json(running):
    status, answer = running.post("[" * 100_000)
    assert status == 400 and answer["error"].startswith("the body is not JSON in UTF-8: maximum recursion depth")


def test_ten_thousand_words(running):
    status, answer = running.post({"text": "how can " * 5000})
    assert status == 422 and "40000: at most 10000 (--max-characters)" in answer["error"]


def test_unknown_paths_and_methods(running):
    for method, path, status in (("GET", "/nothing", 404), ("GET", "/generate", 405), ("DELETE", "/health", 405)):
        found, _, body = running.ask(method, path)
        assert found == status and list(json.loads(body)) == ["error"]
    assert running.ask("GET", "/docs")[0] == 404  # which would load scripts from elsewhere


def test_a_post_to_another_path_is_not_blamed_on_its_body(running):
    for path, status in (("/nothing", 404), ("/health", 405)):
        assert running.ask("POST", path, "x", content_type="text/plain")[0] == status


def test_no_redirect_to_a_host_of_the_clients_choice(running):
    for method, path in (("GET", "/generate/"), ("POST", "/generate/"), ("GET", "/health/")):
        status, headers, _ = running.ask(method, path, host="elsewhere.example")
        assert status == 404 and "location" not in headers


def test_head_is_get_without_a_body(running):
    for path in ("/", "/health", "/metrics"):
        status, headers, body = running.ask("HEAD", path)
        assert status == 200 and body == b"" and headers["Content-Type"] == running.ask("GET", path)[1]["Content-Type"]
    assert running.ask("HEAD", "/generate")[0] == 405


def test_other_content_types_are_refused(running):
    """A form on another site can send these without asking the browser's permission; JSON it cannot."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", "application/jsonp"):
        status, _, body = running.ask("POST", "/generate", '{"text": "how"}', content_type=kind)
        assert status == 415 and f"'{kind}', expected application/json" in json.loads(body)["error"]
    status, _, _ = running.ask("POST", "/generate", '{"text": "how"}', content_type="Application/JSON; charset=utf-8")
    assert status == 200


def test_a_body_that_is_too_long(strict):
    status, answer = strict.post({"text": "i" * 3000})
    assert status == 413 and answer == {"error": "the body is longer than 2000 bytes (--max-body)"}


def test_a_body_that_is_too_long_in_pieces(strict):
    """Without a Content-Length; a client that sends on until it is done gets its answer."""
    connection = http.client.HTTPConnection("127.0.0.1", strict.port, timeout=DEADLINE)
    with contextlib.closing(connection):
        pieces = (b" " * 100_000 for _ in range(50))
        connection.request("POST", "/generate", pieces, {"Content-Type": "application/json"}, encode_chunked=True)
        response = connection.getresponse()
        assert response.status == 413 and "--max-body" in json.loads(response.read())["error"]


def raw(port: int, *parts: bytes) -> socket.socket:
    """A connection to which these bytes were sent."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=DEADLINE)
    for part in parts:
        connection.sendall(part)
    return connection


def head(length: int) -> bytes:
    return (
        b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % length
    )


def test_a_body_that_does_not_come():
    with serving(FakeGenerator(), max_seconds=1) as running, raw(running.port, head(100), b'{"text"') as connection:
        answer = connection.makefile("rb").read()
        assert answer.startswith(b"HTTP/1.1 408") and b"(--max-seconds)" in answer


# -- failures ---------------------------------------------------------------------------------------------------


def test_a_text_at_which_the_model_fails_harms_no_other(generator):
    with serving(generator, max_batch=16) as running, ThreadPoolExecutor(9) as threads:
        generator.gate.clear()
        first = threads.submit(running.post, {"text": "first"})
        eventually(lambda: generator.entered == 1)
        texts = [*distinct(4), "the guitar", *distinct(7)[4:]]
        asked = [threads.submit(running.post, {"text": text}) for text in texts]
        eventually(lambda: len(running.batcher) == 8)
        generator.gate.set()
        answers = [each.result(DEADLINE) for each in asked]
        assert first.result(DEADLINE)[0] == 200
    assert [status for status, _ in answers] == [200] * 4 + [500] + [200] * 3
    assert answers[4][1] == {"error": "the model failed; the server's log says how"}
    for text, (status, answer) in zip(texts, answers):
        if status == 200:
            assert answer["outputs"][0][0]["text"] == expected(text)
    assert [len(batch) for batch in generator.batches] == [1, 8, *[1] * 8]


def test_an_error_of_the_server_itself_is_an_answer_too(generator):
    generator.encode = lambda *_: 1 / 0
    with serving(generator) as running:
        status, answer = running.post({"text": "how"})
        assert status == 500 and answer == {"error": "an error inside the server; its log says which"}
        assert running.metrics()['mist_requests_total{path="/generate",status="500"}'] == 1


def test_a_full_queue_says_when_to_come_back(generator):
    with serving(generator, max_queue=3, max_texts=3) as running, ThreadPoolExecutor(2) as threads:
        generator.gate.clear()
        first = threads.submit(running.post, {"text": "how"})
        eventually(lambda: generator.entered == 1)
        second = threads.submit(running.post, {"texts": ["what", "is", "it"]})
        eventually(lambda: len(running.batcher) == 3)
        status, headers, body = running.ask("POST", "/generate", '{"text": "who"}', content_type="application/json")
        assert status == 503 and headers["Retry-After"] == "1" and "(--max-queue)" in json.loads(body)["error"]
        assert running.ask("GET", "/health")[0] == 200  # while the model is busy
        generator.gate.set()
        assert first.result(DEADLINE)[0] == second.result(DEADLINE)[0] == 200


def warnings(caplog) -> list[str]:
    return [record.message for record in caplog.records if record.levelno >= logging.WARNING]


# -- clients that leave -----------------------------------------------------------------------------------------


def test_texts_of_a_client_that_leaves_are_dropped(generator):
    with serving(generator) as running, ThreadPoolExecutor(2) as threads:
        generator.gate.clear()
        first = threads.submit(running.post, {"text": "how"})
        eventually(lambda: generator.entered == 1)
        body = json.dumps({"texts": ["why", "who"]}).encode()
        leaving = raw(running.port, head(len(body)), body)
        eventually(lambda: len(running.batcher) == 2)
        stays = threads.submit(running.post, {"text": "what is it"})
        eventually(lambda: len(running.batcher) == 3)
        leaving.close()
        eventually(lambda: len(running.batcher) == 1)
        generator.gate.set()
        assert first.result(DEADLINE)[1]["outputs"][0][0]["text"] == "how"
        assert stays.result(DEADLINE)[1]["outputs"][0][0]["text"] == "it is what"
        metrics = eventually(
            lambda: (found := running.metrics()).get('mist_requests_total{path="/generate",status="499"}') and found
        )
        assert metrics["mist_texts_total"] == 2
    assert [len(batch) for batch in generator.batches] == [1, 1]


def test_a_client_that_leaves_while_the_model_has_its_text(generator, caplog):
    with serving(generator) as running:
        generator.gate.clear()
        body = b'{"text": "how"}'
        leaving = raw(running.port, head(len(body)), body)
        eventually(lambda: generator.entered == 1)
        leaving.close()
        eventually(lambda: running.metrics().get('mist_requests_total{path="/generate",status="499"}'))
        generator.gate.set()
        assert running.post({"text": "what is it"})[1]["outputs"][0][0]["text"] == "it is what"
    assert not warnings(caplog)


def test_a_client_that_leaves_before_its_body_has_come(running, caplog):
    before = running.metrics().get('mist_requests_total{path="/generate",status="499"}', 0)
    raw(running.port, head(100), b'{"text"').close()
    eventually(lambda: running.metrics().get('mist_requests_total{path="/generate",status="499"}') == before + 1)
    assert not warnings(caplog)


# -- many at once -----------------------------------------------------------------------------------------------


def test_two_hundred_requests_at_once_get_their_own_answers(generator):
    texts = distinct(200)
    generator.gate.clear()

    async def ask(client, i):
        options = [{}, {"decoding": "mist"}, {"lengths": 3}][i % 3]
        response = await client.post("/generate", json={"text": texts[i], "id": i, **options})
        return response.status_code, response.json(), options

    async def ask_all(url):
        limits = httpx.Limits(max_connections=200)
        async with httpx.AsyncClient(base_url=url, timeout=DEADLINE, limits=limits, trust_env=False) as client:
            return await asyncio.gather(*(ask(client, i) for i in range(200)))

    with serving(generator, max_batch=16) as running:
        opener = threading.Thread(target=lambda: (eventually(lambda: len(running.batcher) > 150), generator.gate.set()))
        opener.start()
        answers = asyncio.run(ask_all(running.url))
        opener.join(DEADLINE)
        metrics = running.metrics()
    for i, (status, answer, options) in enumerate(answers):
        assert status == 200 and answer["id"] == i
        assert answer["outputs"][0][0]["text"] == expected(texts[i], **options)
    sizes = [len(batch) for batch in generator.batches]
    assert max(sizes) == 16 and sum(sizes) == 200 and len(sizes) < 30
    assert metrics["mist_batch_texts_sum"] == 200 and metrics["mist_batch_texts_count"] == len(sizes)


def test_requests_on_one_connection_one_after_the_other(running):
    connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=DEADLINE)
    with contextlib.closing(connection):
        for text in distinct(20):
            connection.request("POST", "/generate", json.dumps({"text": text}), {"Content-Type": "application/json"})
            assert json.loads(connection.getresponse().read())["outputs"][0][0]["text"] == expected(text)
        opened = connection.sock
        connection.request("GET", "/health")
        assert connection.getresponse().read() == b'{"status":"ok"}' and connection.sock is opened


# -- the rest ---------------------------------------------------------------------------------------------------


def test_metrics(generator):
    with serving(generator, max_batch=2, max_wait=0) as running:
        running.post({"texts": ["how", "what", "is"]})
        running.post({"text": ""})
        running.ask("GET", "/secret/../1234")
        metrics = running.metrics()
        kind = running.ask("GET", "/metrics")[1]["Content-Type"]
    assert kind.startswith("text/plain") and metrics["mist_queue_texts"] == 0 and metrics["mist_texts_total"] == 3
    assert metrics['mist_requests_total{path="/generate",status="200"}'] == 1
    assert metrics['mist_requests_total{path="/generate",status="422"}'] == 1
    assert metrics['mist_requests_total{path="other",status="404"}'] == 1
    assert metrics['mist_request_seconds_count{path="/generate"}'] == 2
    assert metrics["mist_batch_texts_sum"] == 3 and metrics['mist_batch_texts_bucket{le="2.0"}'] == 2
    assert metrics["mist_model_seconds_count"] == 2 and metrics["mist_model_seconds_sum"] > 0


def test_two_applications_share_no_metrics():
    with serving(FakeGenerator()) as one, serving(FakeGenerator()) as other:
        one.post({"text": "how"})
        assert one.metrics()["mist_texts_total"] == 1 and other.metrics()["mist_texts_total"] == 0


def test_openapi_describes_requests_and_answers(running):
    description = json.loads(running.ask("GET", "/openapi.json")[2])
    schemas = description["components"]["schemas"]
    assert {"text", "texts", "decoding", "nbest", "details"} <= set(schemas["GenerateRequest"]["properties"])
    assert set(schemas["GenerateResponse"]["properties"]) == {"id", "outputs"}
    statuses = description["paths"]["/generate"]["post"]["responses"]
    assert {"200", "413", "415", "422", "503"} <= set(statuses)
    assert statuses["422"]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/Error"}


def test_browsers_are_told_to_trust_only_the_page(running):
    status, headers, body = running.ask("GET", "/")
    policy = headers["Content-Security-Policy"]
    assert status == 200 and b"http" not in body.replace(b"http-equiv", b"")  # nothing from elsewhere
    assert "default-src 'none'" in policy and "unsafe" not in policy and policy.count("'sha256-") == 2
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert "Access-Control-Allow-Origin" not in running.ask("GET", "/health", origin="http://example.com")[1]


def test_health_and_generate_while_shutting_down():
    """Over connections that are still open; new ones are not accepted."""
    app = create_app(FakeGenerator())

    async def ask():
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://x") as client,
        ):
            before = await client.get("/health")
            app.state.batcher.close()
            return before, await client.get("/health"), await client.post("/generate", json={"text": "how"})

    before, health, refused = asyncio.run(ask())
    assert before.status_code == 200 and before.json() == {"status": "ok"}
    for response in (health, refused):
        assert response.status_code == 503 and response.json() == {"error": "the server is shutting down"}
        assert response.headers["Retry-After"] == "1" and response.headers["Connection"] == "close"
    assert "Connection" not in before.headers


@pytest.mark.parametrize(
    "limits, message",
    [
        ({"max_batch": 0}, "--max-batch is 0, expected at least 1"),
        ({"max_wait": -1.0}, "--max-wait is -1.0, expected at least 0"),
        ({"max_wait": float("nan")}, "--max-wait is nan"),
        ({"max_texts": 9, "max_queue": 8}, "--max-texts 9 is more than --max-queue 8"),
    ],
)
def test_limits_that_cannot_work(limits, message):
    with pytest.raises(ValueError, match=message):
        Limits(**limits)
