"""A generator without a model, and the server around it, in a thread or a process of its own.

Not a line of it needs torch, so that such a process starts quickly.
"""

import asyncio
import contextlib
import http.client
import json
import socket
import string
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

from mist_fairseq.generate.text_generator import Output, TextGenerator
from mist_fairseq.mist.config import PositionLimits
from mist_fairseq.serve.app import create_app
from mist_fairseq.serve.command import Server, listen
from mist_fairseq.serve.limits import Limits
from mist_fairseq.text.tokenizer import CLS, MASK, PAD, SEP, UNK
from mist_fairseq.text.wordpiece import wordpiece_tokenizer

ROOT = Path(__file__).parents[2]
DEADLINE = 60  # seconds after which something that must happen counts as not happening

WORDS = "how can learn the guitar fast what is best way to in of and who why when where do you it".split()
_LETTERS = string.ascii_lowercase + string.digits
_VOCABULARY = [PAD, UNK, CLS, SEP, MASK, *string.punctuation, *_LETTERS, *("##" + c for c in _LETTERS), *WORDS]

# Starts a server around the fake; arguments are the command's.
COMMAND = [
    sys.executable,
    "-c",
    """
import sys
sys.modules["torch"] = sys.modules["fairseq"] = None  # as if they were not installed
import threading
from mist_fairseq.serve.command import main
from tests.serve.helpers import FakeGenerator

generator = FakeGenerator()
if "--closed" in sys.argv:  # until a line comes in
    sys.argv.remove("--closed")
    generator.gate.clear()
    threading.Thread(target=lambda: sys.stdin.readline() and generator.gate.set(), daemon=True).start()
if "--slow" in sys.argv:
    sys.argv.remove("--slow")
    generator.seconds = 0.02
main([".", "--port", "0", *sys.argv[1:]], generator)
""",
]


class FakeGenerator(TextGenerator):
    """Answers with the source's tokens in reverse order, which no other text has.

    A pass turns round one more token, so that passes differ. Special words: "guitar" raises an exception.

    Attributes:
        batches: sources of every batch, as lists of ids, failed ones too.
        gate: the model waits until it is set.
        seconds: what every batch takes at least.
    """

    def __init__(self):
        self.tokenizer, self.limits = wordpiece_tokenizer(_VOCABULARY), PositionLimits(source=40, target=40)
        self.engine = SimpleNamespace(graph=None)
        self.batches: list[list[list[int]]] = []
        self.entered = 0
        self.gate = threading.Event()
        self.gate.set()
        self.seconds = 0.0

    def _generate_batch(self, sources, decoding, details):
        self.entered += 1
        assert self.gate.wait(DEADLINE)
        time.sleep(self.seconds)
        self.batches.append([source.ids for source in sources])
        assert len({source.length is None for source in sources}) == 1
        if any(self.tokenizer.indices["guitar"] in source.ids for source in sources):
            raise RuntimeError("a string of the guitar is broken")
        return [self._answers(source, decoding) for source in sources]

    def _answers(self, source, decoding):
        ids, decode = source.ids[1:-1], self.tokenizer.decode
        length = source.length or len(ids)
        outputs = []
        for rank in range(decoding.nbest):
            final = ids[::-1][: length + rank]
            history = [ids[: len(final) - i] + final[len(final) - i :] for i in range(decoding.passes)]
            history[-1] = final
            output = Output(decode(final), -0.25 - rank, steps=decoding.passes, cut=source.cut)
            output.tokens = [self.tokenizer.symbols[index] for index in final]
            output.token_scores = [-0.1 * (1 + (index + i) % 20) for i, index in enumerate(final)]
            output.history = [decode(step) for step in history]
            output.length_scores = {} if source.length else {length: 0.625, length + 1: 0.25, length + 2: 0.125}
            outputs.append(output)
        return outputs


_right = FakeGenerator()


def expected(text, **options) -> str:
    """The one right answer."""
    return _right.generate([text], **options)[0]


def answered(text: str, id: object = None) -> tuple[int, dict]:
    """Status and JSON of an answer without details."""
    return 200, {"id": id, "outputs": [[{"text": text, "score": -0.25, "cut": False}]]}


def distinct(number: int) -> list[str]:
    """Texts of which no two have the same answer."""
    count = len(WORDS)
    texts = [f"{WORDS[i % count]} {WORDS[i // count % count]} it {'you ' * (i % 7)}{i}" for i in range(number)]
    return [text.replace("guitar", "best") for text in texts]


def eventually(condition: Callable[[], object]):
    """What *condition* gives, as soon as it is true."""
    end = time.monotonic() + DEADLINE
    while not (result := condition()):
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.005)
    return result


def send_raw(port: int, body: bytes, length: int | None = None) -> socket.socket:
    """A connection to which a request was sent, whose body is announced to have some length."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=DEADLINE)
    head = "POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    connection.sendall(f"{head}Content-Length: {length or len(body)}\r\n\r\n".encode() + body)
    return connection


@dataclass
class Running:
    """A server that runs.

    Attributes:
        server: uvicorn's.
        port: on 127.0.0.1.
    """

    server: Server
    port: int
    thread: threading.Thread

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def batcher(self):
        return self.server.config.app.state.batcher

    def ask(self, method: str, path: str, body: bytes | str | None = None, **headers: str):
        """Status, headers and body of an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE)
        with contextlib.closing(connection):
            connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
            response = connection.getresponse()
            return response.status, response.headers, response.read()

    def get(self, path: str, **headers: str) -> tuple[int, dict]:
        """Status and JSON of an answer to a GET."""
        status, _, answer = self.ask("GET", path, **headers)
        return status, json.loads(answer)

    def post(self, body, **more) -> tuple[int, dict]:
        """Status and JSON of an answer to ``/generate``."""
        text = body if isinstance(body, (bytes, str)) else json.dumps({**body, **more})
        status, _, answer = self.ask("POST", "/generate", text, content_type="application/json")
        return status, json.loads(answer)

    def metrics(self) -> dict[str, float]:
        """Samples by name and labels."""
        lines = self.ask("GET", "/metrics")[2].decode().splitlines()
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}


@contextlib.contextmanager
def serving(generator: TextGenerator, keys=(), origins=(), info=None, **limits) -> Iterator[Running]:
    """A server on a free port; it is stopped, gracefully, at the end."""
    limits = Limits(**limits)
    listening = listen("127.0.0.1", 0)
    server = Server(create_app(generator, limits, info, keys=keys, origins=origins), limits)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listening])))
    thread.start()
    try:
        eventually(lambda: server.started)
        yield Running(server, listening.getsockname()[1], thread)
    finally:
        server.should_exit = True
        thread.join(DEADLINE)
        assert not thread.is_alive()
