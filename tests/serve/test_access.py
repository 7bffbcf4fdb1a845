"""API keys, other sites' pages, and the log of requests."""

import base64
import json
import logging
import subprocess

import httpx
import pytest

from mist_fairseq.serve import access
from mist_fairseq.serve.access import check_origins, read_keys
from tests.serve.helpers import COMMAND, DEADLINE, ROOT, FakeGenerator, answered, eventually, serving

KEYS = ("first-key", "second-key")
SITE = "https://example.com"


@pytest.fixture(scope="module")
def locked():
    with serving(FakeGenerator(), keys=KEYS, origins=[SITE]) as running:
        yield running


GOOD = [*(f"Bearer {key}" for key in KEYS), "bearer  first-key"]
BAD = ["", "first-key", "Bearer", "Bearer ", "Bearer first", "Bearer first-key2", "Bearer first-key second-key"]
BAD += ["Basic first-key", "Basic " + base64.b64encode(b"any:first-key").decode(), "Bearer \xe9", "Token first-key"]


@pytest.mark.parametrize("authorization", GOOD)
def test_each_key_opens(locked, authorization):
    asked = dict(content_type="application/json", authorization=authorization)
    status, _, body = locked.ask("POST", "/generate", '{"text": "how"}', **asked)
    assert (status, json.loads(body)) == answered("how")


@pytest.mark.parametrize("authorization", BAD)
def test_nothing_else_does(locked, authorization):
    for path in ("/generate", "/v1/completions", "/v1/models", "/info", "/metrics", "/nothing"):
        status, headers, body = locked.ask("GET", path, authorization=authorization)
        assert status == 401 and headers["WWW-Authenticate"] == "Bearer"
        error = json.loads(body)["error"]
        assert "Authorization: Bearer KEY" in (error["message"] if path.startswith("/v1") else error)
        assert not any(key in body.decode() for key in KEYS)


def test_probes_and_pages_need_no_key(locked):
    paths = ("/health", "/ready", "/", "/docs", "/openapi.json")
    assert {locked.ask("GET", path)[0] for path in paths} == {200}


def test_keys_of_options_and_of_a_file(tmp_path):
    file = tmp_path / "keys"
    file.write_text("\n  third \n\nfourth\n")
    assert read_keys(["first"], str(file)) == ("first", "third", "fourth") and read_keys([], None) == ()
    file.write_bytes(b"secr\xe9t\n")
    for keys, name in ((["a b"], None), ([""], None), ([], str(file))):
        with pytest.raises(ValueError, match="an API key of [036] characters: expected") as raised:
            read_keys(keys, name)
        assert "secr" not in str(raised.value)
    file.write_text(" \n")
    with pytest.raises(ValueError, match="keys is empty, expected a key a line"):
        read_keys(["first"], str(file))


# -- pages of other sites ---------------------------------------------------------------------------------------


def test_a_named_site_may_ask_and_no_other(locked):
    """Also where a key is needed: a browser asks first, without it."""
    first = dict(access_control_request_method="POST", access_control_request_headers="authorization,content-type")
    status, headers, _ = locked.ask("OPTIONS", "/generate", origin=SITE, **first)
    assert status == 200 and headers["Access-Control-Allow-Origin"] == SITE
    assert "POST" in headers["Access-Control-Allow-Methods"]
    status, headers, _ = locked.ask("OPTIONS", "/generate", origin="https://example.org", **first)
    assert status == 400 and "Access-Control-Allow-Origin" not in headers
    asked = dict(content_type="application/json", authorization="Bearer first-key")
    for origin, allowed in ((SITE, SITE), ("https://example.org", None)):
        status, headers, _ = locked.ask("POST", "/generate", '{"text": "how"}', origin=origin, **asked)
        assert status == 200 and headers["Access-Control-Allow-Origin"] == allowed
    assert locked.ask("POST", "/generate", "{}", origin=SITE)[1]["Access-Control-Allow-Origin"] == SITE  # reads its 401


def test_origins_as_browsers_write_them():
    check_origins(["*", "https://example.com", "http://localhost:3000", "http://[::1]:80"])
    for wrong in ("example.com", "https://example.com/", "https://Example.com", "https://", ""):
        with pytest.raises(ValueError, match="--cors-origin is .*, expected one like https://example.com, or \\*"):
            check_origins([wrong])


# -- the log ----------------------------------------------------------------------------------------------------


def test_a_request_has_a_number(running):
    given = running.ask("GET", "/health", x_request_id="trace-1/a:b")[1]["X-Request-ID"]
    made = [running.ask("GET", "/nothing")[1]["X-Request-ID"] for _ in range(2)]
    assert given == "trace-1/a:b" and len({*made}) == 2 and all(len(number) == 32 for number in made)
    for strange in ("", "a b", 'a"', "a" * 129):
        assert len(running.ask("GET", "/health", x_request_id=strange)[1]["X-Request-ID"]) == 32


def test_requests_are_logged_without_their_texts(running, caplog, monkeypatch):
    monkeypatch.setattr(access.logger, "propagate", True)
    with caplog.at_level(logging.INFO, "mist_fairseq.access"):
        sent = dict(content_type="application/json", x_request_id="a")
        running.ask("POST", "/generate?text=hidden", '{"texts": ["how", "it"]}', **sent)
        running.ask("GET", "/%22%0a%c3%a9")
        eventually(lambda: '"status": 404' in caplog.text)  # which comes after the answer
    entries = [json.loads(record.message) for record in caplog.records if record.name == access.logger.name]
    one, other = (entry for entry in entries if entry["path"] != "/health")  # of a test before
    seconds, stamp = one.pop("seconds"), one.pop("time")
    right = {"method": "POST", "path": "/generate", "status": 200, "texts": 2, "client": "127.0.0.1", "request_id": "a"}
    assert one == right and 0 < seconds < 60 and stamp.endswith("+00:00")
    assert (other["path"], other["status"], other["texts"]) == ('/"\n\u00e9', 404, 0)
    assert not {"how", "hidden"} & set(caplog.text.replace('"', " ").split())


def test_the_command_writes_the_log_to_standard_output():
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    arguments = ["--access-log", "--api-key", "key"]
    with subprocess.Popen([*COMMAND, *arguments], cwd=ROOT, text=True, **pipes) as process:
        try:
            url = process.stdout.readline().split()[-1]
            assert httpx.get(f"{url}/info", trust_env=False, timeout=DEADLINE).status_code == 401
            entry = json.loads(process.stdout.readline())
            assert (entry["path"], entry["status"]) == ("/info", 401)
        finally:
            process.kill()
