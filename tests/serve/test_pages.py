"""Every page as a browser gets it; ``test_page`` is about the one on which a model is tried."""

import base64
import hashlib
import re

import pytest

from mist_fairseq.serve.messages import GenerateRequest
from tests.serve import test_page
from tests.serve.helpers import eventually

browser = test_page.browser


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_the_policy_lets_the_pages_own_script_and_style_run(running, path):
    _, headers, body = running.ask("GET", path)
    policy = headers["Content-Security-Policy"]
    for element, directive in (("script", "script-src"), ("style", "style-src")):
        (content,) = re.findall(f"<{element}>(.*?)</{element}>".encode(), body, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content).digest()).decode()
        assert re.findall(rf"{directive} ([^;]*)", policy) == [f"'sha256-{digest}'"]
    assert "default-src 'none'" in policy and "connect-src 'self'" in policy and "frame-ancestors 'none'" in policy
    assert not re.findall(rb"(?:src|href)\s*=\s*\"?(?:https?:)?//", body)


def test_what_is_no_page_may_run_nothing(running):
    for path in ("/health", "/metrics", "/openapi.json", "/nothing"):
        policy = running.ask("GET", path)[1]["Content-Security-Policy"]
        assert policy.startswith("default-src 'none';") and "sha256" not in policy


@test_page.pytestmark
def test_the_api_is_described(browser, running):
    browser.get(f"{running.url}/docs")
    eventually(lambda: "GenerateResponse" in browser.page_source)
    text = browser.find_element("tag name", "main").text
    for name in [*GenerateRequest.model_fields, "POST /v1/completions", "GET /info", "GET /ready", "CompletionError"]:
        assert name in text
    assert 'decoding string, default "single-pass" how to generate: single-pass, mist' in text
    assert "iterations integer | null passes over the target" in text and "[object" not in text
    assert "outputs list of (list of Output), required" in text
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    browser.set_window_size(390, 800)
    assert browser.execute_script("return document.documentElement.scrollWidth <= document.documentElement.clientWidth")
