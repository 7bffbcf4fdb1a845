"""The JSON of requests and answers, made from ``Decoding``, the options of generation, and ``Output``, an answer."""

from dataclasses import fields
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, WrapValidator, create_model, model_validator

from mist_fairseq.generate.decoding import Decoding
from mist_fairseq.generate.text_generator import Output


def _described(noun: str, expected: str) -> WrapValidator:
    """Report any failure of a field in one plain sentence, not in one for each type that it might have had."""

    def validate(value, check):
        try:
            return check(value)
        except ValidationError:
            raise ValueError(f"{value!r:.60} is no {noun}: expected {expected}") from None

    return WrapValidator(validate)


_Text = Annotated[str | list[str], _described("text", "a string, or a list of strings such as a pair")]
_Id = Annotated[
    Annotated[str, Field(max_length=200)] | int | None,
    _described("id", "a string of at most 200 characters, or a whole number"),
]
_Lengths = Annotated[
    int | float | list[int | float | None] | None,
    _described("length", "a whole number, or a list with one or null for each text"),
]

_options: Any = {
    option.name: (option.type, Field(option.default, description=option.metadata["help"]))
    for option in fields(Decoding)
}
_Options: Any = create_model("_Options", **_options)


class GenerateRequest(_Options):
    """Texts, and how to generate."""  # the options are the fields of ``Decoding``, with its types and defaults

    model_config = ConfigDict(extra="forbid", strict=True)

    text: _Text | None = Field(None, description="One text, or a list of texts to be read as one, such as a pair.")
    texts: list[_Text] | None = Field(None, description="Several, in place of text.", min_length=1)
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
    """What was wrong; the body of every answer whose status is not 200."""

    error: str


def explain(problem: Exception, content: dict) -> str:
    """Say in one short line what is wrong with a request, whose validation raised *problem*."""
    if isinstance(problem, ValidationError):
        return "; ".join(map(_explain_one, problem.errors()[:3]))  # there may be thousands
    message = str(problem)
    if content.get("texts") is None:
        message = message.replace("texts[0]", "text", 1)
    return message if len(message) <= 300 else f"{message[:80]}...{message[-180:]}"  # the middle is a long value


def _explain_one(error: Any) -> str:
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error["loc"])[1:]
    if error["type"] == "extra_forbidden":
        return f"unknown key {error['loc'][-1]!r:.60}, expected some of {', '.join(GenerateRequest.model_fields)}"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] != "value_error":
        message += f", given {error['input']!r:.60}"
    return f"{place}: {message}" if place else message
