"""The graph, in memory, against the encoder in PyTorch."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mist_fairseq.engines.onnx_builder import Graph
from mist_fairseq.engines.onnx_encoder import encoder_graph, likeliest
from mist_fairseq.engines.onnx_runtime import OnnxEngine, start_session
from mist_fairseq.engines.pytorch import PyTorchEngine
from tests.helpers import sources, targets, tiny_released

SOURCES, TARGETS = [9, 3, 14, 1], [4, 11, 1, 7]
VARIANTS = {
    "absolute positions": {},
    "relative positions": dict(rel_pos_bins=8, max_rel_pos=12, token_types=6, source_type=4, target_type=5),
    "untied head": dict(untie_head=True),
    "copy head": dict(copy_head=True, rel_pos_bins=8, max_rel_pos=12),
    "embeddings of a size of their own, one layer": dict(embedding_size=16, shared_layers=True, activation="gelu_new"),
    "without biases": dict(without_biases=True, copy_head=True),
    "relu": dict(activation="relu", layer_norm_eps=0.01),
    "pre-norm": dict(pre_norm=True, activation="silu"),
    "gated": dict(gated=True, activation="gelu_pytorch_tanh"),
    "rotary positions, with biases": dict(rotary_base=1e4),
    "pre-norm, one layer": dict(pre_norm=True, shared_layers=True),
    "ModernBERT": dict(
        **dict(pre_norm=True, gated=True, without_biases=True, layers=4, rotary_base=1e5),
        **dict(local_rotary_base=1e4, local_window=2, global_every=3),
    ),
}


def released_of(dictionary, changes):
    """An output matrix of its own also has values of its own, once trained, and biases are no zeros."""
    released = tiny_released(dictionary, **changes)
    if released.encoder.config.rotary_base and not released.encoder.config.without_biases:
        torch.manual_seed(2)
        for layer in released.encoder.layers:
            layer.qkv.bias.data.normal_(std=0.2)
    if released.encoder.head.weight is not None:
        torch.manual_seed(1)
        released.encoder.head.weight.data.normal_(std=0.1)
    return released


def engine_of(released, precision="fp32"):
    kind = PyTorchEngine if precision == "torch" else OnnxEngine
    return kind(released.encoder, released.tokenizer.special, precision)


@pytest.fixture(scope="module", params=VARIANTS.values(), ids=VARIANTS)
def engines(request, dictionary):
    released = released_of(dictionary, request.param)
    return {precision: engine_of(released, precision) for precision in ("torch", "fp32", "int8")}


def inputs(dictionary, every=2):
    """A ragged batch, of whose targets every so manieth token is masked."""
    src, src_lengths = sources(SOURCES, dictionary)
    tgt, lengths = targets(TARGETS, dictionary)
    tgt[:, ::every] = dictionary.mask()
    return src, src_lengths, tgt, lengths


def run(engine, src, src_lengths, tgt, lengths):
    """Length scores, predictions and log-probabilities, in numpy."""
    src, src_lengths, tgt, lengths = map(engine.asarray, (src, src_lengths, tgt, lengths))
    state = engine.encode(src, src_lengths)
    return [np.asarray(part) for part in (state.length_scores, *engine.fill(tgt, lengths, state))]


@pytest.mark.parametrize("every", [1, 2])
def test_passes_equal_the_encoders(engines, dictionary, every):
    """What stands behind an end changes nothing."""
    src, _, tgt, _ = given = inputs(dictionary, every)
    expected = run(engines["torch"], *given)
    found = run(engines["fp32"], *given)
    assert found[1].tolist() == expected[1].tolist() and (found[2] != 0).any()
    for one, other in zip(found, expected):
        np.testing.assert_allclose(one, other, atol=1e-5, rtol=0)
    for row in range(len(src)):
        src[row, SOURCES[row] :], tgt[row, TARGETS[row] :] = 50, dictionary.mask()
    again = run(engines["fp32"], *given)
    np.testing.assert_allclose(again[0], found[0], atol=1e-5, rtol=0)
    for row, length in enumerate(TARGETS):
        assert again[1][row].tolist() == [*found[1][row, :length], *tgt[row, length:].tolist()]
        np.testing.assert_allclose(again[2][row, :length], found[2][row, :length], atol=1e-5, rtol=0)
        assert not again[2][row, length:].any()


def test_a_state_of_selected_sentences(engines, dictionary):
    src, src_lengths, tgt, lengths = map(np.asarray, inputs(dictionary))
    rows = np.array([2, 0, 0])
    engine = engines["fp32"]
    found = engine.fill(tgt[rows], lengths[rows], engine.encode(src, src_lengths).select(rows))
    for one, other in zip(found, run(engine, src, src_lengths, tgt, lengths)[1:]):
        np.testing.assert_allclose(one, other[rows], atol=1e-5, rtol=0)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_nothing_masked(engines, dictionary, precision):
    src, src_lengths, tgt, lengths = inputs(dictionary)
    tgt[:] = 50
    _, predictions, scores = run(engines[precision], src, src_lengths, tgt, lengths)
    assert (predictions == 50).all() and not scores.any()


@pytest.mark.parametrize("copy_head", [False, True])
@pytest.mark.parametrize("precision", ["torch", "fp32", "int8"])
def test_pad_cls_and_mask_are_never_predicted(dictionary, precision, copy_head):
    """Nor copied."""
    released = tiny_released(dictionary, copy_head=copy_head)
    never = released.tokenizer.special.never_predicted
    released.encoder.head.bias.data[list(never)] = 1e3
    if copy_head:
        released.encoder.copy_head.weight.data.mul_(100)
    src, *rest = inputs(dictionary, every=1)
    src[0, 1:-1] = torch.tensor([never[i % len(never)] for i in range(src.shape[1] - 2)])
    _, predictions, scores = run(engine_of(released, precision), src, *rest)
    for row, length in enumerate(TARGETS):
        assert not set(predictions[row, :length].tolist()) & set(never)
        assert np.isfinite(scores[row, :length]).all()


def keys_and_values(engine, src, src_lengths):
    return [part for part in engine.encode(np.asarray(src), np.asarray(src_lengths)).past if part.ndim == 4]


def test_int8_is_near_fp32_and_each_sentence_has_its_own(engines, dictionary):
    """Keys and values are of size one.

    A sentence alone and in a batch may differ where a sum in another order tips a value to the next integer; were
    steps shared, the difference would be that of int8 itself.
    """
    src, src_lengths, tgt, lengths = inputs(dictionary, every=1)
    plain, rounded = (keys_and_values(engines[precision], src, src_lengths) for precision in ("fp32", "int8"))
    from_fp32, from_alone = [], []
    for row, length in enumerate(SOURCES):
        alone = keys_and_values(engines["int8"], src[row : row + 1, :length], src_lengths[row : row + 1])
        for one, other, own in zip(plain, rounded, alone):
            from_fp32.append(np.abs(one[row, :, :length] - other[row, :, :length]).mean())
            from_alone.append(np.abs(own[0] - other[row, :, :length]).mean())
    assert 1e-4 < np.mean(from_fp32) < 0.04 and np.mean(from_alone) < np.mean(from_fp32) / 5
    plain, rounded = (run(engines[precision], src, src_lengths, tgt, lengths) for precision in ("fp32", "int8"))
    assert (plain[1] == rounded[1]).mean() > 0.8 and np.abs(plain[2] - rounded[2]).max() < 0.2


def test_products_in_int8_stand_in_no_part(dictionary):
    """There ONNX Runtime takes kernels whose sums saturate on processors without VNNI."""
    released = tiny_released(dictionary, copy_head=True)
    graph, _ = encoder_graph(released.encoder, released.tokenizer.special, True, "weights")
    parts = [attribute.g for node in graph.graph.node for attribute in node.attribute if attribute.HasField("g")]
    assert parts and any(node.op_type == "QGemm" for node in graph.graph.node)
    assert not any(node.op_type == "QGemm" for part in parts for node in part.node)


BLOCKS = 3


@pytest.fixture(scope="module")
def in_blocks():
    graph = Graph(int8=False)
    x = graph.input("x", np.float32, ["N", BLOCKS * 128])
    given = graph.switch("second"), graph.switch("allowed", "V")
    for name, value in zip(("token", "score"), likeliest(graph, x, BLOCKS, *given)):
        graph.node("Identity", value, output=name)
    return start_session(graph.build({"token": ["N"], "score": ["N"]}, ["token"], "")[0].SerializeToString())


@settings(max_examples=50)
@given(rows=st.integers(0, 4), seed=st.integers(0, 10**6), kinds=st.integers(1, 400), absent=st.integers(0, 300))
def test_likeliest_of_blocks(in_blocks, rows, seed, kinds, absent):
    """The first of equal ones, wherever it stands; with -inf for some, or of those that are allowed."""
    rng = np.random.default_rng(seed)
    x = rng.integers(kinds, size=(rows, BLOCKS * 128)).astype(np.float32) / 10
    x[:, rng.permutation(BLOCKS * 128)[:absent]] = -np.inf
    order = (-x).argsort(axis=1, stable=True)
    everything = np.log(np.exp(x.astype(np.float64)).sum(axis=1))
    allowed = rng.random(BLOCKS * 128) < 0.5
    for second, some in ((False, False), (True, False), (False, True), (True, True)):
        given = {"second": np.array(True)} if second else {}
        if some:
            given["allowed"] = allowed
            order = np.where(allowed, -x, np.inf).argsort(axis=1, stable=True)
        token, score = in_blocks.run(None, {"x": x} | given)
        assert token.tolist() == order[:, int(second)].tolist()
        expected = np.take_along_axis(x, order, axis=1)[:, int(second)] - everything
        np.testing.assert_allclose(score, expected, atol=1e-5)
