"""Dynamic batching: texts of concurrent requests share the model's batches.

All of it runs in one event loop but the model, which has a thread of its own.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from mist_fairseq.generate.generator import Decoding, Output, Source

logger = logging.getLogger(__name__)


class Unavailable(Exception):
    """Nothing is taken now, because the queue is full or the server is shutting down; says which."""


class ModelError(Exception):
    """The model raised an exception for a text, also when it had the text alone."""


@dataclass(eq=False)
class _Item:
    """A text that waits.

    Attributes:
        arrived: the event loop's time, seconds.
        answer: of its outputs.
    """

    source: Source
    decoding: Decoding
    arrived: float
    answer: asyncio.Future

    @property
    def kind(self) -> tuple:
        """Equal for texts that may share a batch."""
        return self.decoding, self.source.length is not None


class Batcher:
    """Collects texts, and runs the model on batches of those that are decoded alike.

    A batch closes when it is full, or when its oldest text has waited *max_wait*; while the model is busy texts just
    collect. The oldest text always goes first. Where more texts go with it than fit, those nearest to its length do.
    A batch that fails is run again text by text, so that one bad text does not take its neighbours with it.

    An asynchronous context manager: leaving it refuses new texts and finishes those that wait.

    Args:
        generate: ``TextGenerator.generate_sources``; is called in one thread.
        max_batch: texts of a batch, each counted as often as its length beam is wide.
        max_wait: seconds.
        max_queue: texts that may wait.
        observe: is told each batch's texts and seconds, in the model's thread.

    Attributes:
        running: texts in the model now.
    """

    def __init__(
        self,
        generate: Callable[[list[Source], Decoding], list[list[Output]]],
        *,
        max_batch: int = 32,
        max_wait: float = 0.0,
        max_queue: int = 1024,
        observe: Callable[[int, float], None] = lambda texts, seconds: None,
    ):
        self._generate, self._observe = generate, observe
        self.max_batch, self.max_wait, self.max_queue = max_batch, max_wait, max_queue
        self.running = 0
        self._queue: list[_Item] = []
        self._ended = False
        self._changed, self._closing = asyncio.Event(), asyncio.Event()

    def __len__(self) -> int:
        """Texts that wait; those in the model do not count."""
        return len(self._queue)

    @property
    def closing(self) -> bool:
        """Whether new texts are refused."""
        return self._closing.is_set()

    async def closed(self):
        """Wait until they are."""
        await self._closing.wait()

    async def __aenter__(self) -> "Batcher":
        self._thread = ThreadPoolExecutor(1, "model")
        self._worker = asyncio.create_task(self._work())
        return self

    async def __aexit__(self, *_):
        self._ended = True
        self.close()
        await self._worker
        self._thread.shutdown()

    def close(self):
        """Refuse new texts from now on; those that wait do so no longer. A signal's handler may call it."""
        self._closing.set()
        self._changed.set()

    async def submit(self, sources: list[Source], decoding: Decoding) -> list[list[Output]]:
        """The outputs of each source, as ``generate`` gives them.

        When the caller is cancelled its texts that have not started are dropped.

        Raises:
            Unavailable: they do not fit into the queue, or ``close`` was called.
            ModelError: the model failed for one of them.
        """
        if self.closing:
            raise Unavailable("the server is shutting down")
        if len(self._queue) + len(sources) > self.max_queue:
            raise Unavailable(
                f"{len(self._queue)} texts wait already: {len(sources)} more are over the limit of {self.max_queue} "
                "(--max-queue)"
            )
        loop = asyncio.get_running_loop()
        items = [_Item(source, decoding, loop.time(), loop.create_future()) for source in sources]
        self._queue += items
        self._changed.set()
        try:
            return await asyncio.gather(*(item.answer for item in items))
        except BaseException:
            self._drop(items)
            raise

    def _drop(self, items: list[_Item]):
        for item in items:
            item.answer.cancel()
        dropped = set(items)
        self._queue = [item for item in self._queue if item not in dropped]

    # -- the worker -----------------------------------------------------------------------------------------

    async def _work(self):
        while self._queue or not self._ended:
            wait = self._time_left()
            if wait is None or wait > 0:
                self._changed.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        await self._changed.wait()
            else:
                await self._run(self._take())

    def _time_left(self) -> float | None:
        """Seconds until the next batch closes; None while nothing waits."""
        if not self._queue:
            return None
        oldest = self._queue[0]
        if self.closing or sum(item.kind == oldest.kind for item in self._queue) >= self._capacity(oldest):
            return 0
        return oldest.arrived + self.max_wait - asyncio.get_running_loop().time()

    def _capacity(self, item: _Item) -> int:
        return max(1, self.max_batch // item.decoding.width)

    def _take(self) -> list[_Item]:
        oldest = self._queue[0]
        batch = [item for item in self._queue if item.kind == oldest.kind]
        if len(batch) > self._capacity(oldest):
            length = len(oldest.source.ids)
            batch.sort(key=lambda item: abs(len(item.source.ids) - length))  # stable: of equal ones the older
            batch = batch[: self._capacity(oldest)]
        taken = set(batch)
        self._queue = [item for item in self._queue if item not in taken]
        return batch

    async def _run(self, batch: list[_Item]):
        loop = asyncio.get_running_loop()
        try:
            answers = await loop.run_in_executor(self._thread, self._call, batch)
        except Exception:
            if len(batch) == 1:
                logger.exception("the model failed for a text of %d tokens", len(batch[0].source.ids))
                if not batch[0].answer.done():
                    batch[0].answer.set_exception(ModelError("the model failed; the server's log says how"))
                return
            logger.warning("a batch of %d texts failed: each is run alone", len(batch))
            for item in batch:
                if not item.answer.done():
                    await self._run([item])
            return
        for item, outputs in zip(batch, answers, strict=True):
            if not item.answer.done():
                item.answer.set_result(outputs)

    def _call(self, batch: list[_Item]) -> list[list[Output]]:
        start, self.running = time.perf_counter(), len(batch)
        try:
            answers = self._generate([item.source for item in batch], batch[0].decoding)
        finally:
            self.running = 0
            self._observe(len(batch), time.perf_counter() - start)
        if len(answers) != len(batch):
            raise RuntimeError(f"the model gave {len(answers)} answers to {len(batch)} texts")
        return answers
