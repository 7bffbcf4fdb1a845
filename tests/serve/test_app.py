"""Requests over a real socket: answers, errors, many at once, and the application's other paths."""

import asyncio
import contextlib
import http.client
import json
import re
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

import mist_fairseq
from mist_fairseq.generate.decoding import DECODINGS
from mist_fairseq.serve.app import create_app
from mist_fairseq.serve.info import Weights, describe
from mist_fairseq.serve.limits import Limits
from tests.serve.helpers import DEADLINE, WORDS, FakeGenerator, answered, distinct, eventually, expected, serving


def test_texts_and_pairs(running):
    assert running.post({"text": "how can you learn"}) == answered("learn you can how")
    texts = ["what is it", ["the best", "way to learn"], "who"]
    status, answer = running.post({"texts": texts, "id": "mine"})
    assert status == 200 and answer["id"] == "mine"
    assert [ranked[0]["text"] for ranked in answer["outputs"]] == [expected(text) for text in texts]
    assert running.post({"text": ["the best", "way"]}) == answered("way best the")


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
    right = expected("how can you learn", **options)
    assert status == 200
    assert [each["text"] for each in answer["outputs"][0]] == (right if "nbest" in options else [right])


def test_a_text_longer_than_the_model_reads_is_cut_and_says_so(running):
    status, answer = running.post({"text": "how " * 500, "details": True})
    assert status == 200 and answer["outputs"][0][0]["cut"] and len(answer["outputs"][0][0]["tokens"]) == 38
    assert running.post({"text": "how " * 500})[1]["outputs"][0][0]["cut"]


def test_many_long_texts_are_read_beside_the_event_loop(running):
    texts = ["what is " * 900 + word for word in WORDS]
    status, answer = running.post({"texts": texts})
    assert status == 200 and [ranked[0]["text"] for ranked in answer["outputs"]] == FakeGenerator().generate(texts)


def test_unusual_characters(running):
    texts = ["how\u0000 can\u0007 it", "\u4f60\u597d how", "\u0645\u0631\u062d\u0628\u0627", "\U0001f600 it"]
    texts += ["[SEP] it", "how \ud800 it"]  # the last has half a character, which JSON can write and UTF-8 cannot
    status, answer = running.post({"texts": texts})
    assert status == 200 and [ranked[0]["text"] for ranked in answer["outputs"]] == [expected(text) for text in texts]
    assert "" not in map(expected, texts)


# -- many at once -----------------------------------------------------------------------------------------------


def test_two_requests_with_the_same_id_do_not_meet(generator):
    with serving(generator, max_batch=2, max_wait=10_000.0) as running, ThreadPoolExecutor(2) as threads:
        first = threads.submit(running.post, {"text": "what is it", "id": 7})
        eventually(lambda: len(running.batcher) == 1)
        assert running.post({"text": "who do you", "id": 7}) == answered("you do who", id=7)
        assert first.result(DEADLINE) == answered("it is what", id=7)
    assert [len(batch) for batch in generator.batches] == [2]


def test_two_hundred_requests_at_once_get_their_own_answers(generator):
    texts, options = distinct(200), [{}, {"decoding": "mist"}, {"lengths": 3}]
    assert len(set(texts)) == 200
    generator.gate.clear()
    with serving(generator, max_batch=16) as running:
        connections = [http.client.HTTPConnection("127.0.0.1", running.port, timeout=DEADLINE) for _ in texts]
        for i, connection in enumerate(connections):
            body = json.dumps({"text": texts[i], "id": i, **options[i % 3]})
            connection.request("POST", "/generate", body, {"Content-Type": "application/json"})
        eventually(lambda: len(running.batcher) + running.batcher.running == 200)
        generator.gate.set()
        for i, connection in enumerate(connections):
            response = connection.getresponse()
            right = answered(expected(texts[i], **options[i % 3]), id=i)
            assert (response.status, json.loads(response.read())) == right
            connection.close()
        metrics = running.metrics()
    sizes = [len(batch) for batch in generator.batches]
    assert max(sizes) == 16 and sum(sizes) == 200 and len(sizes) < 30
    assert metrics["mist_batch_texts_sum"] == 200 and metrics["mist_batch_texts_count"] == len(sizes)


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


def test_metrics_tell_which_model_it_is_and_what_the_process_takes():
    info = describe(FakeGenerator(), Limits(), Weights(name='my "own"', hash="a" * 64, precision="int8"))
    with serving(FakeGenerator(), info=info) as running:
        metrics = running.metrics()
    (labels,) = [name for name in metrics if name.startswith("mist_model_info{")]
    expected = {"name": r"my \"own\"", "hash": "a" * 64, "precision": "int8", "version": mist_fairseq.__version__}
    assert expected.items() <= dict(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', labels)).items() and metrics[labels] == 1
    assert metrics["process_resident_memory_bytes"] > 1e6 and metrics["process_cpu_seconds_total"] > 0
    assert any(name.startswith("python_info{") for name in metrics)


def test_requests_on_one_connection_one_after_the_other(running):
    connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=DEADLINE)
    with contextlib.closing(connection):
        for text in distinct(5):
            connection.request("POST", "/generate", json.dumps({"text": text}), {"Content-Type": "application/json"})
            assert json.loads(connection.getresponse().read())["outputs"][0][0]["text"] == expected(text)
        opened = connection.sock
        connection.request("GET", "/health")
        assert connection.getresponse().read() == b'{"status":"ok"}' and connection.sock is opened


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
    right = [answered(expected(text)) for text in distinct(7)]
    assert answers == [*right[:4], (500, {"error": "the model failed; the server's log says how"}), *right[4:]]
    assert [len(batch) for batch in generator.batches] == [1, 8, *[1] * 8]


def test_an_error_of_the_server_itself_is_an_answer_too(generator):
    generator.encode = lambda *_: 1 / 0
    with serving(generator) as running:
        assert running.post({"text": "how"}) == (500, {"error": "an error inside the server; its log says which"})
        assert running.metrics()['mist_requests_total{path="/generate",status="500"}'] == 1


def test_a_full_queue_says_when_to_come_back(generator):
    with serving(generator, max_queue=3, max_texts=3) as running, ThreadPoolExecutor(2) as threads:
        generator.gate.clear()
        first = threads.submit(running.post, {"text": "how"})
        eventually(lambda: generator.entered == 1)
        second = threads.submit(running.post, {"texts": ["what", "is", "it"]})
        eventually(lambda: len(running.batcher) == 3)
        status, headers, body = running.ask("POST", "/generate", '{"text": "who"}', content_type="application/json")
        assert status == 503 and headers["Retry-After"] == "1"
        assert json.loads(body)["error"] == "3 texts wait already: 1 more are over the limit of 3 (--max-queue)"
        assert running.ask("GET", "/health")[0] == 200  # while the model is busy
        generator.gate.set()
        assert first.result(DEADLINE)[0] == second.result(DEADLINE)[0] == 200


def test_health_ready_and_generate_while_shutting_down():
    """Over connections that are still open; new ones are not accepted."""
    app = create_app(FakeGenerator())

    async def ask():
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://x") as client,
        ):
            before = await client.get("/ready")
            app.state.batcher.close()
            after = [await client.get(path) for path in ("/health", "/ready")]
            return before, *after, await client.post("/generate", json={"text": "how"})

    before, health, ready, refused = asyncio.run(ask())
    for response in (before, health):
        assert response.status_code == 200 and response.json() == {"status": "ok"}
    for response in (ready, refused):
        assert response.status_code == 503 and response.json() == {"error": "the server is shutting down"}
        assert response.headers["Retry-After"] == "1" and response.headers["Connection"] == "close"
    assert "Connection" not in before.headers


# -- other paths ------------------------------------------------------------------------------------------------


def test_unknown_paths_and_methods(running):
    """A POST is not blamed on its body, and nobody is redirected to a host of the client's choice."""
    asked = [("GET", path, 404) for path in ("/nothing", "/generate/", "/health/")]
    asked += [("POST", path, 404) for path in ("/nothing", "/generate/")]
    asked += [("GET", "/redoc", 404)]  # FastAPI's own, which would load scripts from elsewhere
    for method, path, right in [*asked, ("GET", "/generate", 405), ("DELETE", "/health", 405)]:
        status, headers, body = running.ask(method, path, "x", content_type="text/plain", host="elsewhere.example")
        assert status == right and "location" not in headers and list(json.loads(body)) == ["error"]


def test_head_is_get_without_a_body(running):
    for path in ("/", "/docs", "/health", "/ready", "/info", "/metrics"):
        status, headers, body = running.ask("HEAD", path)
        assert status == 200 and body == b"" and headers["Content-Type"] == running.ask("GET", path)[1]["Content-Type"]
    assert running.ask("HEAD", "/generate")[0] == 405


def test_openapi_describes_requests_and_answers(running):
    description = json.loads(running.ask("GET", "/openapi.json")[2])
    generate = description["paths"]["/generate"]["post"]
    request = generate["requestBody"]["content"]["application/json"]["schema"]
    assert {"text", "texts", "decoding", "nbest", "details"} <= set(request["properties"])
    assert "mask-predict" in request["properties"]["decoding"]["description"]
    schemas = description["components"]["schemas"]
    assert set(schemas["GenerateResponse"]["properties"]) == {"id", "outputs"}
    assert {"text", "score", "history"} <= set(schemas["Output"]["properties"]) and schemas["Output"]["required"] == [
        "text"
    ]
    assert {"200", "413", "415", "422", "503"} <= set(generate["responses"])
    error = generate["responses"]["422"]["content"]["application/json"]["schema"]
    assert error == {"$ref": "#/components/schemas/Error"}


def test_the_page_offers_every_decoding(running):
    page = running.ask("GET", "/")[2].decode()
    assert re.findall("<option>(.*?)</option>", page) == list(DECODINGS)
