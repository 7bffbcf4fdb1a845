"""The engine of our own, against the int8 graph in ONNX Runtime and the encoder in PyTorch."""

import copy
import gc
import os
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mist_fairseq.engines import build_engine, choose, native
from mist_fairseq.engines.native import NativeEngine, why_not
from mist_fairseq.engines.onnx_runtime import OnnxEngine
from mist_fairseq.engines.pytorch import PyTorchEngine
from mist_fairseq.engines.weights import int8_weights
from mist_fairseq.mist.config import EncoderConfig, SpecialTokens
from mist_fairseq.mist.encoder import Encoder
from mist_fairseq.mist.heads import LengthHead
from tests.engines.test_onnx_encoder import VARIANTS, inputs, released_of, run
from tests.helpers import tiny_released

needs_native = pytest.mark.skipif("processor" in why_not(EncoderConfig(1)), reason=why_not(EncoderConfig(1)))
pytestmark = needs_native

SIZES = dict(heads=2)  # heads of 16 values
ABLE = {name: changes for name, changes in VARIANTS.items() if not why_not(EncoderConfig(1, **SIZES | changes))}
SPECIAL = SpecialTokens(0, 1, 2, 3, 4)


def encoder_of(seed=0, **sizes) -> Encoder:
    """With biases and LayerNorms that are not what they start as."""
    torch.manual_seed(seed)
    encoder = Encoder(EncoderConfig(300, **dict(hidden_size=64, layers=2, heads=2, ffn_size=96) | sizes)).eval()
    for parameter in encoder.parameters():
        parameter.data += (0.1 if parameter.dim() == 1 else 0.05) * torch.randn_like(parameter)
    return encoder


@contextmanager
def attention(half):
    """Engines that are built meanwhile compute it in bf16 or in fp32."""
    known = native._processor()
    if half and "avx512_bf16" not in known:
        pytest.skip("the processor has no bf16")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "_processor", lambda: known if half else known - {"avx512_bf16"})
        yield


def batch(source_lengths, target_lengths, seed=0, vocabulary=300):
    """Random sources and targets, of which most tokens are masked."""
    random = np.random.default_rng(seed)
    arrays = []
    for lengths in (source_lengths, target_lengths):
        tokens = random.integers(5, vocabulary, (len(lengths), max(lengths)))
        arrays += [tokens, np.array(lengths)]
    arrays[2][random.random(arrays[2].shape) < 0.8] = SPECIAL.mask
    return arrays


def assert_close(found, expected, lengths, tolerance, ties=0):
    """Length scores, tokens and their scores; what is behind a target may be anything.

    A sum in another order may round to the next of 127 steps: then a score differs in its third digit, and of two
    tokens that are all but equally likely the other one is chosen, *ties* times at most.
    """
    real = np.arange(found[1].shape[1]) < np.asarray(lengths)[:, None]
    np.testing.assert_allclose(found[0], expected[0], atol=tolerance)
    np.testing.assert_allclose(found[2][real], expected[2][real], atol=tolerance)
    assert (found[1] != expected[1])[real].sum() <= ties


def test_it_was_compiled():
    """Where the processor can run it, these tests do: skipping them all would go unnoticed."""
    assert ABLE.keys() == VARIANTS.keys() - {
        *("pre-norm", "gated", "rotary positions, with biases", "pre-norm, one layer", "ModernBERT")
    }


@pytest.mark.parametrize("changes", ABLE.values(), ids=ABLE)
@pytest.mark.parametrize("second, some", [(False, False), (True, False), (True, True)])
def test_equals_the_graph(dictionary, changes, second, some):
    """The likeliest tokens, the second likeliest, and those of *some* of the vocabulary."""
    allowed = {"allowed": np.arange(len(dictionary.tokenizer.symbols)) % 3 == 0} if some else {}
    released = released_of(dictionary, SIZES | changes)
    results = []
    for kind in (NativeEngine, OnnxEngine):
        with attention(half=False):
            engine = kind(released.encoder, released.tokenizer.special, "int8")
        src, src_lengths, tgt, lengths = map(engine.asarray, inputs(dictionary))
        state = engine.encode(src, src_lengths)
        results.append([state.length_scores, *engine.fill(tgt, lengths, state, second, **allowed)])
    assert_close(*results, lengths, 1e-3 if "copy_head" in changes else 1e-5)


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu", "silu"])
def test_equals_the_encoder_but_for_rounding(activation):
    """Of 8 bits: activations and weights are 127 steps to their largest."""
    encoder = encoder_of(activation=activation)
    given = batch([9, 30, 2], [5, 17, 1])
    found = run(NativeEngine(encoder, SPECIAL, "int8"), *given)
    expected = run(PyTorchEngine(encoder, SPECIAL, "fp32"), *map(torch.from_numpy, given))
    np.testing.assert_allclose(found[0], expected[0], atol=0.02)
    same = (found[1] == np.asarray(expected[1]))[np.arange(17) < given[3][:, None]]
    assert same.mean() > 0.7


@pytest.mark.parametrize("half", [False, True], ids=["fp32", "bf16"])
@settings(max_examples=40)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 70), st.integers(1, 45)), min_size=1, max_size=4),
    heads=st.sampled_from([1, 2, 4]),
    ffn_size=st.sampled_from([16, 48, 160]),
    threads=st.integers(1, 4),
    seed=st.integers(0, 3),
)
def test_any_shape_equals_the_graph(half, lengths, heads, ffn_size, threads, seed):
    """Of any number of rows, also more masked ones than there are logits at a time, and of blocks and threads."""
    encoder = encoder_of(seed, heads=heads, ffn_size=ffn_size)
    with attention(half):
        engine = NativeEngine.of_weights(encoder.config, int8_weights(encoder, SPECIAL), SPECIAL, threads)
    given = batch(*zip(*lengths), seed)
    expected = run(OnnxEngine(encoder, SPECIAL, "int8"), *given)
    assert_close(run(engine, *given), expected, given[3], *((0.05, 6) if half else (0.02, 2)))


def test_a_batch_equals_its_sentences_alone():
    """To the last bit: rows know nothing of each other, and states are chosen and repeated."""
    encoder = encoder_of()
    engine = NativeEngine(encoder, SPECIAL, "int8")
    src, src_lengths, tgt, lengths = batch([9, 30, 17], [5, 17, 8])
    together = run(engine, src, src_lengths, tgt, lengths)
    state = engine.encode(src, src_lengths)
    rows = np.array([2, 0, 2, 1])
    chosen = engine.fill(tgt[rows], lengths[rows], state.select(rows))
    for row in range(3):
        alone = run(engine, *(part[row : row + 1] for part in (src, src_lengths, tgt, lengths)))
        for part, others, picked in zip(alone, together, (state.select(rows).length_scores, *chosen)):
            np.testing.assert_array_equal(part[0, : lengths[row]], others[row, : lengths[row]])
            np.testing.assert_array_equal(part[0, : lengths[row]], picked[list(rows).index(row), : lengths[row]])


def test_nothing_to_fill():
    """Tokens that are no [MASK] stay, with score 0."""
    engine = NativeEngine(encoder_of(), SPECIAL, "int8")
    src, src_lengths, tgt, lengths = batch([4, 6], [3, 2])
    tgt = np.full_like(tgt, 7)
    _, filled, scores = run(engine, src, src_lengths, tgt, lengths)
    assert (filled == 7).all() and (scores == 0).all()


def test_equal_logits_give_the_first():
    encoder = encoder_of()
    encoder.word_embeddings.weight.data[50:60] = encoder.word_embeddings.weight.data[50]
    encoder.head.bias.data[50:60] = 100.0
    engine = NativeEngine(encoder, SPECIAL, "int8")
    _, filled, _ = run(engine, *batch([4], [3]))
    tgt, lengths = batch([4], [3])[2:]
    assert (filled[tgt == SPECIAL.mask] == 50).all()
    state = engine.encode(*batch([4], [3])[:2])
    assert (engine.fill(tgt, lengths, state, second=True)[0][tgt == SPECIAL.mask] == 51).all()


def test_special_tokens_are_never_predicted():
    encoder = encoder_of()
    encoder.head.bias.data[[SPECIAL.pad, SPECIAL.unk, SPECIAL.cls, SPECIAL.mask]] = 1000.0
    _, filled, scores = run(NativeEngine(encoder, SPECIAL, "int8"), *batch([9], [40]))
    assert not np.isin(filled, [SPECIAL.pad, SPECIAL.unk, SPECIAL.cls, SPECIAL.mask]).any()
    assert np.isfinite(scores).all()


def test_many_threads_at_once():
    engine = NativeEngine(encoder_of(), SPECIAL, "int8")
    jobs = [batch([5 + i, 20], [3 + i, 9], seed=i) for i in range(8)]
    expected = [run(engine, *job) for job in jobs]
    started = threading.Barrier(4)

    def work(number):
        started.wait()
        return [run(engine, *job) for job in jobs[number:] + jobs[:number]]

    with ThreadPoolExecutor(4) as pool:
        for number, results in enumerate(pool.map(work, range(4))):
            for found, wanted in zip(results, expected[number:] + expected[:number]):
                for part, other in zip(found, wanted):
                    np.testing.assert_array_equal(part, other)


def test_a_state_outlives_its_engine():
    """And its memory is used again: a state that is still there is not overwritten."""
    engine = NativeEngine(encoder_of(), SPECIAL, "int8")
    src, src_lengths, tgt, lengths = batch([9, 30], [5, 17])
    kept = engine.encode(src, src_lengths)
    expected = engine.fill(tgt, lengths, kept)
    for seed in range(3):
        engine.encode(*batch([9, 30], [1, 1], seed)[:2])
    for found, wanted in zip(engine.fill(tgt, lengths, kept), expected):
        np.testing.assert_array_equal(found, wanted)
    del engine
    gc.collect()
    assert len(kept.select(np.array([1])).past) == 1


def test_later_changes_of_the_weights_go_unnoticed():
    encoder = encoder_of()
    engine, given = NativeEngine(encoder, SPECIAL, "int8"), batch([9], [5])
    before = run(engine, *given)
    for parameter in encoder.parameters():
        parameter.data.fill_(7)
    for found, wanted in zip(run(engine, *given), before):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(
    "token, source, message",
    [
        (300, 4, "token ids are 7 to 300, expected 0 to 299"),
        (-1, 4, "token ids are -1 to 7"),
        (7, 510, "514 positions"),
    ],
)
def test_what_would_read_other_memory_is_refused(token, source, message):
    engine = NativeEngine(encoder_of(), SPECIAL, "int8")
    state = engine.encode(np.full((1, source), 7), np.array([source]))
    with pytest.raises(ValueError, match=message):
        engine.fill(np.array([[7, 7, 7, token]]), np.array([4]), state)


def test_auto_is_native_where_it_can_be_used(dictionary, monkeypatch):
    model = tiny_released(dictionary, **SIZES)
    given = model.encoder, model.tokenizer.special
    assert type(build_engine(*given, "auto", "int8")) is NativeEngine
    assert choose(model.encoder, "fp32") == "onnxruntime"
    monkeypatch.setattr(native, "_processor", lambda: frozenset(["avx2", "fma"]))
    assert type(build_engine(*given, "auto", "int8")) is OnnxEngine
    with pytest.raises(ValueError, match="native cannot be used: the processor lacks avx512_vnni, .* onnxruntime"):
        build_engine(*given, "native", "int8")


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(pre_norm=True), "the encoder has pre_norm"),
        (dict(heads=4), "sizes of the encoder and its heads are no multiples of 16"),
    ],
)
def test_other_encoders_are_refused(changes, message):
    with pytest.raises(ValueError, match=f"native cannot be used: {message}. Use --accelerate onnxruntime"):
        NativeEngine(encoder_of(**dict(hidden_size=32, ffn_size=64) | changes), SPECIAL, "int8")


@pytest.mark.parametrize(
    "missing, message", [(True, "it was not compiled"), (False, "compiled from another native.cpp")]
)
def test_a_library_that_is_not_there_or_old_is_named(monkeypatch, tmp_path, missing, message):
    (tmp_path / "engines" / "lib").mkdir(parents=True)
    (tmp_path / "engines" / "native.cpp").write_text("another")
    if not missing:
        library = Path(native._library()._name)
        (tmp_path / "engines" / "lib" / library.name).symlink_to(library)
    monkeypatch.setattr(native, "__file__", str(tmp_path / "engines" / "native.py"))
    native._library.cache_clear()
    with pytest.raises(ValueError, match=rf"{message}; have a C\+\+ compiler"):
        NativeEngine(encoder_of(), SPECIAL, "int8")
    native._library.cache_clear()


def test_too_little_memory_is_named():
    with pytest.raises(MemoryError, match="use smaller batches"):
        native.check_memory(False)


@pytest.mark.parametrize(
    "name, change, message",
    [
        ("layers.1.ffn_in.weight", lambda array: array[:-1], r"is int8 \(95, 64\), expected int8 \(96, 64\)"),
        ("position_embeddings.weight", lambda array: array[:1], r"is float32 \(1, 64\), expected float32 \(512, 64\)"),
        ("head.norm.weight", lambda array: array.astype(np.float16), r"is float16 \(64,\), expected float32"),
        ("head.bias", lambda array: None, r"is missing, expected float32 \(384,\)"),
    ],
)
def test_weights_of_another_shape_are_refused(name, change, message):
    encoder = encoder_of()
    weights = int8_weights(encoder, SPECIAL)
    with pytest.raises(ValueError, match=f"^{name} {message}"):
        NativeEngine.of_weights(encoder.config, weights | {name: change(weights[name])}, SPECIAL, 1)


def test_another_head_is_refused():
    encoder = encoder_of()
    encoder.length_head = type("AnotherHead", (LengthHead,), {})(64, 512)
    with pytest.raises(ValueError, match="there is LengthHead only, not AnotherHead: use --accelerate none"):
        NativeEngine(encoder, SPECIAL, "int8")


def test_engines_and_states_are_not_copied():
    engine = NativeEngine(encoder_of(), SPECIAL, "int8")
    state = engine.encode(*batch([9], [5])[:2])
    for work in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="NativeEngine cannot be copied"):
            work(engine)
    with pytest.raises(TypeError, match="_Past cannot be copied"):
        copy.deepcopy(state)


def test_tokens_of_32_bits_and_wrong_lengths():
    engine = NativeEngine(encoder_of(), SPECIAL, "int8")
    src, lengths = batch([9, 4], [5, 2])[:2]
    expected = engine.encode(src, lengths).length_scores
    np.testing.assert_array_equal(engine.encode(src.astype(np.int32), lengths).length_scores, expected)
    with pytest.raises(ValueError, match=r"lengths \[9, 10\] are not those of tokens of shape \(2, 9\)"):
        engine.encode(src, np.array([9, 10]))


ENDING = """
import gc, os
from tests.engines.test_native import SPECIAL, NativeEngine, batch, encoder_of, run

for _ in range(20):
    engine = NativeEngine(encoder_of(), SPECIAL, "int8")
    state = engine.encode(*batch([9], [5])[:2])
    state.engine, engine.state = engine, state
    del engine, state
    gc.collect()
engine = NativeEngine(encoder_of(), SPECIAL, "int8")
expected = run(engine, *batch([9], [5]))
child = os.fork()
same = all((one == other).all() for one, other in zip(run(engine, *batch([9], [5])), expected))
if child == 0:
    raise SystemExit(not same)
assert same
print("the child ended with", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_whatever_ends_first(tmp_path):
    """A cycle of engine and state, whose parts go in any order; a fork, which has no threads, still can generate."""
    command = [sys.executable, "-c", "import torch; torch.set_num_threads(2)\n" + ENDING]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "the child ended with 0\n"), done.stderr
