"""The decoding loops against plain ones, over PyTorch's tensors and over numpy's arrays."""

import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mist_fairseq.generate.decoding import Decoding, least_confident
from tests.generate.plain import DECODINGS, LENGTHS, Runner, assert_equals_plain, encode_one, plain_lengths
from tests.helpers import sources, tiny_encoder_decoder, tiny_released

ENGINES = ["none", "onnxruntime"]


def some_sources(dictionary, lengths=LENGTHS) -> list[list[int]]:
    tokens, lengths = sources(lengths, dictionary)
    return [row[:length].tolist() for row, length in zip(tokens, lengths)]


@pytest.fixture(scope="module", params=ENGINES)
def run(request, dictionary) -> Runner:
    return Runner(tiny_released(dictionary), request.param)


@pytest.mark.parametrize(
    "decoding, iterations",
    [
        ("single-pass", 1),
        ("mist", 1),
        ("mist", 2),
        ("mist", 5),
        *((how, n) for how in ("mask-predict", "mask-repeats") for n in (1, 2, 4, 10)),
    ],
)
@pytest.mark.parametrize("padding", [0, 3])
def test_decodings_equal_plain_loops(run, dictionary, decoding, iterations, padding):
    rows = some_sources(dictionary)
    for source, (best,) in zip(rows, run(rows, Decoding(decoding, iterations), padding=padding)):
        assert_equals_plain(best, run.model, source, decoding, iterations, plain_lengths(run.model, source)[0])


@pytest.mark.parametrize("decoding, iterations", DECODINGS)
@pytest.mark.parametrize(
    "build, sizes, engine",
    [
        (tiny_released, {"seed": 1, "rel_pos_bins": 8}, "none"),
        (tiny_encoder_decoder, {}, "none"),
        *((tiny_released, {"copy_head": True}, engine) for engine in ENGINES),
    ],
)
def test_other_models_equal_plain_loops(dictionary, build, sizes, engine, decoding, iterations):
    model, rows = build(dictionary, **sizes), some_sources(dictionary)
    for source, (best,) in zip(rows, Runner(model, engine)(rows, Decoding(decoding, iterations))):
        assert_equals_plain(best, model, source, decoding, iterations, plain_lengths(model, source)[0])


@pytest.mark.parametrize("decoding, iterations", DECODINGS)
def test_a_length_beam_decodes_the_likeliest_lengths(run, dictionary, decoding, iterations):
    rows = some_sources(dictionary)
    for source, ranked in zip(rows, run(rows, Decoding(decoding, iterations, length_beam=4))):
        assert {len(one["tokens"]) for one in ranked} == set(plain_lengths(run.model, source)[:4])
        assert [one["score"] for one in ranked] == sorted((one["score"] for one in ranked), reverse=True)
        for one in ranked:
            assert_equals_plain(one, run.model, source, decoding, iterations, len(one["tokens"]))


def test_a_length_beam_may_exceed_the_number_of_lengths(run, dictionary):
    found = run(some_sources(dictionary), Decoding(length_beam=50, min_length=3, max_length=5))
    assert [sorted(len(one["tokens"]) for one in ranked) for ranked in found] == [[4, 5, 6]] * len(LENGTHS)


@pytest.mark.parametrize("low, high", [(1, None), (6, None), (1, 3), (4, 4), (1, 100)])
def test_length_bounds_count_tokens_before_the_final_sep(run, dictionary, low, high):
    rows = some_sources(dictionary)
    found = run.candidates(rows, Decoding(min_length=low, max_length=high))
    most = min(high or 19, 19)
    assert found.lengths.tolist() == [plain_lengths(run.model, source, low + 1, most + 1)[0] for source in rows]
    for source, shares in zip(rows, found.length_shares):
        expected = run.model.encoder.length_logits(encode_one(run.model, source))[0, low + 1 : most + 2].softmax(0)
        torch.testing.assert_close(torch.as_tensor(shares), expected.detach(), atol=1e-5, rtol=0)


def test_bounds_that_the_model_cannot_keep_are_refused(run, dictionary):
    with pytest.raises(ValueError, match="min_length 20 is too long: the model makes at most 19 tokens and the final"):
        run(some_sources(dictionary), Decoding(min_length=20))
    run(some_sources(dictionary), Decoding(min_length=19))


@pytest.mark.parametrize("decoding, iterations", DECODINGS)
def test_lengths_may_be_given(run, dictionary, decoding, iterations):
    rows, lengths = some_sources(dictionary), [2, 7, 3, 20, 7, 1]
    assert run.candidates(rows, Decoding(decoding, iterations), lengths).length_shares is None
    for source, length, (best,) in zip(rows, lengths, run(rows, Decoding(decoding, iterations), lengths)):
        assert_equals_plain(best, run.model, source, decoding, iterations, length, given=True)


def test_mist_stops_at_a_fixed_point_unless_told_otherwise(dictionary):
    """A model that looks at nothing repeats itself: two passes, however many are allowed."""
    model = tiny_released(dictionary)
    model.encoder.head.transform.weight.data.zero_()
    run = Runner(model)
    fills, fill = [], run.engine.fill
    run.engine.fill = lambda *given: fills.append(1) or fill(*given)
    for stop, steps in ((True, 2), (False, 9)):
        fills.clear()
        found = run(some_sources(dictionary), Decoding("mist", 9), stop_unchanged=stop)
        assert [best["steps"] for (best,) in found] == [steps] * len(LENGTHS) and len(fills) == steps


@pytest.mark.parametrize("options", [{}, {"length_beam": 3}, {"nbest": 2, "diversity_penalty": 1.0}])
def test_one_state_at_a_time(run, dictionary, monkeypatch, options):
    """MIST encodes anew: what it has encoded before is not kept, as it may be the most of the memory."""
    states, encode = [], run.engine.encode

    def watched(*given):
        assert not [state for state in states if state()]
        encoded = encode(*given)
        states.append(weakref.ref(encoded))
        return encoded

    monkeypatch.setattr(run.engine, "encode", watched)
    run(some_sources(dictionary, [9, 4]), Decoding("mist", 3, **options), stop_unchanged=False)
    assert len(states) == 3


def test_equal_sources_are_encoded_once(run, dictionary, monkeypatch):
    a, b, c = some_sources(dictionary, [9, 4, 13])
    encoded, encode = [], run.engine.encode
    monkeypatch.setattr(
        run.engine, "encode", lambda tokens, lengths: encoded.append(len(tokens)) or encode(tokens, lengths)
    )
    repeated = run([c, a, c, b, a, c], Decoding(length_beam=3))
    assert encoded == [3]
    single = run([a, b, c], Decoding(length_beam=3))
    for row, ranked in zip([2, 0, 2, 1, 0, 2], repeated):
        assert [one["tokens"] for one in ranked] == [one["tokens"] for one in single[row]]


def test_sources_that_differ_in_length_only_are_different(run, dictionary):
    """One is longer by tokens with padding's id, as the other is padded."""
    pad = dictionary.pad()
    (source,) = some_sources(dictionary, [7])
    rows = [source, [*source, pad, pad], [*source, pad]]
    for source, (found,) in zip(rows, run(rows, Decoding())):
        assert_equals_plain(found, run.model, source, "single-pass", 1, plain_lengths(run.model, source)[0])


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
@settings(max_examples=100)
@given(
    rows=st.lists(st.tuples(st.integers(1, 9), st.integers(0, 10)), min_size=1, max_size=5),
    seed=st.integers(0, 10**6),
)
def test_least_confident_equals_a_plain_loop(kind, rows, seed):
    lengths, numbers = (np.array(column) for column in zip(*rows))
    scores = np.random.default_rng(seed).integers(-3, 1, size=(len(rows), 9)).astype(np.float32)  # many ties
    masked = least_confident(kind(scores), kind(lengths), kind(numbers))
    for row, (length, number) in enumerate(rows):
        order = sorted(range(length), key=lambda t: (scores[row, t], t))
        assert set(np.flatnonzero(masked[row])) == set(order[:number])


@pytest.mark.parametrize(
    "options, message",
    [
        ({"decoding": "beam"}, "decoding is 'beam', expected one of single-pass, mist, mask-predict, mask-repeats"),
        ({"decoding": "mist", "iterations": 0}, "iterations is 0, expected a whole number of at least 1"),
        ({"decoding": "mist", "iterations": True}, "iterations is True"),
        ({"iterations": 2}, "iterations 2 needs decoding mist, mask-predict or mask-repeats"),
        ({"nbest": 1.5}, "nbest is 1.5"),
        ({"min_length": 0}, "min_length is 0, expected a whole number of at least 1"),
        ({"min_length": 5, "max_length": 4}, "min_length 5 is more than max_length 4"),
        ({"keep_repeats": "no"}, "keep_repeats is 'no', expected True or False"),
        ({"distinct": None}, "distinct is None, expected True or False"),
        ({"min_score": "low"}, "min_score is 'low', expected a number"),
        ({"min_score": float("nan")}, "min_score is nan, expected a number"),
        ({"diversity_penalty": -1}, "diversity_penalty is -1, expected a number of at least 0"),
        ({"diversity_penalty": True}, "diversity_penalty is True, expected a number of at least 0"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Decoding(**options)


def test_defaults_and_equal_options():
    assert Decoding() == Decoding("single-pass", 1, 1)
    assert Decoding("mist").iterations == 3 and Decoding("mask-predict", 5).iterations == 5
    assert Decoding(nbest=4).length_beam == 4 and type(Decoding(nbest=np.int64(2)).nbest) is int
    assert len({Decoding("mist"), Decoding("mist", 3), Decoding("mist", 4)}) == 2
