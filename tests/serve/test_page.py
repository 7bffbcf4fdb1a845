"""The page in a real browser."""

import shutil

import pytest

from tests.serve.helpers import DEADLINE, FakeGenerator, eventually, serving

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import Select  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    flags = "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking"
    for flag in [*flags.split(), "disable-component-update", "disable-sync", "no-proxy-server"]:
        options.add_argument("--" + flag)
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('chromium')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    browser.set_page_load_timeout(DEADLINE)
    yield browser
    browser.quit()


@pytest.fixture(scope="module")
def running():
    with serving(FakeGenerator(), max_iterations=5) as running:
        yield running


@pytest.fixture
def page(browser, running):
    """The page, freshly loaded; nothing may have gone wrong in the browser by the end."""
    browser.get(running.url)
    browser.get_log("browser")
    yield browser
    severe = [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert not [message for message in severe if "status of 422" not in message]


def all_of(page, selector: str) -> list:
    return page.find_elements(By.CSS_SELECTOR, selector)


def texts_of(item, tag: str) -> list[str]:
    return [each.text for each in item.find_elements(By.TAG_NAME, tag)]


def generate(page, text: str, **values: str):
    fill(page, text, **values)
    page.find_element(By.ID, "generate").click()
    eventually(page.find_element(By.ID, "generate").is_enabled)


def fill(page, text: str, **values: str):
    for name, value in {"text": text, **values}.items():
        field = page.find_element(By.ID, name)
        if name == "decoding":
            Select(field).select_by_visible_text(value)
        else:
            field.clear()
            field.send_keys(value)


def test_output_tokens_lengths_and_passes(page):
    generate(page, "how can you learn", decoding="mist", iterations="3")
    assert [each.text for each in all_of(page, ".output")] == ["learn you can how"]

    score = all_of(page, ".score")[0]
    assert score.text == "mean probability 78 %" and "log-probability -0.2500" in score.get_attribute("title")

    tokens = all_of(page, ".token")
    assert [each.text.split("\n")[0] for each in tokens] == ["learn", "you", "can", "how"]
    colours = {each.value_of_css_property("background-color") for each in tokens}
    scores = FakeGenerator().generate(["how can you learn"], return_scores=True)[0].token_scores
    assert len(colours) == len(set(scores)) > 1 and "rgba(0, 0, 0, 0)" not in colours
    for token, score in zip(tokens, scores):
        assert f"log-probability {score:.4f}" in token.get_attribute("title")

    lengths = all_of(page, ".length")
    assert [each.text.split("\n") for each in lengths] == [
        ["4 tokens", "63 %, used"],
        ["5 tokens", "25 %"],
        ["6 tokens", "13 %"],
    ]
    widths = [each.size["width"] for each in all_of(page, ".bar")]
    assert widths[1] / widths[0] == pytest.approx(0.4, abs=0.02) and widths[2] < widths[1]

    passes = all_of(page, ".pass")
    assert [each.text.split("\n") for each in passes] == [
        ["Pass 1", "how can you learn"],
        ["Pass 2", "how can you learn how"],
        ["Pass 3", "how can learn you can how"],
    ]
    assert len({each.location["y"] for each in passes}) == 1 and len({each.location["x"] for each in passes}) == 3
    new, removed = ([texts_of(each, tag) for each in passes] for tag in ("mark", "del"))
    assert new == [[], ["how"], ["learn", "can"]] and removed == [[], ["learn"], ["how", "can"]]


def test_passes_that_change_nothing_are_marked(page):
    generate(page, "how", decoding="mist", iterations="3")
    assert [each.text.split("\n") for each in all_of(page, ".pass")] == [
        ["Pass 1", "how"],
        ["Pass 2, unchanged", "how"],
        ["Pass 3, unchanged", "how"],
    ]


def test_a_pair(page):
    generate(page, "how can", second="you learn")
    assert [each.text for each in all_of(page, ".output")] == FakeGenerator().generate([("how can", "you learn")])


def test_equal_answers_are_shown_once(page, monkeypatch):
    """The second one lacks tokens, as if they had been repetitions."""
    whole = FakeGenerator._answers

    def cut(self, source, decoding):
        first, second, third = whole(self, source, decoding)
        second.text = " ".join(second.tokens[:2])
        second.tokens, second.token_scores = second.tokens[:2], second.token_scores[:2]
        return [first, second, third]

    monkeypatch.setattr(FakeGenerator, "_answers", cut)
    generate(page, "how can you learn", nbest="3")
    first, second, third = FakeGenerator().generate(["how can you learn"], nbest=3)[0]
    assert [each.text for each in all_of(page, ".output")] == [first, second] and first == third != second
    headings = [each.text for each in all_of(page, "h2")]
    assert headings == ["Answers 1 and 3", "Answer 2", "Predicted length"]
    assert len(all_of(page, ".legend")) == 1 and len(all_of(page, ".used")) == 3
    dropped = ["directly repeated words were dropped" in each.text for each in all_of(page, ".card")]
    assert dropped == [False, True, False]


def test_an_empty_text_is_explained_and_the_page_goes_on(page):
    generate(page, "")
    error = page.find_element(By.ID, "error")
    assert error.text.startswith("text is empty, expected a text") and error.get_attribute("role") == "alert"
    assert [each.get_attribute("id") for each in all_of(page, "[aria-invalid]")] == ["text"]
    generate(page, "what is it")
    assert error.text == "" and not all_of(page, "[aria-invalid]")
    assert [each.text for each in all_of(page, ".output")] == ["it is what"]
    generate(page, "what is it", iterations="6")
    assert error.text == "iterations is 6: at most 5 (--max-iterations)" and not all_of(page, ".output")
    assert [each.get_attribute("id") for each in all_of(page, "[aria-invalid]")] == ["iterations"]


def test_the_old_answer_stays_until_the_new_one_is_there(browser):
    generator = FakeGenerator()
    with serving(generator) as running:
        browser.get(running.url)
        generate(browser, "what is it")
        generator.gate.clear()
        fill(browser, "how can")
        browser.find_element(By.ID, "text").send_keys(Keys.CONTROL, Keys.ENTER)
        eventually(lambda: generator.entered == 2)
        button, result = (browser.find_element(By.ID, name) for name in ("generate", "result"))
        assert button.text == "Generating\u2026" and result.get_attribute("aria-busy") == "true"
        assert [each.text for each in all_of(browser, ".output")] == ["it is what"]
        generator.gate.set()
        eventually(button.is_enabled)
        assert button.text == "Generate" and result.get_attribute("aria-busy") is None
        assert [each.text for each in all_of(browser, ".output")] == ["can how"]
        assert generator.entered == 2


def test_markup_stays_text(page):
    """Tokens are read back letter by letter, in reverse."""
    text = "<img src=x onerror=alert(1)><script>document.title='x'</script>"
    generate(page, text)
    output = all_of(page, ".output")[0]
    assert output.text == FakeGenerator().generate([text], decoding="mist")[0] and "<" in output.text
    assert page.title == "MIST" and not all_of(page, "#result img, #result script")


def test_markup_in_an_error_stays_text(page):
    page.execute_script("byId('decoding').append(new Option('<b>bold</b>'))")
    generate(page, "how", decoding="<b>bold</b>")
    assert "'<b>bold</b>'" in page.find_element(By.ID, "error").text and not all_of(page, "#error b")


def test_nothing_but_the_page_runs_as_script(page):
    """The policy refuses what was put into the document some other way."""
    page.execute_script(
        "const made = document.createElement('script');"
        "made.textContent = 'window.ran = true'; document.body.append(made);"
    )
    assert page.execute_script("return window.ran") is None
    assert any("Content Security Policy" in entry["message"] for entry in page.get_log("browser"))


def test_every_field_has_a_label(page):
    for field in all_of(page, "textarea, select, input"):
        assert field.accessible_name


def test_a_server_that_is_gone_is_said(browser):
    with serving(FakeGenerator()) as gone:
        browser.get(gone.url)
    generate(browser, "how")
    assert "The server gave no answer" in browser.find_element(By.ID, "error").text
    assert browser.find_element(By.ID, "generate").is_enabled()


def test_dark_and_light(page):
    colours = []
    for scheme in ("dark", "light"):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        colours.append(page.find_element(By.TAG_NAME, "body").value_of_css_property("background-color"))
    assert colours[0] != colours[1]
