"""The two graphs, used as someone without this package would use them, against the encoder in PyTorch."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mist_fairseq.engines.graph import Graph
from mist_fairseq.engines.onnx_graphs import _likeliest
from mist_fairseq.hub.onnx_generator import OnnxGenerator
from mist_fairseq.release import onnx_folder
from mist_fairseq.release.onnx_folder import save_onnx
from tests.engines.test_onnx_runtime import SOURCES, TARGETS, VARIANTS, inputs, untied
from tests.helpers import decode, encode, tiny_model
from tests.models.baselines.test_nat_mass import build as nat_mass

PASSES = ["source.onnx", "target.onnx", "source.int8.onnx", "target.int8.onnx"]
FILES = [*PASSES, "dict.txt", "config.json", "SHA256SUMS"]


def session(path):
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module", params=VARIANTS.values(), ids=VARIANTS)
def exported(request, dictionary, tmp_path_factory):
    model = untied(tiny_model(dictionary, **request.param))
    folder = tmp_path_factory.mktemp("exported")
    assert sorted(save_onnx(model, str(folder))) == sorted(path.name for path in folder.iterdir())
    return model, folder


def run_source(folder, tokens, lengths, precision=""):
    feed = {"tokens": tokens.numpy(), "lengths": lengths.numpy()}
    scores, *state = session(folder / f"source{precision}.onnx").run(None, feed)
    return scores, state


def run_target(folder, tokens, lengths, source_lengths, state, precision=""):
    feed = {"tokens": tokens.numpy(), "lengths": lengths.numpy(), "source_lengths": source_lengths.numpy()}
    names = [f"past_{part}{i}" for i in range(len(state) // 2) for part in ("key", "value")]
    return session(folder / f"target{precision}.onnx").run(["predictions", "scores"], feed | dict(zip(names, state)))


@torch.no_grad()
def test_source_pass_equals_the_encoders(exported, dictionary):
    model, folder = exported
    src, lengths, _, _ = inputs(dictionary)
    scores, found = run_source(folder, src, lengths)
    state = encode(model, src, lengths)
    np.testing.assert_allclose(scores, model.encoder.length_logits(state), atol=1e-4, rtol=0)
    expected = [part for pair in zip(state.keys, state.values) for part in pair]
    assert len(found) == len(expected) == 4
    for row, length in enumerate(SOURCES):
        for one, other in zip(found, expected):
            np.testing.assert_allclose(one[row, :, :length], other[row, :, :length], atol=1e-4, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("every", [1, 2])
def test_target_pass_equals_encoder_and_head(exported, dictionary, every):
    """All of a target is masked, or every other token. What stands behind a target's end changes nothing."""
    model, folder = exported
    src, src_lengths, tgt, lengths = inputs(dictionary)
    tgt[:, ::every] = dictionary.mask()
    _, state = run_source(folder, src, src_lengths)
    predictions, scores = run_target(folder, tgt, lengths, src_lengths, state)
    hidden = decode(model, tgt, lengths, encode(model, src, src_lengths))
    for row, length in enumerate(TARGETS):
        tokens, log_p = model.encoder.likeliest_tokens(hidden[row], model.never_predicted)
        masked = tgt[row, :length] == dictionary.mask()
        assert masked.any() and (every == 1 or length == 1 or not masked.all())
        assert predictions[row, :length].tolist() == torch.where(masked, tokens, tgt[row, :length]).tolist()
        np.testing.assert_allclose(scores[row, :length], log_p.where(masked, 0.0), atol=1e-4, rtol=0)
        assert predictions[row, length:].tolist() == tgt[row, length:].tolist() and not scores[row, length:].any()
        src[row, SOURCES[row] :], tgt[row, length:] = 50, dictionary.mask()
    _, state = run_source(folder, src, src_lengths)
    again, scores_again = run_target(folder, tgt, lengths, src_lengths, state)
    for row, length in enumerate(TARGETS):
        assert again[row, :length].tolist() == predictions[row, :length].tolist()
        np.testing.assert_allclose(scores_again[row, :length], scores[row, :length], atol=1e-5, rtol=0)


@pytest.mark.parametrize("precision", ["", ".int8"])
def test_nothing_masked(exported, dictionary, precision):
    _, folder = exported
    src, src_lengths, tgt, lengths = inputs(dictionary)
    tgt[:] = 50
    _, state = run_source(folder, src, src_lengths, precision)
    predictions, scores = run_target(folder, tgt, lengths, src_lengths, state, precision)
    assert (predictions == 50).all() and not scores.any()


def test_int8_is_near_fp32_and_each_sentence_has_its_own(exported, dictionary):
    """As the engine's: keys and values are of size one, and a row does not depend on the batch it is in."""
    _, folder = exported
    src, src_lengths, _, _ = inputs(dictionary)
    plain, rounded = (run_source(folder, src, src_lengths, precision)[1] for precision in ("", ".int8"))
    from_fp32 = from_alone = 0.0
    for row, length in enumerate(SOURCES):
        alone = run_source(folder, src[row : row + 1, :length], src_lengths[row : row + 1], ".int8")[1]
        for one, other, own in zip(plain, rounded, alone):
            from_fp32 += np.abs(one[row, :, :length] - other[row, :, :length]).mean()
            from_alone += np.abs(own[0] - other[row, :, :length]).mean()
    count = len(SOURCES) * len(plain)
    assert 1e-4 < from_fp32 / count < 0.03 and from_alone < from_fp32 / 5


@torch.no_grad()
@pytest.mark.parametrize("precision", ["", ".int8"])
def test_pad_cls_and_mask_are_never_predicted(dictionary, tmp_path, precision):
    model = tiny_model(dictionary)
    never = dictionary.never_predicted()
    model.encoder.head.bias[never] = 1e3
    save_onnx(model, str(tmp_path))
    src, src_lengths, tgt, lengths = inputs(dictionary)
    tgt[:] = dictionary.mask()
    _, state = run_source(tmp_path, src, src_lengths, precision)
    predictions, scores = run_target(tmp_path, tgt, lengths, src_lengths, state, precision)
    for row, length in enumerate(TARGETS):
        assert not set(predictions[row, :length].tolist()) & set(never)
        assert np.isfinite(scores[row, :length]).all()


BLOCKS = 3


@pytest.fixture(scope="module")
def likeliest():
    graph = Graph(int8=False)
    token, score = _likeliest(graph, graph.input("x", np.float32, ["N", BLOCKS * 128]), BLOCKS)
    graph.node("Identity", token, output="token")
    graph.node("Identity", score, output="score")
    model = graph.build({"token": ["N"], "score": ["N"]}, ("token",))
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


@settings(max_examples=50, deadline=None)
@given(rows=st.integers(0, 4), seed=st.integers(0, 10**6), kinds=st.integers(1, 400), absent=st.integers(0, 300))
def test_likeliest_of_blocks(likeliest, rows, seed, kinds, absent):
    """The first of equal ones, wherever it stands; with -inf for some."""
    rng = np.random.default_rng(seed)
    x = rng.integers(kinds, size=(rows, BLOCKS * 128)).astype(np.float32) / 10
    x[:, rng.permutation(BLOCKS * 128)[:absent]] = -np.inf
    token, score = likeliest.run(None, {"x": x})
    assert token.tolist() == x.argmax(axis=1).tolist()
    expected = x.max(axis=1) - np.log(np.exp(x.astype(np.float64)).sum(axis=1)) if rows else np.zeros(0)
    np.testing.assert_allclose(score, expected, atol=1e-5)


# -- the folder -------------------------------------------------------------------------------------------------


def test_files_say_what_they_are(exported, dictionary):
    _, folder = exported
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    config = json.loads((folder / "config.json").read_text())
    assert (config["format"], config["version"]) == ("onnx", 1)
    assert (config["max_source_positions"], config["max_target_positions"]) == (40, 20)
    assert config["vocabulary"] == dictionary.fingerprint()
    for name in PASSES:
        found = onnx.load(folder / name)
        onnx.checker.check_model(found)
        metadata = {entry.key: entry.value for entry in found.metadata_props}
        assert metadata["export"] == config["export"] and metadata["version"] == "1"
        assert name.startswith(metadata["pass"]) and ("int8" in name) == (metadata["precision"] == "int8")
        assert found.producer_name == "mist_fairseq" and found.producer_version


def test_axes_vary_and_no_scores_of_all_tokens_leave(exported):
    _, folder = exported
    for precision in ("", ".int8"):
        source, target = (session(folder / f"{side}{precision}.onnx") for side in ("source", "target"))
        layers = [f"{part}{i}" for i in range(2) for part in ("key", "value")]
        assert {one.name: one.shape for one in source.get_inputs()} == {"tokens": ["B", "S"], "lengths": ["B"]}
        assert {one.name: one.shape for one in source.get_outputs()} == {
            "length_scores": ["B", 32],
            **{name: ["B", 4, "S", 8] for name in layers},
        }
        assert {one.name: one.shape for one in target.get_inputs()} == {
            "tokens": ["B", "T"],
            "lengths": ["B"],
            "source_lengths": ["B"],
            **{f"past_{name}": ["B", 4, "S", 8] for name in layers},
        }
        outputs = {one.name: (one.type, one.shape) for one in target.get_outputs()}
        assert outputs == {"predictions": ("tensor(int64)", ["B", "T"]), "scores": ("tensor(float)", ["B", "T"])}


def test_the_same_model_gives_the_same_files_and_another_one_others(dictionary, tmp_path):
    for name, seed in (("a", 0), ("again", 0), ("other", 1)):
        save_onnx(tiny_model(dictionary, seed=seed), str(tmp_path / name))
    for name in FILES:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    exports = {json.loads((tmp_path / name / "config.json").read_text())["export"] for name in ("a", "again", "other")}
    assert len(exports) == 2


def test_overwrites_only_when_told_and_nothing_else(dictionary, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    save_onnx(tiny_model(dictionary), str(tmp_path))
    with pytest.raises(
        FileExistsError, match=r"has config.json, source.onnx, .*SHA256SUMS already: choose another folder"
    ):
        save_onnx(tiny_model(dictionary, seed=1), str(tmp_path))
    OnnxGenerator.from_pretrained(str(tmp_path))
    before = (tmp_path / "target.onnx").read_bytes()
    save_onnx(tiny_model(dictionary, seed=1), str(tmp_path), overwrite=True)
    assert (tmp_path / "target.onnx").read_bytes() != before and (tmp_path / "notes.txt").read_text() == "mine"
    OnnxGenerator.from_pretrained(str(tmp_path), "int8")


def test_an_export_that_ends_early_is_no_folder(dictionary, tmp_path, monkeypatch):
    """Nor is what it was about to replace."""
    save_onnx(tiny_model(dictionary), str(tmp_path))
    graph = onnx_folder._graph

    def stops(model, side, int8):
        if int8:
            raise OSError("no space left on device")
        return graph(model, side, int8)

    monkeypatch.setattr(onnx_folder, "_graph", stops)
    with pytest.raises(OSError, match="no space"):
        save_onnx(tiny_model(dictionary, seed=1), str(tmp_path), overwrite=True)
    assert not list(tmp_path.glob("*.tmp"))
    with pytest.raises(FileNotFoundError, match="has no config.json"):
        OnnxGenerator.from_pretrained(str(tmp_path))


def test_an_encoder_and_decoder_are_refused(dictionary, tmp_path):
    with pytest.raises(ValueError, match="NatMassModel cannot be written as ONNX: that is for mist_"):
        save_onnx(nat_mass(dictionary), str(tmp_path / "folder"))
    assert not (tmp_path / "folder").exists()


def test_a_model_whose_limits_do_not_fit_is_refused(dictionary, tmp_path):
    with pytest.raises(ValueError, match="exceed the model's 64 positions"):
        save_onnx(tiny_model(dictionary, source=60), str(tmp_path))
