"""A generator without a model, and the server around it, in a thread or a process of its own.

Not a line of it needs torch, so that such a process starts quickly.
"""

import asyncio
import contextlib
import http.client
import json
import string
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from mist_fairseq.generate.generator import Hypothesis, TextGenerator
from mist_fairseq.serve.app import create_app
from mist_fairseq.serve.command import Server, bind
from mist_fairseq.serve.limits import Limits
from mist_fairseq.text.tokenizer import CLS, MASK, PAD, SEP, UNK
from mist_fairseq.text.wordpiece import wordpiece_tokenizer

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
main([".", "--port", "0", *sys.argv[1:]], generator)
""",
]


class FakeGenerator(TextGenerator):
    """Answers with the source's tokens in reverse order, which no other text has.

    A pass turns round one more token, so that passes differ. Special words: "guitar" raises an exception.

    Attributes:
        batches: sources of every batch, as lists of ids, failed ones too.
        gate: the model waits until it is set.
    """

    def __init__(self):
        self._configure(wordpiece_tokenizer(_VOCABULARY), max_source=40, max_target=40)
        self.batches: list[list[list[int]]] = []
        self.entered = 0
        self.gate = threading.Event()
        self.gate.set()

    def _generate_batch(self, sources, decoding):
        self.entered += 1
        assert self.gate.wait(DEADLINE)
        self.batches.append([source.ids for source in sources])
        assert len({source.length is None for source in sources}) == 1
        if any(self.tokenizer.indices["guitar"] in source.ids for source in sources):
            raise RuntimeError("a string of the guitar is broken")
        return [self._answers(source, decoding) for source in sources]

    def _answers(self, source, decoding):
        ids = source.ids[1:-1]
        length = source.length or len(ids)
        hypotheses = []
        for rank in range(decoding.length_beam):
            final = ids[::-1][: length + rank]
            history = [ids[: len(final) - i] + final[len(final) - i :] for i in range(decoding.iterations)]
            history[-1] = final
            scores = [-0.1 * (1 + (index + i) % 20) for i, index in enumerate(final)]
            hypotheses.append(Hypothesis(final, scores, -0.25 - rank, decoding.iterations, history))
        return hypotheses, {} if source.length else {length: 0.625, length + 1: 0.25, length + 2: 0.125}


def expected(text, **options) -> str:
    """The one right answer."""
    return FakeGenerator().generate([text], **options)[0]


def eventually(condition: Callable[[], object]):
    """What *condition* gives, as soon as it is true."""
    end = time.monotonic() + DEADLINE
    while not (found := condition()):
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.005)
    return found


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
def serving(generator: TextGenerator, **limits) -> Iterator[Running]:
    """A server on a free port; it is stopped, gracefully, at the end."""
    limits = Limits(**limits)
    bound = bind("127.0.0.1", 0)
    server = Server(create_app(generator, limits), limits)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([bound])))
    thread.start()
    try:
        eventually(lambda: server.started)
        yield Running(server, bound.getsockname()[1], thread)
    finally:
        server.should_exit = True
        thread.join(DEADLINE)
        assert not thread.is_alive()
