"""n-best answers against plain loops over all lengths and variants."""

import dataclasses

import pytest
import torch
from torch.overrides import TorchFunctionMode

from mist_fairseq.generate.answers import Answer, answer, pick
from mist_fairseq.generate.decoding import Decoding
from tests.generate.plain import DECODINGS, Runner, plain_decode, plain_fill, plain_length_scores
from tests.generate.test_decoding import some_sources
from tests.helpers import tiny_dictionary, tiny_released


@pytest.fixture(scope="module", params=["none", "onnxruntime"])
def run(request, dictionary):
    return Runner(tiny_released(dictionary), request.param)


def answers(run, sources, decoding, **options):
    """For each source the texts and scores of its answers."""
    width = max(map(len, sources))
    tokens = [source + [run.special.pad] * (width - len(source)) for source in sources]
    given = (run.engine.asarray(torch.tensor(values)) for values in (tokens, list(map(len, sources))))
    found = answer(run.engine, *given, decoding, run.model.tokenizer, run.model.limits, **options)
    return [[(one.tokens, one.score) for one in each.best] for each in found]


def ranked(run, candidates, number):
    """Those of pairs of tokens and scores that differ in their letters, best first."""
    tokenizer, best = run.model.tokenizer, {}
    for tokens, score in sorted(candidates, key=lambda one: -one[1]):
        tokens = [tokens[i] for i in tokenizer.text_positions(tokens, False)]
        letters = "".join(filter(str.isalnum, tokenizer.decode(tokens)))
        best.setdefault(letters, (tokens, pytest.approx(score, abs=1e-4)))
    return list(best.values())[:number]


@pytest.mark.parametrize("decoding, iterations", DECODINGS)
def test_the_likeliest_lengths_that_differ(run, dictionary, decoding, iterations):
    """Of all lengths, though they are decoded three, three, six, ... at a time."""
    rows = some_sources(dictionary, [9, 4, 2])
    for source, found in zip(rows, answers(run, rows, Decoding(decoding, iterations, nbest=19)), strict=True):
        candidates = []
        for length, log_p in plain_length_scores(run.model, source).items():
            tokens, scores, _ = plain_decode(run.model, source, decoding, iterations, length)
            candidates.append((tokens, log_p + sum(scores) / length))
        assert found == ranked(run, candidates, 19)


class Waits(TorchFunctionMode):
    """Notes what would wait for a GPU, in all but the engine."""

    NAMES = ("tolist", "item", "__int__", "__bool__", "__float__", "__index__", "cpu", "nonzero", "masked_select")

    def __init__(self, engine, monkeypatch):
        super().__init__()
        self.noted, self.inside = [], False
        for name in ("asarray", "encode", "fill"):
            monkeypatch.setattr(engine, name, self.unseen(getattr(engine, name)))

    def unseen(self, work):
        def call(*given, **options):
            self.inside, before = True, self.inside
            try:
                return work(*given, **options)
            finally:
                self.inside = before

        return call

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = getattr(function, "__name__", "")
        index = args[1] if "item__" in name and isinstance(args[1], tuple) else args[1:2]
        chosen = "item__" in name and any(getattr(one, "dtype", None) == torch.bool for one in index)
        to_cpu = name == "to" and "cpu" in map(str, args[1:])
        if not self.inside and (name in self.NAMES or chosen or to_cpu):
            self.noted.append(name)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "options, most",
    [
        ({}, 2),  # the longest length, and all results
        ({"length_beam": 3, "exclude_source": True}, 2),
        ({"nbest": 2, "diversity_penalty": 1.0, "max_length": 2}, 2),
        ({"decoding": "mist"}, 3),  # which of three passes there is not after the second
        ({"decoding": "mist", "iterations": 2}, 2),
        ({"decoding": "mask-predict", "iterations": 9}, 2),
    ],
)
def test_a_gpu_is_waited_for_as_seldom_as_possible(dictionary, monkeypatch, options, most):
    run = Runner(tiny_released(dictionary))
    tokens = [torch.tensor(values) for values in (some_sources(dictionary, [9]), [9])]
    waits = Waits(run.engine, monkeypatch)
    with waits:
        answer(run.engine, *tokens, Decoding(**options), run.model.tokenizer, run.model.limits, history=True)
    assert len(waits.noted) <= most, waits.noted
    assert len(waits.noted) >= 2, "it counts"


def test_more_lengths_until_there_are_enough(run, dictionary, monkeypatch):
    rows, widths, fill = some_sources(dictionary, [9, 4]), [], run.engine.fill
    monkeypatch.setattr(run.engine, "fill", lambda *given: widths.append(len(given[0])) or fill(*given))

    def number(**options):
        widths.clear()
        return [len(each) for each in answers(run, rows, Decoding(**options))], widths

    assert number(nbest=2) == ([2, 2], [4])
    assert number(nbest=2, max_length=1) == ([1, 1], [2]), "there is one length"
    assert number(nbest=20)[1] == [38], "all nineteen at once"
    monkeypatch.setattr(type(run.model.tokenizer), "decode", lambda *_: "equal")
    assert number(nbest=2) == ([1, 1], [4, 4, 8, 16, 6])
    assert number(nbest=2, min_score=-1.0) == ([0, 0], [4]), "no other length is as likely as that"


def test_variants_equal_a_plain_loop(run, dictionary):
    """The likeliest second tokens, each in its place, with all else filled in anew."""
    model, special, decoding = run.model, run.special, Decoding(nbest=3, diversity_penalty=1e-9, max_length=8)
    rows = some_sources(dictionary, [9, 4, 13])
    for source, found in zip(rows, answers(run, rows, decoding), strict=True):
        lengths = dict(list(plain_length_scores(model, source, high=9).items())[:3])
        candidates, variants = [], []
        for length, log_p in lengths.items():
            masks = [special.mask] * length
            tokens, scores = plain_fill(model, masks, source)
            candidates.append((tokens, log_p + sum(scores) / length))
            second, second_scores = plain_fill(model, masks, source, without=tokens)
            for i in range(length):
                if tokens[i] != special.sep:
                    odds = second_scores[i] - scores[i]
                    variants.append((candidates[-1][1] + odds, log_p + odds, length, i, second[i], second_scores[i]))
        for _, log_p, length, i, token, score in sorted(variants, reverse=True)[: decoding.branches]:
            filled, scores = plain_fill(model, [*[special.mask] * i, token, *[special.mask] * (length - i - 1)], source)
            candidates.append((filled, log_p + (sum(scores) + score) / length))
        assert found == ranked(run, candidates, 3)


def test_a_penalty_is_taken_off_for_what_better_answers_have():
    """Tokens 10, 11, ...: the third best, which shares nothing with the best, comes second."""
    dictionary, decoding = tiny_dictionary(), Decoding(nbest=3, diversity_penalty=1.0)
    made = [([10, 11], -1.0), ([10, 12], -1.1), ([13, 14], -1.5), ([10, 11, 12, 15], -1.3)]
    ranked = [Answer(tokens, [0.0] * len(tokens), score, 1, []) for tokens, score in made]
    found = [one.tokens for one in pick(ranked, decoding, dictionary.tokenizer, [])]
    assert found == [[10, 11], [13, 14], [10, 12]], "half of the others is in the best"
    weaker = dataclasses.replace(decoding, diversity_penalty=0.1)
    found = [one.tokens for one in pick(ranked, weaker, dictionary.tokenizer, [])]
    assert found == [[10, 11], [10, 12], [10, 11, 12, 15]]


def test_variants_of_a_given_length(run, dictionary):
    rows = some_sources(dictionary, [9, 4])
    lengths = run.engine.asarray(torch.tensor([5, 7]))
    found = answers(run, rows, Decoding(nbest=4, diversity_penalty=0.5), target_lengths=lengths)
    assert [len(each) for each in found] == [4, 4]
    assert all(len(tokens) <= length for each, length in zip(found, [5, 7]) for tokens, _ in each)
