"""A client of the server, of the standard library alone.

client = Client("http://127.0.0.1:8000")
client.generate(["how do i learn the guitar"], decoding="mist")
"""

import asyncio
import dataclasses
import itertools
import json
import math
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Sized
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mist_fairseq.generate.decoding import Decoding
    from mist_fairseq.generate.text_generator import Lengths, Text

_LONGEST_WAIT = 60.0  # seconds that a server may ask for before another try


class ServerError(RuntimeError):
    """The server refused a request, or failed; with its own message.

    Attributes:
        status: HTTP's, such as 422 for a wrong option.
    """

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


class Client:
    """Asks a server as if it were a generator.

    Args:
        url: the server's, with the path below which a proxy has it.
        api_key: one of those that the server knows, if it asks for one.
        timeout: seconds to wait for an answer.
        retries: how often a request is sent again that the server has no room for (503), after as long as it says.
    """

    def __init__(self, url: str, api_key: str | None = None, timeout: float = 60.0, retries: int = 3):
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"url is {url!r}, expected one like http://127.0.0.1:8000")
        self.url, self.timeout, self.retries = url.rstrip("/"), timeout, retries
        self._headers = {"Content-Type": "application/json"}
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {api_key}"

    def generate(
        self,
        texts: "str | Iterable[Text]",
        *,
        decoding: "str | Decoding" = "single-pass",
        nbest: int = 1,
        lengths: "Lengths" = None,
        return_scores: bool = False,
        batch_size: int = 64,
        **options: Any,
    ) -> Any:
        """Generate for raw texts, in their order; all is as of the generators' ``generate``.

        A single string has a single answer. *batch_size* is the texts of a request, of which the server takes
        ``--max-texts``. ``Output`` with *return_scores* needs numpy. An empty text is an error.

        Raises:
            ServerError: the server refused a request; says why.
            ValueError: there are more or fewer lengths than texts.
            OSError: it cannot be reached, or gave no answer in time.
        """
        if isinstance(texts, str):
            options |= {"decoding": decoding, "nbest": nbest, "lengths": lengths, "return_scores": return_scores}
            return self.generate([texts], **options)[0]
        if isinstance(texts, Sized) and isinstance(lengths, Sized) and len(texts) != len(lengths):
            raise ValueError(f"{len(lengths)} lengths for {len(texts)} texts: give one for each, or a single number")
        if dataclasses.is_dataclass(decoding):
            options = dataclasses.asdict(decoding)
        else:
            options |= {"decoding": decoding, "nbest": nbest}
        outputs = self._outputs(iter(texts), lengths, batch_size, options | {"details": return_scores})
        if options["nbest"] == 1:
            outputs = (ranked or [{"text": "", "score": -math.inf}] for ranked in outputs)
        make = _output if return_scores else lambda output: output["text"]
        answers = ([make(output) for output in ranked] for ranked in outputs)
        wanted: Iterator[Any] = (ranked[0] for ranked in answers) if options["nbest"] == 1 else answers
        return list(wanted) if isinstance(texts, Sized) else wanted

    async def agenerate(self, texts: "str | Iterable[Text]", **options: Any) -> Any:
        """``generate`` in a thread, so that an event loop goes on meanwhile; an iterator is read to its end."""
        given = texts if isinstance(texts, Sized) else list(texts)
        return await asyncio.to_thread(self.generate, given, **options)

    def info(self) -> dict[str, Any]:
        """What the server says of itself and its model."""
        return self._ask("/info")

    def is_ready(self) -> bool:
        """Whether the server is there and takes requests."""
        try:
            self._ask("/ready", retries=0)
        except (OSError, ServerError):
            return False
        return True

    def _outputs(self, texts: Iterator[Any], lengths: Any, size: int, request: dict[str, Any]) -> Iterator[list[dict]]:
        each = itertools.repeat(lengths) if lengths is None or isinstance(lengths, int) else iter(lengths)
        while batch := list(itertools.islice(texts, size)):
            request |= {"texts": batch, "lengths": lengths}
            if not isinstance(each, itertools.repeat):
                request["lengths"] = list(itertools.islice(each, len(batch)))
            yield from self._ask("/generate", request)["outputs"]

    def _ask(self, path: str, content: dict[str, Any] | None = None, retries: int | None = None) -> dict[str, Any]:
        body = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(self.url + path, body, self._headers)  # noqa: S310 - __init__ checks the scheme
        for left in reversed(range(1 + (self.retries if retries is None else retries))):
            try:
                with urllib.request.urlopen(request, timeout=self.timeout) as response:  # noqa: S310
                    return json.load(response)
            except urllib.error.HTTPError as error:
                with error:
                    if error.code != 503 or not left:
                        raise ServerError(error.code, _message(error)) from None
                    time.sleep(_wait(error))
        raise AssertionError("the last try answers or raises")


def _message(error: urllib.error.HTTPError) -> str:
    """The server's, or what a proxy in front of it says."""
    body = error.read()
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return f"{error.code} {error.reason}"


def _wait(error: urllib.error.HTTPError) -> float:
    """Seconds until the next try."""
    given = error.headers.get("Retry-After", "")
    return min(float(given), _LONGEST_WAIT) if given.isdecimal() else 1.0


def _output(answer: dict[str, Any]) -> Any:
    """The ``Output`` of an answer; JSON has no numbers as keys."""
    from mist_fairseq.generate.text_generator import Output

    scores = {int(length): share for length, share in answer.pop("length_scores", {}).items()}
    return Output(**answer, length_scores=scores)
