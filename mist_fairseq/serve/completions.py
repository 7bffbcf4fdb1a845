"""The part of OpenAI's completions that a model without sampling has: ``/v1/completions`` and ``/v1/models``."""

import re
import time
import uuid
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from mist_fairseq.generate.text_generator import Output
from mist_fairseq.serve.answering import Answerer
from mist_fairseq.serve.messages import GenerateRequest, body_schema, decoding_options, described, explain
from mist_fairseq.serve.middleware import read_json

# What OpenAI's parameters must be if they are given, and why; what they are to another server changes no answer here.
_FIXED: dict[str, tuple[list[Any], str]] = {
    "temperature": ([0], "nothing is sampled"),
    "top_p": ([1], "nothing is sampled"),
    "frequency_penalty": ([0], "there is none"),
    "presence_penalty": ([0], "there is none"),
    "logit_bias": ([{}], "there is none"),
    "logprobs": ([0, 1], "only the likeliest token is known"),
    "echo": ([False], "an answer is given without its text"),
    "stream": ([False], "all words are made at once"),
    "stop": ([[]], "all words are made at once"),
    "suffix": ([""], "texts have no gaps"),
}
_IGNORED = ("best_of", "seed", "stream_options", "user")

_RENAMED = {"nbest": "n", "max_length": "max_tokens"}  # our options -> OpenAI's
_Prompt = Annotated[
    str | list[str | list[str]], described("prompt", "a string, or a list of strings, of which one may be a pair")
]
_Options: Any = decoding_options("_CompletionOptions", leave_out=_RENAMED)


class CompletionRequest(_Options):
    """What is read of OpenAI's request, and our options: what its clients send as ``extra_body``."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str = Field(description="Its name, as in /v1/models.")
    prompt: _Prompt = Field(description="One text, or a list of texts; one of these may be a pair.")
    n: int | None = Field(None, description="Answers to each text.")
    max_tokens: int | None = Field(None, description="Most tokens of an answer; by default as many as it takes.")

    def ours(self) -> GenerateRequest:
        """The same request as of ``/generate``."""
        options = self.model_dump(exclude={"model", "prompt", "n", "max_tokens"})
        texts = {"text" if isinstance(self.prompt, str) else "texts": self.prompt}
        return GenerateRequest(**texts, **options, nbest=1 if self.n is None else self.n, max_length=self.max_tokens)


class Logprobs(BaseModel):
    """Of the tokens of an answer."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None = None
    text_offset: None = None


class Choice(BaseModel):
    """An answer; *index* is the text's number times n, plus the answer's rank."""

    text: str
    index: int
    logprobs: Logprobs | None
    finish_reason: Literal["stop"] = "stop"


class Usage(BaseModel):
    """Tokens, special ones of the prompts counted."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Completion(BaseModel):
    """OpenAI's answer."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage


class Model(BaseModel):
    """OpenAI's description of a model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "mist_fairseq"


class Models(BaseModel):
    """The only one."""

    object: Literal["list"] = "list"
    data: list[Model]


def completions(answerer: Answerer, name: str) -> APIRouter:
    """The routes; *name* is the model's."""
    router, model = APIRouter(prefix="/v1"), Model(id=name, created=int(time.time()))

    @router.get("/models")
    async def list_models() -> Models:
        """The model that is served."""
        return Models(data=[model])

    @router.get("/models/{asked:path}")
    async def show_model(asked: str) -> Model:
        """The model that is served."""
        _check_name(asked, name)
        return model

    @router.post("/completions", openapi_extra=body_schema(CompletionRequest))
    async def complete(request: Request) -> Completion:
        """Generate for one text or several, as OpenAI's clients ask and read it."""
        content = await read_json(request, answerer.limits, answerer.batcher)
        logprobs = content.get("logprobs")
        try:
            _drop_foreign(content)
            body = CompletionRequest.model_validate(content)
            _check_name(body.model, name)
            ours = body.ours()
            sources, decoding = await answerer.read(ours)
        except (TypeError, ValueError) as problem:
            raise HTTPException(422, _renamed(explain(problem, content, CompletionRequest))) from problem
        outputs = await answerer.run(request, sources, decoding)
        choices = [
            Choice(text=output.text, index=i * decoding.nbest + rank, logprobs=_logprobs(output, logprobs))
            for i, ranked in enumerate(outputs)
            for rank, output in enumerate(ranked)
        ]
        read = sum(len(source.ids) for source in sources)
        made = sum(len(output.tokens) for ranked in outputs for output in ranked)
        usage = Usage(prompt_tokens=read, completion_tokens=made, total_tokens=read + made)
        number = f"cmpl-{uuid.uuid4().hex}"
        return Completion(id=number, created=int(time.time()), model=name, choices=choices, usage=usage)

    return router


def _check_name(asked: str, name: str):
    if asked != name:
        raise HTTPException(404, f"there is no model {asked!r:.100} here, only {name!r}")


def _drop_foreign(content: dict[str, Any]):
    """Remove what changes no answer; ValueError: it would have to."""
    for parameter in _IGNORED:
        content.pop(parameter, None)
    for parameter, (allowed, reason) in _FIXED.items():
        value = content.pop(parameter, None)
        if value is not None and value not in allowed:
            expected = " or ".join(map(repr, allowed))
            raise ValueError(f"{parameter} is {value!r:.60}, expected none or {expected}: {reason}")


def _renamed(message: str) -> str:
    """A message about what is ours under OpenAI's names; names of the server's options stay."""
    message = re.sub(r"(^|characters of )texts?\b", r"\1prompt", message)
    return re.sub(r"(?<![\w'-])(nbest|max_length)\b", lambda found: _RENAMED[found[1]], message)


def _logprobs(output: Output, asked: int | None) -> Logprobs | None:
    if asked is None:
        return None
    top = [{token: score} for token, score in zip(output.tokens, output.token_scores)] if asked else None
    return Logprobs(tokens=output.tokens, token_logprobs=output.token_scores, top_logprobs=top)
