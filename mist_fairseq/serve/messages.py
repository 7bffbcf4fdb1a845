"""JSON of requests and answers."""

from typing import Annotated

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from mist_fairseq.generate.generator import DECODINGS, Output

_SHOWN = 3  # errors of a request, which may have thousands
_LONGEST_ID = 200  # characters


def shown(value) -> str:
    """A value in a message, short."""
    text = repr(value)
    return text if len(text) < 60 else text[:57] + "..."


def shortened(message: str) -> str:
    """Without the middle if it is long, as it shows a value; what was expected stands at its end."""
    return message if len(message) <= 300 else f"{message[:80]}...{message[-180:]}"


def _text_or_pair(value):
    if not isinstance(value, str) and not (isinstance(value, list) and all(isinstance(part, str) for part in value)):
        raise ValueError(f"{shown(value)} is no text: expected a string, or a list of strings such as a pair")
    return value


def _id(value):
    if not (value is None or type(value) is int or (isinstance(value, str) and len(value) <= _LONGEST_ID)):
        raise ValueError(
            f"{shown(value)} is no id: expected a string of at most {_LONGEST_ID} characters, or a whole number"
        )
    if isinstance(value, str):
        value.encode()  # half a character, which JSON can write, has no way back
    return value


_Text = Annotated[str | list[str], BeforeValidator(_text_or_pair)]
_Id = Annotated[Annotated[str, Field(max_length=_LONGEST_ID)] | int | None, BeforeValidator(_id)]


class GenerateRequest(BaseModel):
    """Texts, and how to generate; the options of ``TextGenerator.generate``."""

    model_config = ConfigDict(extra="forbid", strict=True)

    text: _Text | None = Field(None, description="One text, or a list of texts to be read as one, such as a pair.")
    texts: list[_Text] | None = Field(None, description="Several, in place of text.")
    decoding: str = Field("single-pass", description=f"One of {', '.join(DECODINGS)}.")
    iterations: int | None = Field(None, description="Passes; by default 1 for single-pass, else 3.")
    nbest: int = Field(1, description="Answers to each text.")
    length_beam: int | None = Field(None, description="Decode this many of the likeliest lengths; by default nbest.")
    lengths: int | list[int | None] | None = Field(
        None, description="In tokens, one for all texts or one for each; null for the predicted one."
    )
    min_length: int = Field(1, description="Of predicted lengths, in tokens.")
    max_length: int | None = Field(None, description="Of predicted lengths, in tokens.")
    keep_repeats: bool = Field(False, description="Leave directly repeated words in.")
    details: bool = Field(False, description="Answer with tokens, their scores, every pass and predicted lengths.")
    id: _Id = Field(None, description="Comes back as it is.")

    @model_validator(mode="after")
    def _one_of_both(self):
        if (self.text is None) == (self.texts is None):
            raise ValueError("expected either text, a single one, or texts, a list")
        return self

    def all_texts(self) -> list[str | list[str]]:
        """Whichever way they were given."""
        if self.texts is not None:
            return self.texts
        return [] if self.text is None else [self.text]

    def name(self, i: int) -> str:
        """How the request calls one of them."""
        return "text" if self.texts is None else f"texts[{i}]"


class Answer(BaseModel):
    """One answer to a text."""

    text: str
    score: float = Field(description="Mean log-probability of its tokens.")


class DetailedAnswer(Answer):
    """With what ``details`` asks for."""

    tokens: list[str] = Field(description="As the vocabulary writes them.")
    token_scores: list[float] = Field(description="Log-probability of each token.")
    steps: int = Field(description="Passes over the output.")
    history: list[str] = Field(description="The text after each pass.")
    length_scores: dict[int, float] = Field(description="Length in tokens -> probability, likeliest first.")
    cut: bool = Field(description="Whether the text was longer than the model reads and lost its end.")


class GenerateResponse(BaseModel):
    """Answers to all texts, in their order."""

    id: str | int | None = Field(description="The request's.")
    outputs: list[list[DetailedAnswer | Answer]] = Field(description="Of each text nbest answers, best first.")


class Error(BaseModel):
    """Of all answers but those of status 200."""

    error: str


def answer(output: Output, details: bool) -> dict:
    """``DetailedAnswer`` or ``Answer``, for JSON."""
    return vars(output) if details else {"text": output.text, "score": output.score}


def explain(error: RequestValidationError) -> tuple[int, str]:
    """Status and message of a body that is no ``GenerateRequest``."""
    found = error.errors()
    for each in found:
        if each["type"] == "json_invalid":
            return 400, f"the body is not JSON: {each['ctx']['error']} at character {each['loc'][-1]}"
    if any(each["loc"] == ("body",) and each["type"] == "missing" for each in found):
        return 400, "the body is empty, expected a JSON object"
    messages = [_explain_one(each) for each in found[:_SHOWN]]
    if len(found) > _SHOWN:
        messages.append(f"and {len(found) - _SHOWN} more")
    return 422, "; ".join(messages)


def unreadable(cause: BaseException | None) -> str:
    """Message of a body that could not be parsed, because of what."""
    reason = str(cause or "").partition(";")[0]  # after it Python's advice, which is for the server
    return "the body is not JSON in UTF-8" + (f": {reason}" if reason else "")


def _explain_one(error: dict) -> str:
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error["loc"][1:])[1:]
    if error["type"] == "extra_forbidden":
        return f"unknown key {shown(error['loc'][-1])}, expected some of {', '.join(GenerateRequest.model_fields)}"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] != "value_error":
        message += f", given {shown(error['input'])}"
    return f"{place}: {message}" if place else message
