"""What type checkers know of ``generate``; mypy reads this file, nothing runs it."""

from collections.abc import Iterator
from typing import assert_type

from mist_fairseq.generate.decoding import Decoding
from mist_fairseq.generate.text_generator import Output, TextGenerator


async def awaited(generator: TextGenerator, texts: list[str]) -> None:
    assert_type(await generator.agenerate("a text"), str)
    assert_type(await generator.agenerate(texts, decoding="mist", return_scores=True), list[Output])


def outputs(generator: TextGenerator, texts: list[str], pairs: list[tuple[str, ...]], lines: Iterator[str]) -> None:
    assert_type(generator.generate("a text", lengths=3), str)
    assert_type(generator.generate("a text", return_scores=True), Output)
    assert_type(generator("a text"), str)
    assert_type(generator(texts, return_scores=True), list[Output])
    assert_type(generator.generate(texts), list[str])
    assert_type(generator.generate(("a", "b"), decoding="mist", iterations=3, keep_repeats=True), list[str])
    assert_type(generator.generate(pairs, lengths=[1, None], max_length=5), list[str])
    assert_type(generator.generate(texts, decoding=Decoding("mist"), return_scores=True), list[Output])
    assert_type(generator.generate(lines, batch_size=8), Iterator[str])
    assert_type(generator.generate(lines, return_scores=True, progress=False), Iterator[Output])
