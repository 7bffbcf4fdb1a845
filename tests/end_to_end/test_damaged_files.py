"""Truncated, flipped, swapped: a damaged file is refused by its name, or what is read is right."""

import resource
import shutil
from pathlib import Path

import pytest
import torch
from fairseq import checkpoint_utils

from mist_fairseq.data.dictionary import load_dictionary
from mist_fairseq.experiments.benchmark.inputs import read_entries
from mist_fairseq.files.exported import write_sums
from mist_fairseq.files.torch_files import load_torch_file
from mist_fairseq.hub.onnx_generator import OnnxGenerator
from mist_fairseq.models.mist_model import MistModel
from mist_fairseq.pretrained.weights import read_weights
from mist_fairseq.release.folder import load_folder, save_folder
from mist_fairseq.release.onnx_folder import save_onnx
from tests.end_to_end.conftest import preprocess
from tests.end_to_end.damage import damages, read_data, survive
from tests.helpers import (
    bert_state,
    plain,
    tiny_dictionary,
    tiny_released,
    tiny_vocab,
    write_bert_folder,
)

# -- checkpoints and weights --------------------------------------------------------------------------------------


def test_checkpoints(trained, tmp_path):
    path = Path(shutil.copy(trained[0], tmp_path / "checkpoint_last.pt"))
    torch.save({"model": {}}, tmp_path / "other.pt")
    others = [(tmp_path / "other.pt").read_bytes(), b""]
    assert survive(path, others, lambda: plain(checkpoint_utils.load_checkpoint_to_cpu(str(path)))) > 150


def test_a_damaged_checkpoint_says_which_one_is_in_order(trained, tmp_path):
    whole = trained[0].read_bytes()
    (tmp_path / "checkpoint_last.pt").write_bytes(whole[:-9])
    (tmp_path / "checkpoint_1_9.pt").write_bytes(whole)
    torch.save({"model": {}}, tmp_path / "checkpoint_averaged.pt")  # the newest, from which no training goes on
    with pytest.raises(ValueError, match=r"checkpoint_last.pt is damaged .*; .*checkpoint_1_9.pt is in order"):
        checkpoint_utils.load_checkpoint_to_cpu(str(tmp_path / "checkpoint_last.pt"))


def test_weights_are_no_checkpoint(tmp_path):
    torch.save(bert_state(len(tiny_vocab())), tmp_path / "weights.pt")
    with pytest.raises(
        ValueError, match=r"weights.pt is no checkpoint of fairseq-train: it has no weights under 'model'"
    ):
        checkpoint_utils.load_checkpoint_to_cpu(str(tmp_path / "weights.pt"))


def test_pretrained_weights_of_torch(tmp_path):
    path = write_bert_folder(tmp_path / "bert", bert_state(len(tiny_vocab())), safetensors=False) / "pytorch_model.bin"
    assert survive(path, [b""], lambda: plain(read_weights(path))) > 150


@pytest.mark.parametrize("name", ["config.json", "vocab.txt", "model.safetensors", "SHA256SUMS"])
def test_pretrained_folders(tmp_path, name):
    """With the checksums that scripts/get_pretrained.py writes."""
    folder = write_bert_folder(tmp_path / "bert", bert_state(len(tiny_vocab())))
    write_sums(folder, ["config.json", "vocab.txt", "model.safetensors"])
    dictionary = load_dictionary(str(folder / "vocab.txt"))
    other = write_bert_folder(tmp_path / "other", bert_state(len(tiny_vocab()), seed=1), vocab=tiny_vocab()[::-1])
    write_sums(other, ["config.json", "vocab.txt", "model.safetensors"])

    def load():
        return MistModel.pretrained_sizes(str(folder), dictionary), plain(read_weights(folder / "model.safetensors"))

    others = [] if name == "config.json" else [(other / name).read_bytes()]
    assert survive(folder / name, others, load) > 150


@pytest.mark.parametrize("name", ["config.json", "dict.txt", "model.safetensors", "SHA256SUMS"])
def test_released_folders(tmp_path, name):
    dictionary = tiny_dictionary()
    for seed, folder in enumerate(("folder", "other")):
        save_folder(tiny_released(dictionary, seed=seed), str(tmp_path / folder), "")

    def load():
        released = load_folder(str(tmp_path / "folder"))
        return plain(released.state()), released.tokenizer.fingerprint(), released.limits

    others = [(tmp_path / "other" / name).read_bytes()] if name in ("model.safetensors", "SHA256SUMS") else [b"{}"]
    assert survive(tmp_path / "folder" / name, others, load) > 100


@pytest.mark.parametrize("name", ["config.json", "dict.txt", "model.onnx", "model.bin", "SHA256SUMS"])
def test_onnx_folders(tmp_path, name):
    dictionary = tiny_dictionary()
    for seed, folder in enumerate(("folder", "other")):
        save_onnx(tiny_released(dictionary, seed=seed), str(tmp_path / folder))

    def load():
        return OnnxGenerator.from_pretrained(str(tmp_path / "folder"), threads=1).generate(["how can i learn"])

    others = [
        (tmp_path / folder / other).read_bytes() for folder, other in (("other", name), ("folder", "config.json"))
    ]
    if name.endswith(".onnx"):
        others += [path.read_bytes() for path in (tmp_path / "folder").glob("*.onnx") if path.name != name]
    others = [data for data in others if data != (tmp_path / "folder" / name).read_bytes()]
    assert survive(tmp_path / "folder" / name, others, load) > 100


# -- data ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def copied(data, tmp_path) -> Path:
    return Path(shutil.copytree(data, tmp_path / "bin"))


@pytest.mark.parametrize("name", ["src.bin", "tgt.bin", "src.idx", "tgt.idx", "tgt.crc32"])
def test_binarized_data(copied, name):
    side, kind = name.split(".")
    name = f"train.src-tgt.{name}"
    others = [
        copied / name.replace("train", "valid"),
        copied / f"train.src-tgt.{'tgt' if side == 'src' else 'src'}.{kind}",
    ]
    names = (name.removesuffix(f".{kind}"),)  # of files that do not fit each other any may be named
    assert survive(copied / name, [path.read_bytes() for path in others], lambda: read_data(copied), names=names) > 150


@pytest.mark.parametrize("name", ["dict.src.txt", "dict.tgt.txt"])
def test_dictionaries_of_data(copied, name):
    assert survive(copied / name, [b"", b"#"], lambda: read_data(copied)) > 150


def test_source_and_target_exchanged(copied):
    for kind in ("bin", "idx", "crc32"):
        source, target, between = (copied / f"train.src-tgt.{side}.{kind}" for side in ("src", "tgt", "between"))
        source.rename(between), target.rename(source), between.rename(target)
    with pytest.raises(
        ValueError, match=r"train.src-tgt.src.idx was written as 'tgt' and is read as 'src': was it renamed"
    ):
        read_data(copied)


def test_data_of_fairseq_alone(copied, data):
    """Without checksums what can be seen is seen: sizes, order, ids beyond the dictionary."""
    index, whole = copied / "train.src-tgt.tgt.idx", read_data(data)
    (copied / "train.src-tgt.tgt.crc32").unlink()
    assert read_data(copied) == whole
    ids = copied / "train.src-tgt.tgt.bin"
    complete = ids.read_bytes()
    for wrong, message in (
        (complete[:-2], "tgt.bin has .* bytes, .*tgt.idx says"),
        (
            b"\xff\xff" + complete[2:],
            "tgt.bin has the token ids .* to 65535, the dictionary beside it has those from 0",
        ),
    ):
        ids.write_bytes(wrong)
        with pytest.raises(ValueError, match=message):
            read_data(copied)
    ids.write_bytes(complete)
    kept = index.read_bytes()
    index.write_bytes(kept[:26] + kept[30:34] + kept[26:30] + kept[34:])  # the first two sizes
    with pytest.raises(ValueError, match="tgt.idx is damaged: the sentences do not follow each other"):
        read_data(copied)


def test_data_of_version_0_1(copied, data):
    """Its checksums stand in the index, behind what fairseq reads."""
    index, sums, whole = copied / "train.src-tgt.tgt.idx", copied / "train.src-tgt.tgt.crc32", read_data(data)
    index.write_bytes(index.read_bytes() + sums.read_bytes())
    sums.unlink()
    assert read_data(copied) == whole
    ids = copied / "train.src-tgt.tgt.bin"
    ids.write_bytes(b"\x07" + ids.read_bytes()[1:])
    with pytest.raises(ValueError, match="tgt.bin is not as fairseq-preprocess wrote it"):
        read_data(copied)


# -- what has no checksum -----------------------------------------------------------------------------------------


def test_tables_of_systems(tmp_path):
    """Written by hand: another value is no damage, but nothing else than entries or an error may come of it."""
    path, rest = (
        tmp_path / "systems.yaml",
        b"- {name: b, arguments: --arch mist_base, precision: bf16, passes: {2: 0.5, 3: 0.5}}\n",
    )
    whole = b"data: bin\nsystems:\n- {name: a, path: a.pt, group: AR, options: {beam: 4}}\n" + rest
    read = 0
    for what, data in damages(whole, [], 400):
        path.write_bytes(data)
        try:
            entries, _ = read_entries(path)
        except (ValueError, OSError) as error:
            assert "systems.yaml" in str(error), (what, error)
        else:
            read += all(type(entry.name) is str for entry in entries)
    assert 10 < read < 390


def test_data_of_another_vocabulary_of_the_same_size(text, bert_folder, data, tmp_path):
    """Half of a folder anew, as after a preprocessing that was killed."""
    lines = (bert_folder / "vocab.txt").read_text().splitlines()
    (tmp_path / "vocab.txt").write_text("\n".join([*lines[:-2], lines[-1], lines[-2]]) + "\n")
    preprocess(text, tmp_path / "vocab.txt", tmp_path / "bin")
    for path in data.glob("train.src-tgt.tgt.*"):
        shutil.copy(path, tmp_path / "bin")
    with pytest.raises(ValueError, match="tgt.idx was written with another vocabulary than that of the dictionary"):
        read_data(tmp_path / "bin")


# -- writing ------------------------------------------------------------------------------------------------------


def test_a_disk_that_is_full_for_a_moment(tmp_path, monkeypatch):
    """fairseq by itself tries again, behind what it has written."""
    path, save, tries = tmp_path / "checkpoint_last.pt", torch.save, []
    checkpoint_utils.torch_persistent_save({"x": torch.ones(3)}, str(path))

    def fails_once(content, file):
        tries.append(file)
        if len(tries) == 1:
            file.write(b"half")
            raise OSError(28, "No space left on device")
        save(content, file)

    monkeypatch.setattr(torch, "save", fails_once)
    with pytest.raises(OSError, match="No space left"):
        checkpoint_utils.torch_persistent_save({"x": torch.zeros(3)}, str(path))
    assert torch.equal(load_torch_file(path)["x"], torch.ones(3))
    checkpoint_utils.torch_persistent_save({"x": torch.zeros(3)}, str(path))
    assert torch.equal(load_torch_file(path)["x"], torch.zeros(3))
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint_last.pt"]


def test_a_full_disk_is_named(tmp_path):
    """torch by itself ends in "unexpected pos 704 vs 598"."""
    path, before = tmp_path / "checkpoint_last.pt", resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large: .*checkpoint_last.pt"):
            checkpoint_utils.torch_persistent_save({"x": torch.zeros(10_000)}, str(path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())
