"""Requests that are refused, and what they are told."""

from dataclasses import fields

import pytest

from mist_fairseq.generate.decoding import Decoding
from mist_fairseq.serve.messages import GenerateRequest
from tests.serve.helpers import FakeGenerator, answered, serving

LIMITS = dict(max_texts=3, max_characters=30, max_body=2000, max_iterations=4, max_nbest=2, max_length_beam=3)


@pytest.fixture(scope="module")
def strict():
    with serving(FakeGenerator(), **LIMITS) as running:
        yield running
        assert running.post({"text": "how is it"}) == answered("it is how")  # after all that


BAD = {
    "empty": ({"text": ""}, "text is empty, expected a text"),
    "whitespace": ({"texts": ["how", " \t\n "]}, "texts[1] is empty, expected a text"),
    "empty pair": ({"text": ["", " "]}, "text is empty, expected a text"),
    "no parts": ({"text": []}, "text: [] (list) is no text: expected a string"),
    "control characters": ({"text": "\u0000\u0001\u200b"}, "text is empty, expected a text (white space and control"),
    "no texts": ({"texts": []}, "texts: List should have at least 1 item after validation, not 0, given []"),
    "neither": ({}, "expected either text, a single one, or texts, a list"),
    "both": ({"text": "how", "texts": ["how"]}, "expected either text, a single one, or texts, a list"),
    "number": ({"texts": ["how", 5]}, "texts[1]: 5 is no text: expected a string, or a list of strings such as a pair"),
    "object": ({"text": {"a": 1}}, "text: {'a': 1} is no text"),
    "number in a pair": ({"text": ["how", 1]}, "text: ['how', 1] is no text"),
    "unknown key of half a character": (r'{"\ud800": 1}', r"given '\ud800'"),
    "id of half a character": (r'{"text": "how", "id": "\ud800"}', r"id: '\ud800' is no id: expected a string"),
    "texts a string": ({"texts": "how"}, "texts: Input should be a valid list, given 'how'"),
    "list": ("[1, 2]", "the body is [1, 2], expected a JSON object"),
    "unknown key": ({"text": "how", "beam": 4}, "unknown key 'beam', expected some of decoding, iterations,"),
    "decoding": ({"text": "how", "decoding": "beam"}, "decoding is 'beam', expected one of single-pass, mist"),
    "iterations": ({"text": "how", "iterations": 2}, "iterations 2 needs decoding mist, mask-predict or mask-repeats"),
    "iterations 0": ({"text": "how", "iterations": 0}, "iterations is 0, expected a whole number of at least 1"),
    "iterations a string": (
        {"text": "how", "iterations": "2"},
        "iterations: Input should be a valid integer, given '2'",
    ),
    "iterations true": ({"text": "how", "iterations": True}, "iterations: Input should be a valid integer, given True"),
    "negative penalty": ({"text": "how", "diversity_penalty": -1}, "diversity_penalty is -1.0, expected a number of"),
    "lengths a string": ({"text": "how", "lengths": "3"}, "lengths: '3' is no length: expected a whole number, or a"),
    "lengths": ({"texts": ["how", "it"], "lengths": [1]}, "1 lengths for 2 texts"),
    "length": ({"text": "how", "lengths": 99}, "length is 99, expected a whole number from 1 to 39"),
    "min_length": ({"text": "how", "min_length": 40}, "min_length 40 is too long: the model makes at most 39"),
    "id": ({"text": "how", "id": "x" * 201}, f"id: '{'x' * 59} is no id: expected a string of at most 200"),
    "id true": ({"text": "how", "id": True}, "id: True is no id: expected a string of at most 200 characters, or a wh"),
    "id a list": ({"text": "how", "id": [1]}, "id: [1] is no id"),
    "length of one text": ({"text": "how", "lengths": 0}, "text: length is 0, expected a whole number from 1 to 39"),
    "length of a list": ({"texts": ["how"], "lengths": [0]}, "texts[0]: length is 0, expected a whole number from 1"),
    "long nbest": ({"text": "how", "nbest": 10**1500}, f"nbest is 1{'0' * 59}: at most 2 (--max-nbest)"),
    "long negative nbest": ({"text": "how", "nbest": -(10**1500)}, "0, expected a whole number of at least 1"),
    "long decoding": (
        {"text": "how", "decoding": "x " * 900},
        "x ', expected one of single-pass, mist, mask-predict, mask-repeats",
    ),
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


def test_the_options_are_those_of_decoding():
    """With the same defaults; nothing here lists them."""
    own = {"text", "texts", "lengths", "details", "id"}
    assert set(GenerateRequest.model_fields) - own == {option.name for option in fields(Decoding)}
    assert GenerateRequest(text="how").make_decoding() == Decoding()
    given = dict(decoding="mist", iterations=2, min_length=3, banned=["it"], truecase=True, length_unit="source")
    assert GenerateRequest(text="how", lengths=0.5, **given).make_decoding() == Decoding(**given)


def test_a_default_is_limited_too():
    with serving(FakeGenerator(), max_iterations=2) as running:
        status, answer = running.post({"text": "how", "decoding": "mist"})
        assert status == 422 and answer == {"error": "iterations is 3: at most 2 (--max-iterations)"}


def test_several_errors_are_named(running):
    status, answer = running.post({"texts": ["how", 1, 2, 3, 4], "details": "no"})
    assert status == 422 and answer["error"].count("; ") == 2 and answer["error"].startswith("texts[1]: 1 is no text")
