"""The figures and rankings of scripts/measure_nbest.py."""

import pytest

from mist_fairseq.generate.decoding import Decoding
from tests.generate.plain import plain_decode, plain_length_scores
from tests.helpers import load_script, tiny_generator

measure_nbest = load_script("measure_nbest")


def test_figures_of_lists():
    lists = [["how is it", "How is it?", "a b c d e"], ["It is so and so", "the way"]]
    found = measure_nbest.measure(lists, ["a b c d e", "It is so and so"])
    assert (found["exact"], found["exact-n"], found["alike"], found["answers"]) == (50, 100, 50, 2.5)
    assert found["distinct-1"] == pytest.approx(50 * (8 / 11 + 6 / 7))  # "so" and the second "how is it"
    assert found["distinct-2"] == pytest.approx(50 * (6 / 8 + 5 / 5))
    assert found["best"] == pytest.approx(100) and found["first"] < 100


def test_rankings_equal_plain_loops():
    generator, texts = tiny_generator(), ["how can it", "the guitar"]
    found = measure_nbest.ranked(generator, texts, Decoding(length_beam=3))
    for number, text in enumerate(texts):
        source = generator.encode(text).ids
        candidates = []
        for length, log_p in list(plain_length_scores(generator, source).items())[:3]:
            tokens, scores, _ = plain_decode(generator, source, "mask-predict", 1, length)
            kept = [tokens[i] for i in generator.tokenizer.text_positions(tokens, False)]
            candidates.append((log_p, sum(scores), length, generator.tokenizer.decode(kept)))
        for name, rule in measure_nbest.RANKINGS.items():
            assert found[name][number] == max(candidates, key=lambda one: rule(*one[:3]))[3], name
