"""OpenAI's own client asks the server."""

import json

import pytest

from mist_fairseq.generate.decoding import Decoding
from mist_fairseq.serve.completions import CompletionRequest
from mist_fairseq.serve.info import Weights, describe
from mist_fairseq.serve.limits import Limits
from tests.serve.helpers import DEADLINE, FakeGenerator, expected, serving

openai = pytest.importorskip("openai")

NAME = "org/rewriter"


@pytest.fixture(scope="module")
def server():
    limits = dict(max_texts=3, max_nbest=3, max_characters=40)
    info = describe(FakeGenerator(), Limits(**limits), Weights(name=NAME))
    with serving(FakeGenerator(), keys=["the-key"], info=info, **limits) as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="the-key", timeout=DEADLINE, max_retries=0) as client:
        yield client


def test_one_text(client):
    completion = client.completions.create(model=NAME, prompt="how can you learn")
    (choice,) = completion.choices
    assert choice.text == "learn you can how" and (choice.index, choice.finish_reason) == (0, "stop")
    assert choice.logprobs is None and completion.model == NAME and completion.object == "text_completion"
    usage = completion.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (6, 4, 10)  # [CLS] and [SEP], too
    assert client.completions.create(model=NAME, prompt="how").id != completion.id


def test_several_texts_and_answers(client):
    texts = ["what is it", ["the best", "way to learn"], "who"]
    choices = client.completions.create(model=NAME, prompt=texts, n=2, logprobs=1).choices
    assert [choice.index for choice in choices] == list(range(6))
    answers = [output for text in texts for output in expected(text, nbest=2, return_scores=True)]
    assert [choice.text for choice in choices] == [output.text for output in answers]
    assert [choice.logprobs.tokens for choice in choices] == [output.tokens for output in answers]
    assert [choice.logprobs.token_logprobs for choice in choices] == [output.token_scores for output in answers]
    first = choices[0].logprobs
    assert first.top_logprobs == [{token: score} for token, score in zip(first.tokens, first.token_logprobs)]


def test_parameters_that_mean_what_is_done_anyway(client):
    plain = dict(temperature=0, top_p=1.0, stream=False, seed=1, user="me", best_of=3, logprobs=0, echo=False)
    choice = client.completions.create(model=NAME, prompt="how can", max_tokens=9, stop=None, **plain).choices[0]
    assert (
        choice.text == "can how" and choice.logprobs.tokens == ["can", "how"] and choice.logprobs.top_logprobs is None
    )
    more = {"decoding": "mist", "iterations": 2}
    assert client.completions.create(model=NAME, prompt="how can", extra_body=more).choices[0].text == "can how"


BAD = {
    "sampling": (dict(temperature=0.7), "temperature is 0.7, expected none or 0: nothing is sampled"),
    "stream": (dict(stream=True), "stream is True, expected none or False: all words are made at once"),
    "logprobs": (dict(logprobs=5), "logprobs is 5, expected none or 0 or 1: only the likeliest token is known"),
    "stop": (dict(stop=["\n"]), "stop is ['\\n'], expected none or []"),
    "many answers": (dict(n=4), "n is 4: at most 3 (--max-nbest)"),
    "no answers": (dict(n=0), "n is 0, expected a whole number of at least 1"),
    "no tokens": (dict(max_tokens=0), "max_tokens is 0, expected a whole number of at least 1"),
    "empty": (dict(prompt=""), "prompt is empty, expected a text"),
    "one empty": (dict(prompt=["how", " "]), "prompt[1] is empty, expected a text"),
    "long": (dict(prompt=["how", "x" * 41]), "the number of characters of prompt[1] is 41: at most 40"),
    "many": (dict(prompt=["how"] * 4), "the number of texts is 4: at most 3 (--max-texts)"),
    "none": (dict(prompt=[]), "prompt: List should have at least 1 item"),
    "tokens": (dict(prompt=[1, 2]), "prompt: [1, 2] is no prompt: expected a string, or a list of strings"),
    "ours": (dict(extra_body={"decoding": "beam"}), "decoding is 'beam', expected one of single-pass"),
    "unknown": (dict(extra_body={"nbest": 2}), "unknown key 'nbest', expected some of "),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_answered(client, name):
    given, message = BAD[name]
    with pytest.raises(openai.BadRequestError) as raised:
        client.completions.create(**{"model": NAME, "prompt": "how"} | given)
    assert raised.value.body["message"].startswith(message) or message in raised.value.body["message"]
    assert raised.value.type == "invalid_request_error" and raised.value.code is None


def test_another_model_and_another_key(client, server):
    with pytest.raises(openai.NotFoundError, match=f"there is no model 'gpt' here, only '{NAME}'"):
        client.completions.create(model="gpt", prompt="how")
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model=NAME, messages=[])
    with pytest.raises(openai.AuthenticationError) as raised:
        client.with_options(api_key="wrong").completions.create(model=NAME, prompt="how")
    assert raised.value.code == "invalid_api_key"


def test_models(client):
    assert [model.id for model in client.models.list()] == [NAME]
    assert client.models.retrieve(NAME).id == NAME
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("org/other")


def test_a_full_server_is_an_error_of_the_server():
    generator = FakeGenerator()
    with serving(generator) as running:
        running.batcher.close()
        client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="any", max_retries=0)
        with client, pytest.raises(openai.InternalServerError) as raised:
            client.completions.create(model="model", prompt="how")
        assert raised.value.status_code == 503 and raised.value.body["type"] == "server_error"
        assert raised.value.response.headers["Retry-After"] == "1"


def test_all_options_but_those_with_another_name_are_there(server):
    ours = set(Decoding.__dataclass_fields__) - {"nbest", "max_length"}
    assert set(CompletionRequest.model_fields) == ours | {"model", "prompt", "n", "max_tokens"}
    status, _, body = server.ask("GET", "/openapi.json", authorization="Bearer the-key")
    path = json.loads(body)["paths"]["/v1/completions"]["post"]
    assert status == 200 and "prompt" in path["requestBody"]["content"]["application/json"]["schema"]["properties"]
    assert path["responses"]["400"]["content"]["application/json"]["schema"]["$ref"].endswith("/CompletionError")
