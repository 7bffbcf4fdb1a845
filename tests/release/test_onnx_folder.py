"""The folder: what is written, used as someone without this package would use it, and what is refused."""

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file, save

from mist_fairseq import OnnxGenerator
from mist_fairseq.engines.onnx_runtime import start_session
from mist_fairseq.release.onnx_folder import FILES, save_onnx
from tests.engines.test_native import needs_native
from tests.engines.test_onnx_encoder import engine_of, inputs, run
from tests.helpers import renew_sums, tiny_encoder_decoder, tiny_released

NAMES = ["config.json", "model.onnx", "model.bin", "model.int8.onnx", "model.int8.bin", "dict.txt", "SHA256SUMS"]
TEXTS = ["how can i learn it"]


def load(folder, precision="fp32", threads: int | None = 1):
    return OnnxGenerator.from_pretrained(str(folder), precision, threads)


@pytest.fixture(scope="module")
def exported(dictionary, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "onnx"
    assert save_onnx(tiny_released(dictionary), str(folder)) == NAMES
    return folder


@pytest.fixture
def folder(exported, tmp_path) -> Path:
    """One that a test may spoil."""
    return Path(shutil.copytree(exported, tmp_path / "onnx"))


# -- what is written --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", FILES)
def test_the_graph_is_run_as_described(exported, dictionary, precision):
    """And gives what the engine of the same model gives."""
    src, src_lengths, tgt, lengths = map(np.asarray, inputs(dictionary))
    model = start_session(str(exported / FILES[precision][0]), 1)
    names = [f"{part}{i}" for i in range(2) for part in ("key", "value")]
    assert {one.name: one.shape for one in model.get_inputs()} == {
        "tokens": ["B", "L"],
        "lengths": ["B"],
        "past_lengths": ["B"],
        **{f"past_{name}": ["B", 4, "P", 8] for name in names},
    }
    assert {one.name: one.shape for one in model.get_outputs()} == {
        "length_scores": ["B", 32],
        **{name: ["B", "L"] for name in ("predictions", "scores")},
        **{name: ["B", 4, "K", 8] for name in names},
    }
    optional = {one.name: one.shape for one in model.get_overridable_initializers()}
    assert optional == {"second": [], "allowed": ["V"]}
    nothing = np.zeros((4, 4, 0, 8), np.float32)
    feed = {"tokens": src, "lengths": src_lengths, "past_lengths": np.zeros(4, np.int64)}
    length_scores, *past = model.run(["length_scores", *names], feed | {f"past_{name}": nothing for name in names})
    feed = {"tokens": tgt, "lengths": lengths, "past_lengths": src_lengths}
    feed |= {f"past_{name}": part for name, part in zip(names, past)}
    found = [length_scores, *model.run(["predictions", "scores"], feed)]
    expected = run(engine_of(tiny_released(dictionary), precision), src, src_lengths, tgt, lengths)
    for one, other in zip(found, expected):
        np.testing.assert_allclose(one, other, atol=1e-6, rtol=0)


def test_files_say_what_they_are(exported, dictionary):
    assert sorted(path.name for path in exported.iterdir()) == sorted(NAMES)
    config = json.loads((exported / "config.json").read_text())
    assert (config["format"], config["version"]) == ("onnx", 2)
    assert (config["max_source_positions"], config["max_target_positions"]) == (40, 20)
    assert config["vocabulary"] == dictionary.tokenizer.fingerprint()
    for precision, (name, weights) in FILES.items():
        onnx.checker.check_model(exported / name)
        model = onnx.load(exported / name, load_external_data=False)
        metadata = {entry.key: entry.value for entry in model.metadata_props}
        assert metadata["precision"] == precision and json.loads(metadata["config"]) == config
        places = [{entry.key: entry.value for entry in one.external_data} for one in model.graph.initializer]
        assert {place["location"] for place in places if place} == {weights}
        assert sum(one.ByteSize() for one in model.graph.initializer if not one.external_data) < 10_000


def test_weights_have_the_encoders_names_and_stand_once(exported, dictionary):
    encoder = tiny_released(dictionary).encoder
    state = {name: value for name, value in encoder.state_dict().items() if name != "head.bias"}
    for precision, (name, weights) in FILES.items():
        stored = {one.name: onnx.numpy_helper.to_array(one) for one in onnx.load(exported / name).graph.initializer}
        for key, value in state.items():
            found = stored[key]
            if found.dtype == np.int8:
                found = found * stored[f"{key}.scale"][:, None]
            step = np.abs(value.numpy()).max() / 254 if precision == "int8" and value.dim() == 2 else 0
            np.testing.assert_allclose(found[: len(value)], value, atol=step * 1.001, rtol=0)
        rounded = {key for key in state if stored[key].dtype == np.int8}
        size = sum(value.nbytes for key, value in stored.items() if key in encoder.state_dict() or ".scale" in key)
        assert size <= (exported / weights).stat().st_size <= size + 256 * len(stored) + 2000
        arrays = load_file(exported / weights)
        assert arrays.keys() == {key for key, value in stored.items() if key in encoder.state_dict() or ".scale" in key}
        assert all((stored[key] == value).all() for key, value in arrays.items())
        kept = {"position_embeddings.weight", "type_embeddings.weight", "length_head.weight"}
        matrices = {key for key, value in state.items() if value.dim() == 2}
        assert rounded == (matrices - kept if precision == "int8" else set())


def test_one_precision(dictionary, tmp_path):
    assert save_onnx(tiny_released(dictionary), str(tmp_path), precisions=["int8"]) == [
        name for name in NAMES if name not in FILES["fp32"]
    ]
    assert load(tmp_path, "int8").generate(TEXTS)[0]
    with pytest.raises(FileNotFoundError, match="has no model.onnx: export the model again"):
        load(tmp_path)


def test_the_same_model_gives_the_same_files_and_another_one_others(exported, dictionary, tmp_path):
    for name, seed in (("again", 0), ("other", 1)):
        save_onnx(tiny_released(dictionary, seed=seed), str(tmp_path / name))
    for name in NAMES:
        assert (exported / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
        assert name == "dict.txt" or (exported / name).read_bytes() != (tmp_path / "other" / name).read_bytes()


def test_an_export_that_ends_early_is_no_folder(folder, dictionary, monkeypatch):
    """Nor is what it was about to replace."""

    def stops(source, target):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", stops)
    with pytest.raises(OSError, match="no space"):
        save_onnx(tiny_released(dictionary, seed=1), str(folder), overwrite=True)
    assert not list(folder.glob("*.tmp"))
    with pytest.raises(FileNotFoundError, match="has no config.json"):
        load(folder)


def test_what_cannot_be_written(dictionary, tmp_path):
    with pytest.raises(ValueError, match="a nat_mass model cannot be written as ONNX: only mist_"):
        save_onnx(tiny_encoder_decoder(dictionary), str(tmp_path))
    with pytest.raises(ValueError, match="exceed the model's 64 positions"):
        save_onnx(tiny_released(dictionary, source=60), str(tmp_path))
    assert not list(tmp_path.iterdir())


# -- what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["config.json", "dict.txt", "model.onnx", "model.bin"])
def test_a_missing_file(folder, name):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"has no {name}: export the model again"):
        load(folder)


@pytest.mark.parametrize("name", ["model.onnx", "model.int8.bin"])
@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"nothing", lambda data: b""])
def test_a_damaged_file(folder, name, damage):
    (folder / name).write_bytes(damage((folder / name).read_bytes()))
    precision = "int8" if "int8" in name else "fp32"
    with pytest.raises(ValueError, match=f"{name} is damaged, or is not the file that SHA256SUMS beside it"):
        load(folder, precision)
    renew_sums(folder)
    with pytest.raises(ValueError, match=f"{FILES[precision][0]} or its weights are damaged, or of a version"):
        load(folder, precision)


@needs_native
def test_a_damaged_file_for_the_native_engine(dictionary, tmp_path):
    for name, seed in (("one", 0), ("other", 1)):
        save_onnx(tiny_released(dictionary, seed=seed, heads=2), str(tmp_path / name), precisions=["int8"])
    path = tmp_path / "one" / "model.int8.bin"
    whole = path.read_bytes()
    for data in (whole[: len(whole) // 2], b"nothing", b""):
        path.write_bytes(data)
        renew_sums(path.parent)
        with pytest.raises(ValueError, match="model.int8.bin is damaged: export the model again"):
            load(path.parent, "int8")
    path.write_bytes((tmp_path / "other" / "model.int8.bin").read_bytes())
    renew_sums(path.parent)
    with pytest.raises(ValueError, match="model.int8.bin and config.json beside it do not belong together"):
        load(path.parent, "int8")
    path.write_bytes(save(load_file(path) | {"head.bias": np.zeros(3, np.float32)}, about_of(whole)))
    renew_sums(path.parent)
    with pytest.raises(ValueError, match=r"is of another export: .* \(head.bias is float32 \(3,\), expected"):
        load(path.parent, "int8")


def about_of(content):
    """The metadata of a safetensors file."""
    return json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]


def rewrite(path, ir_version=None, **changes):
    """Change a graph's metadata."""
    model = onnx.load(path, load_external_data=False)
    for entry in model.metadata_props:
        entry.value = changes.get(entry.key, entry.value)
    model.ir_version = ir_version or model.ir_version
    path.write_bytes(model.SerializeToString())
    renew_sums(path.parent)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"format": "another"}, r"model.onnx and config.json beside it do not belong together \(by their format\)"),
        ({"precision": "int8"}, r"do not belong together \(by their precision\): one was renamed"),
        ({"ir_version": 1000}, "model.onnx or its weights are damaged, or of a version that ONNX Runtime .* not read"),
    ],
)
def test_a_graph_of_another_kind(folder, changes, message):
    rewrite(folder / "model.onnx", **changes)
    with pytest.raises(ValueError, match=message):
        load(folder)


def test_another_vocabulary(folder):
    path = folder / "dict.txt"
    path.write_text(path.read_text().replace("guitar", "violin"))
    renew_sums(folder)
    with pytest.raises(ValueError, match="dict.txt is not the vocabulary that config.json names"):
        load(folder)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"version": 1}, "config.json: version is 1, expected 2: export the model again"),
        ({"format": "else"}, "its format is 'else', expected 'onnx'. MistGenerator reads a folder of --to folder, of "),
        ({"max_source_positions": "40"}, "max_source_positions is '40', expected a whole number"),
        ({"max_target_positions": 0}, "max_target_positions is 0, expected a whole number"),
        ({"max_source_positions": 60}, r"do not belong together \(by their config\): one was renamed, changed"),
        ({"export": None}, r"do not belong together \(by their export\)"),
    ],
)
def test_a_wrong_configuration(folder, changes, message):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(ValueError, match=message):
        load(folder)


def test_wrong_options(exported):
    with pytest.raises(ValueError, match="precision is 'bf16', expected fp32 or int8"):
        load(exported, "bf16")
    for threads in (0, 1.5):
        with pytest.raises(ValueError, match=f"threads is {threads}, expected a whole number"):
            load(exported, threads=threads)


def test_without_onnx_runtime(exported, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ValueError, match=r"ONNX Runtime is not installed: pip install 'mist-fairseq\[runtime\]'"):
        load(exported)
