"""Texts through a model in several processes, the answers in order."""

import logging
import math
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

from mist_fairseq.generate.decoding import Decoding
from mist_fairseq.generate.text_generator import Output, Text, TextGenerator
from mist_fairseq.hub.loading import load_generator


class Answer(NamedTuple):
    """One of a text's."""

    text: str
    score: float | None  #: None where there is no answer
    length: int  #: tokens


class Answers(NamedTuple):
    """Those to a text, best first."""

    best: list[Answer]
    cut: bool  #: whether the text was longer than the model reads


@dataclass(frozen=True)
class Model:
    """A model, and how it is to generate."""

    folder: str
    options: dict[str, Any]  #: of ``load_generator``
    decoding: Decoding = Decoding()
    batch_size: int = 64

    def load(self) -> TextGenerator:
        """Its generator, which stays silent about single chunks: who counts all rows says what is to be said."""
        logging.getLogger("mist_fairseq.generate").setLevel(logging.ERROR)
        generator = load_generator(self.folder, **self.options)
        _ = generator.engine  # built now
        return generator

    def answer(self, generator: TextGenerator, texts: list[Text]) -> list[Answers]:
        """The answers to each text."""
        given: Any = {"decoding": self.decoding, "batch_size": self.batch_size, "return_scores": True}
        outputs = generator.generate(texts, **given, progress=False)
        return [_answers(output if isinstance(output, list) else [output]) for output in outputs]


def _answers(outputs: list[Output]) -> Answers:
    scores = [round(output.score, 6) if math.isfinite(output.score) else None for output in outputs]
    best = [Answer(output.text, score, len(output.tokens)) for output, score in zip(outputs, scores)]
    return Answers(best, any(output.cut for output in outputs))


class HasTexts(Protocol):
    """What goes to a worker as one."""

    @property
    def texts(self) -> list[Text]:
        """To be answered."""


C = TypeVar("C", bound=HasTexts)


def answer_all(chunks: Iterator[C], model: Model, workers: int) -> Generator[tuple[C, list[Answers]], None, None]:
    """Give each chunk with the answers to its texts, in order; at most twice as many as workers are on the way.

    One worker is this process. Several are processes of their own, and end with the iterator: close it.

    Raises:
        ChildProcessError: a worker died.
        ImportError, OSError, ValueError: the model cannot be loaded, or generate so.
    """
    if workers == 1:
        generator = model.load()
        for chunk in chunks:
            yield chunk, model.answer(generator, chunk.texts)
        return
    spawn = multiprocessing.get_context("spawn")  # a process of several threads must not be forked
    waiting: deque[tuple[C, Future[list[Answers]]]] = deque()
    with ProcessPoolExecutor(workers, spawn, _start, (model,)) as pool:
        try:
            for chunk in chunks:
                waiting.append((chunk, pool.submit(_run, chunk.texts)))
                if len(waiting) == 2 * workers:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        except BrokenProcessPool as error:
            advice = "was it killed for want of memory? Then give fewer --workers or a smaller --batch-size"
            raise ChildProcessError(f"a worker died: {advice}") from error
        finally:
            if waiting:  # nobody wants it any more
                for process in multiprocessing.active_children():
                    process.kill()


# Of a worker's process.
_model: Model
_generator: TextGenerator | Exception


def _start(model: Model) -> None:
    global _model, _generator
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _model, _generator = model, _load(model)


def _load(model: Model) -> TextGenerator | Exception:
    """The error is for ``_run`` to raise, where it goes to the process that started this one."""
    try:
        return model.load()
    except (ImportError, OSError, ValueError) as error:
        return error


def _end_with_parent() -> None:
    """A killed process would leave its workers waiting for ever."""
    if parent := multiprocessing.parent_process():
        parent.join()
    os._exit(1)


def _run(texts: list[Text]) -> list[Answers]:
    if isinstance(_generator, Exception):
        raise _generator
    return _model.answer(_generator, texts)
