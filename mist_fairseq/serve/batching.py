"""Texts of concurrent requests share batches; the model has a thread of its own, all else runs in one event loop."""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.exceptions import HTTPException

from mist_fairseq.generate.decoding import Decoding
from mist_fairseq.generate.text_generator import Output, Source
from mist_fairseq.serve.limits import Limits

logger = logging.getLogger(__name__)

SECONDS = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30]  # a histogram's
_RETRY = {"Retry-After": "1"}  # seconds


@dataclass(eq=False)
class _Item:
    """A text that waits since the event loop's time *arrived*, and the future of its outputs."""

    source: Source
    decoding: Decoding
    arrived: float
    answer: asyncio.Future

    def may_join(self, other: "_Item") -> bool:
        return self.decoding == other.decoding and (self.source.length is None) == (other.source.length is None)


class Batcher:
    """Collects texts, and runs the model on batches of those that are decoded alike.

    A batch closes when it is full, or when its oldest text has waited for ``max_wait``; while the model is busy texts
    just collect. The oldest text always goes first. Where more texts go with it than fit, those nearest to its length
    do. A batch that fails is run again text by text, so that one bad text does not take its neighbours with it.

    An asynchronous context manager: leaving it refuses new texts and finishes those that wait.
    """

    def __init__(self, generate: Callable[..., list[list[Output]]], limits: Limits, metrics: CollectorRegistry):
        self.generate, self._limits = generate, limits  #: ``TextGenerator.generate_sources``
        self.running = 0  #: texts in the model now
        self._queue: list[_Item] = []
        self.closing = asyncio.Event()  #: set once new texts are refused
        self._changed = asyncio.Event()
        waiting = Gauge("mist_queue_texts", "Texts that wait for the model.", registry=metrics)
        waiting.set_function(lambda: len(self._queue))
        running = Gauge("mist_model_texts", "Texts in the model.", registry=metrics)
        running.set_function(lambda: self.running)
        self._answered = Counter("mist_texts", "Texts answered.", registry=metrics)
        buckets = [2**i for i in range(8)]
        self._sizes = Histogram("mist_batch_texts", "Texts of a batch.", buckets=buckets, registry=metrics)
        described = "Time in the model, a batch."
        self._seconds = Histogram("mist_model_seconds", described, buckets=SECONDS, registry=metrics)

    def __len__(self) -> int:
        """The number of texts that wait; those in the model do not count."""
        return len(self._queue)

    async def __aenter__(self):
        self._thread = ThreadPoolExecutor(1, "model")
        self._worker = asyncio.create_task(self._work())

    async def __aexit__(self, *_):
        self.close()
        await self._worker
        self._thread.shutdown()

    def close(self):
        """Refuse new texts from now on, and run those that wait at once. A signal's handler may call it."""
        self.closing.set()
        self._changed.set()

    def check_open(self):
        """Raise an HTTPException once new texts are refused."""
        if self.closing.is_set():
            raise HTTPException(503, "the server is shutting down", _RETRY)

    async def submit(self, sources: list[Source], decoding: Decoding) -> list[list[Output]]:
        """The outputs of each source. When the caller is cancelled its texts that have not started are dropped.

        HTTPException: new texts are refused, these do not fit into the queue, or the model failed for one of them.
        """
        self.check_open()
        waiting, most = len(self._queue), self._limits.max_queue
        if waiting + len(sources) > most:
            message = f"{waiting} texts wait already: {len(sources)} more are over the limit of {most} (--max-queue)"
            raise HTTPException(503, message, _RETRY)
        loop = asyncio.get_running_loop()
        items = [_Item(source, decoding, loop.time(), loop.create_future()) for source in sources]
        self._queue += items
        self._changed.set()
        try:
            answers = await asyncio.gather(*(item.answer for item in items))
        finally:
            for item in items:
                item.answer.cancel()
            self._remove(items)
        self._answered.inc(len(answers))
        return answers

    def _remove(self, items: list[_Item]):
        removed = set(items)
        self._queue = [item for item in self._queue if item not in removed]

    async def _work(self):
        while self._queue or not self.closing.is_set():
            batch, wait = self._next_batch()
            if batch and wait <= 0:
                self._remove(batch)
                await self._run(batch)
            else:
                self._changed.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), wait if batch else None)

    def _next_batch(self) -> tuple[list[_Item], float]:
        """The texts that go next, and the seconds until they do."""
        if not self._queue:
            return [], 0
        oldest = self._queue[0]
        capacity = max(1, self._limits.max_batch // oldest.decoding.candidates)
        alike = [item for item in self._queue if item.may_join(oldest)]
        # The sort is stable: of two texts of one length the older comes first.
        alike.sort(key=lambda item: abs(len(item.source.ids) - len(oldest.source.ids)))
        if self.closing.is_set() or len(alike) >= capacity:
            return alike[:capacity], 0
        return alike, oldest.arrived + self._limits.max_wait / 1000 - asyncio.get_running_loop().time()

    async def _run(self, batch: list[_Item]):
        loop = asyncio.get_running_loop()
        try:
            answers = await loop.run_in_executor(self._thread, self._call_model, batch)
        except Exception:
            if len(batch) > 1:
                logger.warning("a batch of %d texts failed: each is run alone", len(batch))
                for item in batch:
                    if not item.answer.done():
                        await self._run([item])
                return
            logger.exception("the model failed for a text of %d tokens", len(batch[0].source.ids))
            if not batch[0].answer.done():
                batch[0].answer.set_exception(HTTPException(500, "the model failed; the server's log says how"))
            return
        for item, outputs in zip(batch, answers):
            if not item.answer.done():  # done where it was cancelled
                item.answer.set_result(outputs)

    def _call_model(self, batch: list[_Item]) -> list[list[Output]]:
        self.running = len(batch)
        self._sizes.observe(len(batch))
        try:
            with self._seconds.time():
                return self.generate([item.source for item in batch], batch[0].decoding)
        finally:
            self.running = 0
