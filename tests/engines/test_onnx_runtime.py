"""Against the encoder in PyTorch, and 8-bit products against a plain loop over rows and channels."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mist_fairseq.engines.graph import Graph
from mist_fairseq.engines.onnx_runtime import OnnxRuntimeEncoder, _session
from tests.engines.helpers import DECODINGS, LENGTHS, assert_same_outputs, generate, prepare
from tests.helpers import flat, sources, targets, tiny_model

SOURCES, TARGETS = [9, 3, 14, 1], [4, 11, 1, 7]
VARIANTS = {
    "absolute positions": {},
    "relative positions": dict(rel_pos_bins=8, max_rel_pos=12, token_types=6, source_type_id=4, target_type_id=5),
    "untied head": dict(untie_head=True),
}


def untied(model):
    """An output matrix of its own also has values of its own, once trained."""
    head = model.encoder.head
    if head.weight is not None:
        torch.manual_seed(1)
        head.weight.data.normal_(std=0.1)
    return model


def engine_of(model, int8=False) -> OnnxRuntimeEncoder:
    with torch.no_grad():
        return OnnxRuntimeEncoder(model.encoder, model.never_predicted, int8)


def inputs(dictionary):
    """A ragged batch, its targets partly masked."""
    src, src_lengths = sources(SOURCES, dictionary)
    tgt, tgt_lengths = targets(TARGETS, dictionary)
    tgt[:, ::2] = dictionary.mask()
    return src, src_lengths, tgt, tgt_lengths


@torch.no_grad()
def passes(encoder, dictionary, src, src_lengths, tgt, tgt_lengths):
    """All that a pass tells of each sentence: source and target rows, length scores, and rows of guessed lengths."""
    state = encoder.encode_source(src, src_lengths, flat(src_lengths))
    hidden = encoder.decode_target(tgt, tgt_lengths, flat(tgt_lengths), state).split(tgt_lengths.tolist())
    guesses = torch.stack([tgt_lengths, tgt_lengths % 5 + 2], dim=1)
    joint, guessed = encoder.encode_and_guess(src, src_lengths, guesses, dictionary.mask())
    found = []
    for row, length in enumerate(src_lengths.tolist()):
        values = {
            "target": hidden[row],
            "guessed": torch.cat([guessed[row, k, :size] for k, size in enumerate(guesses[row].tolist())]),
        }
        for name, encoded in (("source", state), ("joint source", joint)):
            values[name] = encoded.hidden[row, :length]
            values[f"{name}'s keys"] = torch.stack([key[row, :, :length] for key in encoded.keys])
            values[f"{name}'s values"] = torch.stack([value[row, :, :length] for value in encoded.values])
            values[f"{name}'s length scores"] = encoder.length_logits(encoded)[row]
        found.append(values)
    return found


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_passes_equal_the_encoders(dictionary, changes):
    model = tiny_model(dictionary, **changes)
    given = inputs(dictionary)
    for found, expected in zip(passes(engine_of(model), dictionary, *given), passes(model.encoder, dictionary, *given)):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, atol=1e-4, rtol=0, msg=lambda text, name=name: name + text)


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_likeliest_tokens_equal_the_encoders(dictionary, changes):
    model = untied(tiny_model(dictionary, **changes))
    engine, never = engine_of(model), model.never_predicted
    with torch.no_grad():
        for rows in (60, 1):
            hidden = torch.randn(rows, 32, generator=torch.Generator().manual_seed(rows))
            tokens, scores = engine.likeliest_tokens(hidden, never)
            expected, log_p = model.encoder.likeliest_tokens(hidden, never)
            assert torch.equal(tokens, expected)
            torch.testing.assert_close(scores, log_p, atol=1e-4, rtol=0)


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("decoding, iterations", DECODINGS)
@pytest.mark.parametrize("beam", [1, 4])
def test_generates_as_plain_pytorch(dictionary, changes, decoding, iterations, beam):
    model, plain = (untied(tiny_model(dictionary, **changes)) for _ in range(2))
    assert isinstance(prepare(model, "onnxruntime").engine, OnnxRuntimeEncoder)
    tokens, lengths = sources(LENGTHS, dictionary)
    options = dict(decoding=decoding, iterations=iterations, length_beam=beam)
    assert_same_outputs(generate(model, tokens, lengths, **options), generate(plain, tokens, lengths, **options))


@pytest.mark.parametrize("decoding, iterations", DECODINGS)
def test_length_guesses_change_nothing(dictionary, decoding, iterations):
    model, plain = prepare(tiny_model(dictionary), "onnxruntime"), tiny_model(dictionary)
    tokens, lengths = sources(LENGTHS, dictionary)
    options = dict(decoding=decoding, iterations=iterations)
    found = generate(model, tokens, lengths, guesses=3, **options)
    assert_same_outputs(found, generate(plain, tokens, lengths, **options))


def test_nothing_left_to_predict(dictionary):
    """Mask-Predict's last passes over a short target mask nothing."""
    model, plain = prepare(tiny_model(dictionary), "onnxruntime"), tiny_model(dictionary)
    tokens, lengths = sources([5], dictionary)
    options = dict(decoding="mask-predict", iterations=10, min_length=2, max_length=2)
    assert_same_outputs(generate(model, tokens, lengths, **options), generate(plain, tokens, lengths, **options))
    for int8 in (False, True):
        found = engine_of(plain, int8).likeliest_tokens(torch.empty(0, 32), plain.never_predicted)
        assert [one.shape for one in found] == [(0,), (0,)]


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("decoding, iterations", DECODINGS)
def test_never_predicts_pad_cls_mask(dictionary, precision, decoding, iterations):
    model = tiny_model(dictionary)
    never = dictionary.never_predicted()
    model.encoder.head.bias.data[never] = 1e3
    prepare(model, "onnxruntime", precision)
    tokens, lengths = sources(LENGTHS, dictionary)
    for hypotheses in generate(model, tokens, lengths, decoding=decoding, iterations=iterations, min_length=4):
        assert not set(hypotheses[0]["tokens"].tolist()) & set(never)
        assert torch.isfinite(hypotheses[0]["positional_scores"]).all()


# -- 8-bit products ---------------------------------------------------------------------------------------------


def products(weight, int8):
    """A function of (N, I) in ONNX Runtime."""
    graph = Graph(int8)
    x = graph.input("x", np.float32, ["N", weight.shape[1]])
    graph.node("Identity", graph.linear(x, weight), output="y")
    session = _session(graph.build({"y": ["N", len(weight)]}))
    return lambda x: session.run(["y"], {"x": x.astype(np.float32)})[0]


def rounded(row):
    """The nearest of 255 equidistant values, as an integer from -127 to 127, and what one step is worth."""
    step = max(abs(value) for value in row) / 127
    return [int(np.rint(value / step)) for value in row] if step else [0] * len(row), step


def plain_products(x, weight):
    """Integers times integers, a step for each row of x and for each output channel."""
    result = np.zeros((len(x), len(weight)))
    for n, row in enumerate(x.astype(np.float64)):
        row, step = rounded(row)
        for o, channel in enumerate(weight.double().numpy()):
            channel, channel_step = rounded(channel)
            result[n, o] = step * channel_step * sum(a * b for a, b in zip(row, channel))
    return result


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("rows, inner, outer", [(1, 32, 96), (7, 33, 17), (3, 64, 1)])
def test_int8_equals_a_plain_loop(rows, inner, outer):
    """Rows and channels of very different sizes, each with its own step."""
    x = numbers(rows, inner) * np.logspace(-3, 3, rows, dtype=np.float32)[:, None]
    weight = torch.from_numpy(numbers(outer, inner, seed=1) * np.logspace(2, -2, outer, dtype=np.float32)[:, None])
    expected = plain_products(x, weight)
    largest = np.abs(x).max(1, keepdims=True) * weight.abs().amax(1).numpy()
    assert (np.abs(products(weight, int8=True)(x) - expected) <= 1e-5 * largest * inner).all()
    # Rounding is the only difference to the exact product: half a step of either factor at most.
    exact = x.astype(np.float64) @ weight.double().numpy().T
    assert (np.abs(expected - exact) <= largest * inner / 127).all()
    fp32 = products(weight, int8=False)(x)
    assert (np.abs(fp32 - exact) <= 1e-5 * largest * inner).all()


def test_int8_sums_of_the_largest_values_do_not_overflow():
    """Two products of 8-bit integers are more than 16 bits hold."""
    for sign in (1, -1):
        x, weight = np.full((2, 64), 3.0, np.float32), torch.full((5, 64), sign * 0.5)
        np.testing.assert_allclose(products(weight, int8=True)(x), 64 * 1.5 * sign, rtol=1e-5)


def test_int8_of_zeros_is_zero():
    weight = torch.from_numpy(numbers(5, 8))
    weight[2] = 0
    x = numbers(3, 8)
    x[1] = 0
    found = products(weight, int8=True)(x)
    assert (found[1] == 0).all() and (found[:, 2] == 0).all() and (found[[0, 2]][:, [0, 1, 3, 4]] != 0).all()


PRODUCTS = products(torch.from_numpy(numbers(24, 16, seed=1)), int8=True)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 20), st.integers(0, 10**6), st.floats(1e-6, 1e6), st.data())
def test_int8_rows_do_not_depend_on_each_other(size, seed, scale, data):
    """To the last bit, whatever else is in the batch."""
    x = numbers(size, 16, seed=seed)
    row = data.draw(st.integers(0, size - 1))
    alone = PRODUCTS(x[row : row + 1])[0]
    x[np.arange(size) != row] *= scale
    assert (PRODUCTS(x)[row] == alone).all()


def difference(found, expected) -> float:
    """Mean over the last hidden states of all sentences."""
    names = ("source", "target", "joint source", "guessed")
    parts = [(one[name] - other[name]).abs().flatten() for one, other in zip(found, expected) for name in names]
    return float(torch.cat(parts).mean())


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_int8_passes_are_near_those_of_fp32_and_each_sentence_has_its_own(dictionary, changes):
    """Values are of size one, by layer normalisation.

    A sentence alone and in a batch may differ where a sum in another order tips a value to the next integer; were
    steps shared, the difference would be that of int8 itself.
    """
    model = tiny_model(dictionary, **changes)
    engine = engine_of(model, int8=True)
    src, src_lengths, tgt, tgt_lengths = given = inputs(dictionary)
    together = passes(engine, dictionary, *given)
    from_fp32 = difference(together, passes(model.encoder, dictionary, *given))
    assert 1e-4 < from_fp32 < 0.02
    alone = []
    for row, (S, T) in enumerate(zip(SOURCES, TARGETS)):
        one = slice(row, row + 1)
        alone += passes(engine, dictionary, src[one, :S], src_lengths[one], tgt[one, :T], tgt_lengths[one])
    assert difference(alone, together) < from_fp32 / 5


def test_int8_generates_almost_the_same(dictionary):
    tokens, lengths = sources(LENGTHS, dictionary)
    model, plain = tiny_model(dictionary), tiny_model(dictionary)
    for each in (model, plain):
        each.encoder.head.bias.data[dictionary.eos()] = -1e4  # so that every token shows
    prepare(model, "onnxruntime", "int8")
    found, expected = (generate(each, tokens, lengths, min_length=9, max_length=9) for each in (model, plain))
    tokens, plain_tokens, scores, plain_scores = (
        torch.cat([hypotheses[0][name] for hypotheses in each])
        for name in ("tokens", "positional_scores")
        for each in (found, expected)
    )
    assert len(tokens) == 60 and (tokens == plain_tokens).float().mean() > 0.8
    torch.testing.assert_close(scores, plain_scores, atol=0.1, rtol=0)


# -- threads ----------------------------------------------------------------------------------------------------


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_torch_has_one_thread_while_it_generates(dictionary, two_threads, monkeypatch):
    model = prepare(tiny_model(dictionary), "onnxruntime")
    during = []
    mix = model.mix
    monkeypatch.setattr(model, "mix", lambda *args: during.append(torch.get_num_threads()) or mix(*args))
    tokens, lengths = sources(LENGTHS, dictionary)
    generate(model, tokens, lengths, decoding="mist", iterations=2)
    assert during == [1] and torch.get_num_threads() == 2


def test_threads_come_back_after_an_exception(dictionary, two_threads):
    model = prepare(tiny_model(dictionary), "onnxruntime")
    tokens, lengths = sources(LENGTHS, dictionary)
    with pytest.raises(ValueError, match="--min-length 30 is too long"):
        generate(model, tokens, lengths, min_length=30)
    assert torch.get_num_threads() == 2
