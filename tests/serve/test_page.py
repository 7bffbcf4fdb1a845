"""The page in a real browser, before a real server."""

import itertools
import json
import math
import os
import random
import re
import shutil
import subprocess
import sys

import pytest

from mist_fairseq.generate.decoding import DECODINGS, Decoding
from mist_fairseq.serve import app
from mist_fairseq.serve.info import Weights, describe
from mist_fairseq.serve.limits import Limits
from mist_fairseq.serve.pages import load_page
from tests.serve.helpers import DEADLINE, FakeGenerator, eventually, serving

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import Select  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver")

SMALL = Limits(max_iterations=5, max_nbest=8, max_characters=2000)
WEIGHTS = Weights(name="org/tiny", parameters=22_713_216, bytes=23_456_789, precision="int8", format="onnx")
EXAMPLES = ["how can you learn", "what is it\tthe best way"]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    flags = "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking"
    for flag in [*flags.split(), "disable-component-update", "disable-sync", "no-proxy-server", "window-size=1280,800"]:
        options.add_argument("--" + flag)
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('chromium')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    browser.set_page_load_timeout(DEADLINE)
    yield browser
    browser.quit()


@pytest.fixture(scope="module")
def running():
    info = describe(FakeGenerator(), SMALL, WEIGHTS, EXAMPLES)
    with serving(FakeGenerator(), info=info, **vars(SMALL)) as running:
        yield running


@pytest.fixture
def page(browser, running):
    """The page, freshly loaded; nothing may have gone wrong in the browser by the end."""
    load(browser, running)
    browser.get_log("browser")
    yield browser
    severe = [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert not [message for message in severe if not re.search("status of (422|500)", message)]


def load(browser, running):
    browser.get(running.url)
    eventually(lambda: browser.execute_script("return info !== null || byId('error').textContent"))


def all_of(page, selector: str) -> list:
    return page.find_elements(By.CSS_SELECTOR, selector)


def texts_of(page, selector: str) -> list[str]:
    """As a reader sees them."""
    return [each.text for each in all_of(page, selector)]


def contents_of(page, selector: str) -> list[str]:
    """With what is shown to screen readers alone, and what is folded."""
    script = "return [...document.querySelectorAll(arguments[0])].map((each) => each.textContent.trim())"
    return page.execute_script(script, selector)


def answers_of(page) -> list[str]:
    """The answers' texts, without the probabilities above words."""
    script = """return [...document.querySelectorAll(".output")].map((output) => {
        const copy = output.cloneNode(true);
        copy.querySelectorAll("rt").forEach((above) => above.remove());
        return copy.textContent.trim();
    })"""
    return page.execute_script(script)


def error_of(page) -> str:
    return page.find_element(By.ID, "error").text


def invalid_in(page) -> list[str]:
    return [each.get_attribute("id") for each in all_of(page, "[aria-invalid]")]


def generate(page, text: str, **values: str):
    """Fill fields in and click."""
    fill(page, text=text, **values)
    page.execute_async_script("""byId("generate").click();
        const wait = () => byId("generate").disabled ? setTimeout(wait, 5) : arguments[0]();
        wait();""")


def fill(page, **values: str):
    """As pasted: no keyboard can type all of it."""
    page.execute_script(
        """for (const [name, value] of Object.entries(arguments[0])) {
            byId(name).value = value;
            for (const kind of ["input", "change"]) byId(name).dispatchEvent(new Event(kind, {bubbles: true}));
        }""",
        values,
    )


def test_a_link_to_an_answer(page, running):
    page.get(running.url + "#text=how%20can+i%3F+100%25")
    page.refresh()
    eventually(lambda: answers_of(page))
    assert page.find_element(By.ID, "text").get_attribute("value") == "how can i? 100%"
    page.get(running.url + "#%")  # no address that a browser makes
    page.refresh()
    eventually(lambda: page.execute_script("return info !== null"))
    assert not page.find_element(By.ID, "text").get_attribute("value") and not answers_of(page)


def test_the_head_and_the_fields_are_as_the_server_says(page, running):
    assert page.title == "org/tiny \u2013 MIST" and texts_of(page, "h1") == ["org/tiny"]
    for fact in ("22.7M parameters", "23 MB", "int8", "onnx"):
        assert fact in page.find_element(By.ID, "model").text
    decoding = Select(page.find_element(By.ID, "decoding"))
    assert [each.text for each in decoding.options] == list(DECODINGS)
    assert decoding.first_selected_option.text == Decoding().decoding
    nbest, iterations = (page.find_element(By.ID, name) for name in ("nbest", "iterations"))
    assert nbest.get_attribute("value") == "1" and nbest.get_attribute("max") == "8"
    assert not iterations.is_enabled()
    decoding.select_by_visible_text("mist")
    assert iterations.is_enabled() and iterations.get_attribute("max") == "5"
    page.execute_script("byId('pair').open = true")
    for field in all_of(page, "textarea, select, input, button"):
        assert field.accessible_name or not field.is_displayed()
    (api,) = all_of(page, "main > p a")
    assert running.ask("GET", api.get_attribute("href").removeprefix(running.url))[0] == 200


def test_only_what_is_not_as_by_default_is_asked_for(page, monkeypatch):
    bodies = record_bodies(monkeypatch)
    generate(page, "how can")
    generate(page, "how can", second="you learn", decoding="mist", iterations="2", nbest="3")
    generate(page, "how can", second="", decoding="single-pass", nbest="1", lengths="2, 4")
    assert bodies == [
        {"text": "how can", "details": True},
        {"text": ["how can", "you learn"], "decoding": "mist", "iterations": 2, "nbest": 3, "details": True},
        {"texts": ["how can", "how can"], "lengths": [2, 4], "details": True},
    ]


def record_bodies(monkeypatch) -> list[dict]:
    bodies, read = [], app.read_json

    async def recorded(*arguments):
        bodies.append(await read(*arguments))
        return bodies[-1]

    monkeypatch.setattr(app, "read_json", recorded)
    return bodies


def test_answer_words_lengths_and_passes(page):
    generate(page, "how can you in", decoding="mist", iterations="3")
    assert answers_of(page) == ["in you can how"]
    assert re.match(r"1 answer in [\d.]+ m?s", page.find_element(By.ID, "status").text)
    assert contents_of(page, "[role=status] .unseen") == [": in you can how"]
    assert "score -0.25 \u00b7 3 passes" in texts_of(page, ".card p")

    (right,) = FakeGenerator().generate(["how can you in"], return_scores=True)
    unsure = [score for score in right.token_scores if math.exp(score) < 0.8]
    assert 0 < len(unsure) < len(right.tokens)
    shown = [f"{100 * math.exp(score):.{1 if math.exp(score) < 0.0995 else 0}f} %" for score in unsure]
    assert [text for text in texts_of(page, "rt") if text] == shown
    page.find_element(By.CSS_SELECTOR, "input[type=checkbox]").send_keys(Keys.SPACE)
    assert len([text for text in texts_of(page, "rt") if text]) == 4

    assert [text.split("\n") for text in texts_of(page, ".length")] == [
        ["4 tokens", "63 %, tried"],
        ["5 tokens", "25 %"],
        ["6 tokens", "13 %"],
    ]
    widths = [each.size["width"] for each in all_of(page, ".bar")]
    assert widths[1] / widths[0] == pytest.approx(0.4, abs=0.02) and widths[2] < widths[1]

    assert contents_of(page, ".pass") == [
        "Pass 1 how can you in",
        "Pass 2 how can you dropped: in new: how",
        "Pass 3 dropped: how can new: in you new: can how",
    ]
    passes = all_of(page, ".pass")
    assert len({each.location["y"] for each in passes}) == 1 and len({each.location["x"] for each in passes}) == 3


def test_passes_that_change_nothing_are_marked(page):
    generate(page, "how", decoding="mist", iterations="3")
    assert [each.text.split("\n") for each in all_of(page, ".pass")] == [
        ["Pass 1", "how"],
        ["Pass 2, unchanged", "how"],
        ["Pass 3, unchanged", "how"],
    ]


def test_several_answers_beside_the_text(page):
    generate(page, "how can", second="you learn", nbest="3")
    answers = FakeGenerator().generate([("how can", "you learn")], nbest=3)[0]
    assert answers_of(page) == answers and len(answers) == 3
    assert texts_of(page, ".card h2") == ["Answer 1", "Answer 2", "Answer 3", "Predicted length"]
    assert len(all_of(page, ".used")) == 3
    assert contents_of(page, ".card > .difference") == ["dropped: how can you learn new: you can how"] * 3
    for shown in all_of(page, ".card > .difference"):
        (gone, *_), (new, *_) = (shown.find_elements(By.TAG_NAME, tag) for tag in ("del", "ins"))
        lines = [each.value_of_css_property("text-decoration-line") for each in (gone, new)]
        assert lines == ["line-through", "underline"]
    generate(page, "can " * 20 + "you", second="", lengths="1")
    assert contents_of(page, ".card > .difference") == ["dropped: can can can can \u2026 (20 words) you"]


def test_differences_are_smallest(page):
    """Against all common subsequences; both texts can be read off."""
    choose = random.Random(1)
    pairs = [[[*choose.choices("abc", k=choose.randrange(7))] for _ in range(2)] for _ in range(60)]
    script = """return arguments[0].map((pair) => {
        const [before, after] = pair.map((words) => words.map((word) => ({key: word})));
        return compared(before, after).map(([what, run]) => [what, run.map((word) => word.key)]);
    })"""

    def subsequences(words):
        return {each for length in range(len(words) + 1) for each in itertools.combinations(words, length)}

    for (before, after), runs in zip(pairs, page.execute_script(script, pairs)):
        for what, text in (("gone", before), ("new", after)):
            assert [word for kind, run in runs for word in run if kind in ("same", what)] == text
        same = sum(len(run) for what, run in runs if what == "same")
        assert same == max(map(len, subsequences(before) & subsequences(after)))
        assert all(first[0] != second[0] for first, second in itertools.pairwise(runs))


PIECES = {
    "WordPiece": ("unbelievable, isn't it?", "un ##believ ##able , isn ' t it ?"),
    "SentencePiece": ("unbelievable, isn't it?", "\u2581un believ able , \u2581is n ' t \u2581it ?"),
    "SentencePiece, a space of its own": ("it is 12", "\u2581it \u2581is \u2581 12"),
    "byte-level BPE": ("caf\u00e9 \u4f60\u597d!", "caf \u00c3 \u00a9 \u0120 \u00e4\u00bd\u0142 \u00e5\u00a5 \u00bd !"),
    "Chinese by characters": ("\u4f60\u597d\uff01", "\u4f60 \u597d \uff01"),
    "another case": ("Unbelievable", "un ##believ ##able"),
}
WORDS = {
    "WordPiece": {"unbelievable": [0, 1, 2], ",": [3], "isn't": [4, 5, 6], "it": [7], "?": [8]},
    "SentencePiece": {"unbelievable": [0, 1, 2], ",": [3], "isn't": [4, 5, 6, 7], "it": [8], "?": [9]},
    "SentencePiece, a space of its own": {"it": [0], "is": [1], "12": [2, 3]},
    "byte-level BPE": {"caf\u00e9": [0, 1, 2], "\u4f60\u597d": [3, 4, 5, 6], "!": [7]},
    "Chinese by characters": {"\u4f60\u597d": [0, 1], "\uff01": [2]},
    "another case": {"Unbelievable": [0, 1, 2]},
}


def test_pieces_are_shown_as_words(page):
    """Piece i has log-probability -2^i, so that a sum tells which pieces it has."""
    outputs = [{"text": text, "tokens": pieces.split()} for text, pieces in PIECES.values()]
    for output in outputs:
        output["token_scores"] = [-(2**i) for i in range(len(output["tokens"]))]
    found = page.execute_script("return arguments[0].map(scored)", outputs)
    for words, right in zip(found, WORDS.values(), strict=True):
        read = {word["text"]: -word["score"] for word in words}
        assert read == {word: sum(2**i for i in pieces) for word, pieces in right.items()}
    other = {"text": "another text", "tokens": ["a", "##b"], "token_scores": [-1, -1]}
    words = page.execute_script("return scored(arguments[0])", other)
    assert [word["text"] for word in words] == ["another", "text"] and not any("score" in word for word in words)


def test_text_from_right_to_left(page):
    script = """return [answerText({text: arguments[0], tokens: [], token_scores: []}), difference(arguments[0], "it")]
        .map((made) => {
            byId("result").append(made);
            return getComputedStyle(made).direction;
        })"""
    assert page.execute_script(script, "\u05e9\u05dc\u05d5\u05dd") == ["rtl", "rtl"]
    assert page.execute_script(script, "how") == ["ltr", "ltr"]


def test_lengths_that_were_asked_for(page):
    generate(page, "how can you learn", lengths="3")
    assert answers_of(page) == FakeGenerator().generate(["how can you learn"], lengths=3)
    assert not all_of(page, ".length") and not page.find_element(By.ID, "nbest").is_enabled()
    generate(page, "how can you learn", lengths="2, 3 4")
    assert answers_of(page) == FakeGenerator().generate(["how can you learn"] * 3, lengths=[2, 3, 4])
    assert texts_of(page, "h2") == ["Answer of 2 tokens", "Answer of 3 tokens", "Answer of 4 tokens"]
    for wrong in ("0", "2, 40", "three"):
        generate(page, "how can you learn", lengths=wrong)
        assert error_of(page) == "Length: write whole numbers from 1 to 39, or leave it empty."
        assert invalid_in(page) == ["lengths"] and not all_of(page, ".card")


def test_dropped_repetitions_and_lost_ends_are_said(page, monkeypatch):
    whole = FakeGenerator._answers

    def shortened(self, source, decoding):
        (output,) = whole(self, source, decoding)
        output.tokens, output.token_scores = output.tokens[:2], output.token_scores[:2]
        return [output]

    monkeypatch.setattr(FakeGenerator, "_answers", shortened)
    generate(page, "how can you learn")
    assert "2 of 4 tokens are left: directly repeated words were dropped." in texts_of(page, ".card p")
    assert not all_of(page, ".cut")
    monkeypatch.undo()
    generate(page, "how can " * 30)
    (cut,) = texts_of(page, ".cut")
    assert cut == "The text is longer than the 40 tokens that this model reads: its end was left out."
    assert not any("are left" in text for text in texts_of(page, ".card p"))


def test_examples(page):
    first, second = all_of(page, "#examples button")
    assert [first.text, second.text] == ["how can you learn", "what is it | the best way"]
    for button, texts in [(second, ("what is it", "the best way")), (first, ("how can you learn", ""))]:
        button.click()
        eventually(page.find_element(By.ID, "generate").is_enabled)
        assert tuple(page.find_element(By.ID, name).get_attribute("value") for name in ("text", "second")) == texts
        assert answers_of(page) == FakeGenerator().generate([texts if texts[1] else texts[0]])


NASTY = """it's "how" $(touch hacked) `touch hacked` \\n \\ !! %s
\ttab\u202eoverride \u2028 \u0085 caf\u00e9 \u4f60\u597d \U0001f469\u200d\U0001f52c 'end'"""


@pytest.mark.skipif(not shutil.which("curl"), reason="needs curl")
@pytest.mark.parametrize("name", ["curl", "Python"])
def test_copied_requests_send_the_same(page, running, monkeypatch, tmp_path, name):
    bodies = record_bodies(monkeypatch)
    generate(page, NASTY, second="it", nbest="2")
    assert bodies[0]["text"] == [NASTY, "it"]
    granted = {"origin": running.url, "permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]}
    page.execute_cdp_cmd("Browser.grantPermissions", granted)
    page.find_element(By.CSS_SELECTOR, "details.card summary").click()
    (button,) = [each for each in all_of(page, ".copy") if each.text == f"Copy as {name}"]
    button.click()
    eventually(lambda: button.text == "Copied")
    copied = page.execute_async_script("navigator.clipboard.readText().then(arguments[0])")
    assert copied in contents_of(page, "pre")
    command = ["sh", "-c", copied] if name == "curl" else [sys.executable, "-c", copied]
    answer = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=DEADLINE)
    assert answer.returncode == 0, answer.stderr
    assert len(bodies) == 2 and bodies[1] == bodies[0] and not [*tmp_path.iterdir()]
    right = FakeGenerator().generate([(NASTY, "it")], nbest=2)[0]
    assert all((json.dumps(text) if name == "curl" else repr(text)) in answer.stdout.decode() for text in right)


def test_what_is_wrong_is_said_and_the_page_goes_on(page):
    cases = [
        (dict(text=" "), "Write a text first.", ["text"]),
        (dict(text="it", nbest="9"), "Answers: write a whole number from 1 to 8.", ["nbest"]),
        (dict(text="it", nbest="1.5"), "Answers: write a whole number from 1 to 8.", ["nbest"]),
        (dict(text="a guitar", nbest="1"), "The model failed on this text. The server's log says how.", []),
    ]
    for values, message, fields in cases:
        generate(page, **values)
        assert error_of(page) == message and invalid_in(page) == fields and not all_of(page, ".card")
        if fields:
            assert page.switch_to.active_element.get_attribute("id") == fields[0]
    generate(page, "what is it")
    assert error_of(page) == "" and invalid_in(page) == [] and answers_of(page) == ["it is what"]
    generate(page, "\U0001f600" * 2001)
    assert error_of(page) == "The text has 2,001 characters, and this server takes 2,000: shorten it."
    assert page.find_element(By.ID, "error").get_attribute("role") == "alert"


def test_the_old_answer_stays_until_the_new_one_is_there(browser):
    generator = FakeGenerator()
    with serving(generator) as running:
        load(browser, running)
        assert "--examples" in browser.find_element(By.ID, "examples").text
        generate(browser, "what is it")
        generator.gate.clear()
        text = browser.find_element(By.ID, "text")
        text.clear()
        text.send_keys("how can", Keys.CONTROL, Keys.ENTER)
        eventually(lambda: generator.entered == 2)
        button, result = (browser.find_element(By.ID, name) for name in ("generate", "result"))
        assert button.text == "Generating\u2026" and result.get_attribute("aria-busy") == "true"
        assert answers_of(browser) == ["it is what"]
        generator.gate.set()
        eventually(button.is_enabled)
        assert button.text == "Generate" and result.get_attribute("aria-busy") is None
        assert answers_of(browser) == ["can how"] and generator.entered == 2
        browser.find_element(By.ID, "nbest").send_keys(Keys.ENTER)
        eventually(lambda: generator.entered == 3 and button.is_enabled())


def test_markup_stays_text(page):
    """Tokens are read back letter by letter, in reverse."""
    text = "<img src=x onerror=alert(1)><script>document.title='x'</script>"
    generate(page, text)
    assert answers_of(page) == FakeGenerator().generate([text]) and "<" in answers_of(page)[0]
    assert page.title == "org/tiny \u2013 MIST" and not all_of(page, "#result img, #result script")
    page.execute_script("byId('decoding').append(new Option('<b>bold</b>'))")
    generate(page, "how", decoding="<b>bold</b>")
    assert "'<b>bold</b>'" in error_of(page) and not all_of(page, "#error b")


def test_nothing_but_the_page_runs_as_script(page):
    """The policy refuses what was put into the document some other way."""
    page.execute_script(
        "const made = document.createElement('script');"
        "made.textContent = 'window.ran = true'; document.body.append(made);"
    )
    assert page.execute_script("return window.ran") is None
    assert any("Content Security Policy" in entry["message"] for entry in page.get_log("browser"))


def test_a_server_that_is_gone_or_refuses(browser):
    with serving(FakeGenerator(), max_body=200) as gone:
        load(browser, gone)
        generate(browser, "how can " * 30)
        assert error_of(browser) == "The text is too long for this server: shorten it."
        gone.batcher.close()
        generate(browser, "how")
        expected = "The server has too much to do, or is about to stop. Try again in 1 second."
        assert error_of(browser) == expected
    generate(browser, "how")
    assert error_of(browser).startswith("The server does not answer.")
    assert browser.find_element(By.ID, "generate").is_enabled()


def test_an_api_key(browser):
    with serving(FakeGenerator(), keys=["secret"]) as running:
        load(browser, running)
        assert error_of(browser) == "This server wants an API key." and invalid_in(browser) == ["key"]
        messages = {"w r": "An API key has no spaces", "wrong": "The server does not know this API key."}
        for wrong, message in messages.items():
            generate(browser, "what is it", key=wrong)
            assert error_of(browser).startswith(message)
        generate(browser, "what is it", key="secret")
        assert error_of(browser) == "" and answers_of(browser) == ["it is what"]
        assert "secret" not in browser.execute_script("return document.documentElement.outerHTML")
        curl, python = contents_of(browser, "pre")
        for command in (["sh", "-c", curl], [sys.executable, "-c", python]):
            environment = {**os.environ, "MIST_API_KEY": "secret"}
            answer = subprocess.run(command, capture_output=True, env=environment, timeout=DEADLINE)
            assert b"it is what" in answer.stdout
        load(browser, running)
        assert error_of(browser) == "" and not browser.find_element(By.ID, "access").is_displayed()
        assert browser.execute_script("return [localStorage.length, document.cookie]") == [0, ""]


def test_the_servers_own_time_is_shown(page):
    generate(page, "how")
    assert re.search(r"in .*s, \d+ ms of it in the server$", page.find_element(By.ID, "status").text, re.MULTILINE)


def test_phones_need_not_scroll_sideways(page):
    phone = {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    try:
        generate(page, "how can you learn " + "a" * 80, decoding="mist", nbest="5")
        page.execute_script("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
        assert page.execute_script("return document.documentElement.scrollWidth") == 390
        assert len(all_of(page, ".output")) == 5
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(page, scheme):
    """As WCAG 2.1 wants it at level AA: 4.5 for text, 3 for edges of fields."""
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    names = set(re.findall(r"--([\w-]+):", load_page("page.html")[0]))
    script = """const style = getComputedStyle(document.documentElement);
        return Object.fromEntries(arguments[0].map((name) => [name, style.getPropertyValue("--" + name)]))"""
    colours = page.execute_script(script, sorted(names))
    background = page.find_element(By.TAG_NAME, "body").value_of_css_property("background-color")
    assert (luminance(rgb(background)) > 0.5) == (scheme == "light")
    text = {"text": "page card new gone", "faint": "page card", "error": "page", "accent": "page"}
    text["on-accent"] = "accent"
    pairs = [(front, back, 4.5) for front, backs in text.items() for back in backs.split()]
    for front, back, least in [*pairs, ("edge", "page", 3), ("edge", "card", 3), ("accent", "card", 3)]:
        lighter, darker = sorted((luminance(rgb(colours[name])) for name in (front, back)), reverse=True)
        assert (lighter + 0.05) / (darker + 0.05) >= least, (front, back)


def rgb(colour: str) -> list[int]:
    if colour.startswith("#"):
        digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
        return [*bytes.fromhex(digits)]
    return [int(number) for number in re.findall(r"\d+", colour)[:3]]


def luminance(colour: list[int]) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (value / 255 for value in colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
