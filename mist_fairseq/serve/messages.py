"""The JSON of requests and answers, made from ``Decoding``, the options of generation, and ``Output``, an answer."""

from collections.abc import Container, Mapping
from dataclasses import fields
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, WrapValidator, create_model, model_validator
from starlette.responses import JSONResponse

from mist_fairseq.generate.decoding import Decoding
from mist_fairseq.generate.text_generator import Output


def described(noun: str, expected: str) -> WrapValidator:
    """Report any failure of a field in one plain sentence, not in one for each type that it might have had."""

    def validate(value, check):
        try:
            return check(value)
        except ValidationError:
            raise ValueError(f"{value!r:.60} is no {noun}: expected {expected}") from None

    return WrapValidator(validate)


Text = Annotated[str | list[str], described("text", "a string, or a list of strings such as a pair")]
_Id = Annotated[
    Annotated[str, Field(max_length=200)] | int | None,
    described("id", "a string of at most 200 characters, or a whole number"),
]
_Lengths = Annotated[
    int | float | list[int | float | None] | None,
    described("length", "a whole number, or a list with one or null for each text"),
]


def decoding_options(name: str, leave_out: Container[str] = ()) -> Any:
    """A model of the fields of ``Decoding``, with its types and defaults, to derive from."""
    options: Any = {
        option.name: (option.type, Field(option.default, description=option.metadata["help"]))
        for option in fields(Decoding)
        if option.name not in leave_out
    }
    return create_model(name, **options)


_Options: Any = decoding_options("_Options")


class GenerateRequest(_Options):
    """Texts, and how to generate."""

    model_config = ConfigDict(extra="forbid", strict=True)

    text: Text | None = Field(None, description="One text, or a list of texts to be read as one, such as a pair.")
    texts: list[Text] | None = Field(None, description="Several, in place of text.", min_length=1)
    lengths: _Lengths = Field(None, description="For all texts or each, in length_unit; null for the predicted one.")
    details: bool = Field(False, description="Answer with tokens, their scores, every pass and predicted lengths.")
    id: _Id = Field(None, description="Comes back as it is.")

    @model_validator(mode="after")
    def _check_one_is_given(self):
        if (self.text is None) == (self.texts is None):
            raise ValueError("expected either text, a single one, or texts, a list")
        return self

    def all_texts(self) -> list[str | list[str]]:
        """The texts, whichever way they were given."""
        return [self.text] if self.texts is None else self.texts  # type: ignore[list-item] # one of them is given

    def make_decoding(self) -> Decoding:
        """How to generate; a ValueError names an option that cannot work."""
        return Decoding(**{option.name: getattr(self, option.name) for option in fields(Decoding)})


class GenerateResponse(BaseModel):
    """Answers to all texts, in their order."""

    id: str | int | None = Field(description="The request's.")
    outputs: list[list[Output]] = Field(
        description="Of each text at most nbest answers, best first; without details only text, score and cut."
    )


class Error(BaseModel):
    """What was wrong; the body of every answer whose status is not 200, but below ``/v1``."""

    error: str


class _CompletionProblem(BaseModel):
    message: str
    type: Literal["invalid_request_error", "server_error"]
    param: None = None
    code: str | None = None


class CompletionError(BaseModel):
    """The same below ``/v1``, as OpenAI's clients read it."""

    error: _CompletionProblem


def error_response(path: str, status: int, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """The answer that says what was wrong with a request for some path."""
    if not path.startswith("/v1/"):
        return JSONResponse({"error": message}, status, headers)
    status = 400 if status == 422 else status
    kind: Any = "invalid_request_error" if status < 500 else "server_error"
    problem = _CompletionProblem(message=message, type=kind, code="invalid_api_key" if status == 401 else None)
    return JSONResponse(CompletionError(error=problem).model_dump(), status, headers)


def body_schema(request: type[BaseModel]) -> dict[str, Any]:
    """What FastAPI adds to the description of a route that reads its body itself."""
    schema = request.model_json_schema()
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def explain(problem: Exception, content: dict, request: type[BaseModel] = GenerateRequest) -> str:
    """Say in one short line what is wrong with a request, whose validation raised *problem*."""
    if isinstance(problem, ValidationError):
        return "; ".join(_explain_one(error, request) for error in problem.errors()[:3])  # there may be thousands
    message = str(problem)
    if content.get("texts") is None:
        message = message.replace("texts[0]", "text", 1)
    return message if len(message) <= 300 else f"{message[:80]}...{message[-180:]}"  # the middle is a long value


def _explain_one(error: Any, request: type[BaseModel]) -> str:
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error["loc"])[1:]
    if error["type"] == "extra_forbidden":
        return f"unknown key {error['loc'][-1]!r:.60}, expected some of {', '.join(request.model_fields)}"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] != "value_error":
        message += f", given {error['input']!r:.60}"
    return f"{place}: {message}" if place else message
