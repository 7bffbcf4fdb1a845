"""Which texts share a batch, when it closes, and who is told what."""

import asyncio
import logging

import pytest
from prometheus_client import CollectorRegistry
from starlette.exceptions import HTTPException

from mist_fairseq.generate.decoding import Decoding
from mist_fairseq.serve.batching import Batcher
from mist_fairseq.serve.limits import Limits
from tests.serve.helpers import DEADLINE, FakeGenerator

PLAIN = Decoding()
WORDS = "how can learn the fast what is best way to in of and who why when where do you it".split()
LONG_WAIT = 3.6e6  # milliseconds that no test takes: what happens nevertheless was not waited for


def run(generator, work, **options):
    """What ``work(batcher)`` gives."""

    async def inside():
        batcher = Batcher(generator.generate_sources, Limits(**options), CollectorRegistry())
        async with asyncio.timeout(DEADLINE), batcher:
            return await work(batcher)

    return asyncio.run(inside())


async def until(condition):
    async with asyncio.timeout(DEADLINE):
        while not condition():
            await asyncio.sleep(0.001)


def submit(batcher, generator, *texts, decoding=PLAIN, length=None) -> asyncio.Task:
    return asyncio.ensure_future(batcher.submit([generator.encode(text, length) for text in texts], decoding))


async def block(batcher, generator) -> asyncio.Task:
    """Keeps the model busy until the gate opens."""
    generator.gate.clear()
    task = submit(batcher, generator, "do you")
    await until(lambda: generator.entered == 1)
    return task


def run_together(generator, texts, given=None, **limits):
    """Answers to texts, exceptions, too, that come while the model is busy; *given* has options of some."""

    async def work(batcher):
        busy = await block(batcher, generator)
        tasks = [submit(batcher, generator, text, **(given or {}).get(text, {})) for text in texts]
        await asyncio.sleep(0)
        generator.gate.set()
        await busy
        return await asyncio.gather(*tasks, return_exceptions=True)

    return run(generator, work, **limits)


def sizes(generator) -> list[int]:
    return [len(batch) for batch in generator.batches]


def texts_of(answers) -> list[str]:
    return [ranked[0].text for ranked in answers]


def test_a_full_batch_does_not_wait(generator):
    async def work(batcher):
        return await asyncio.gather(*(submit(batcher, generator, word) for word in WORDS[:8]))

    answers = run(generator, work, max_batch=4, max_wait=LONG_WAIT)
    assert sizes(generator) == [4, 4] and [texts_of(each) for each in answers] == [[word] for word in WORDS[:8]]


def test_a_text_alone_waits_no_longer_than_it_may(generator):
    async def work(batcher):
        loop = asyncio.get_running_loop()
        start = loop.time()
        await submit(batcher, generator, "how")
        return loop.time() - start

    assert run(generator, work, max_wait=200.0) >= 0.2 and sizes(generator) == [1]


def test_while_the_model_is_busy_the_queue_collects(generator):
    run_together(generator, WORDS[:5], max_wait=0)
    assert sizes(generator) == [1, 5]


def test_only_texts_decoded_alike_share_a_batch(generator):
    """And the oldest text goes first, with its like, whenever they came."""
    how, why = ({"decoding": Decoding("mist", iterations=2)} for _ in range(2))
    given = {"how": how, "why": why, "who": {"length": 1}}
    run_together(generator, ["how", "what", "who", "why", "when"], given, max_wait=0)
    first = [[generator.tokenizer.symbols[ids[1]] for ids in batch] for batch in generator.batches]
    assert first == [["do"], ["how", "why"], ["what", "when"], ["who"]]


def test_of_too_many_texts_those_of_the_oldest_ones_length_go_with_it(generator):
    texts = ["how can you", "it", "it " * 9, "what is it", "who", "why " * 8, "do it fast"]
    run_together(generator, texts, max_wait=0, max_batch=3)
    lengths = [[len(ids) - 2 for ids in batch] for batch in generator.batches]
    assert lengths == [[2], [3, 3, 3], [1, 1, 8], [9]]


def test_a_length_beam_counts_as_that_many_texts(generator):
    async def work(batcher):
        decoding = Decoding(length_beam=3)
        await asyncio.gather(*(submit(batcher, generator, word, decoding=decoding) for word in WORDS[:4]))
        await submit(batcher, generator, "how", decoding=Decoding(length_beam=9))  # more than a batch holds

    run(generator, work, max_batch=6, max_wait=LONG_WAIT)
    assert sizes(generator) == [2, 2, 1]


def test_a_request_of_many_texts_is_answered_in_its_order(generator):
    texts = [f"{word} {other} {word} it"[: 3 + i] for i, (word, other) in enumerate(zip(WORDS, WORDS[::-1]))]

    async def work(batcher):
        return await submit(batcher, generator, *texts)

    answers = texts_of(run(generator, work, max_batch=3))
    assert answers == FakeGenerator().generate(texts) and max(sizes(generator)) == 3


def test_a_text_that_fails_fails_alone(generator, caplog):
    with caplog.at_level(logging.ERROR):
        first, failed, last = run_together(generator, ["how", "the guitar", "what is it"])
    assert texts_of(first) == ["how"] and texts_of(last) == ["it is what"]
    assert isinstance(failed, HTTPException) and failed.status_code == 500 and "guitar" not in str(failed)
    assert "a string of the guitar is broken" in caplog.text and sizes(generator) == [1, 3, 1, 1, 1]


def test_of_a_request_with_a_text_that_fails_the_rest_is_dropped(generator):
    async def work(batcher):
        busy = await block(batcher, generator)
        failing = submit(batcher, generator, "the guitar", "guitar", "how", "what")
        other = submit(batcher, generator, "why")
        generator.gate.set()
        with pytest.raises(HTTPException, match="the model failed"):
            await failing
        return await busy, await other, len(batcher)

    _, other, left = run(generator, work, max_batch=2, max_wait=0)
    assert texts_of(other) == ["why"] and left == 0
    ran = [ids[1] for batch in generator.batches for ids in batch]
    assert generator.tokenizer.indices["what"] not in ran


def test_at_the_end_waiting_texts_are_answered_at_once_and_new_ones_refused(generator):
    async def work(batcher):
        waiting = submit(batcher, generator, "how")
        await until(lambda: len(batcher) == 1)
        batcher.close()
        with pytest.raises(HTTPException, match="shutting down"):
            await submit(batcher, generator, "what")
        return await waiting

    assert texts_of(run(generator, work, max_wait=LONG_WAIT)) == ["how"]
