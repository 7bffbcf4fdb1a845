"""What a model is said to be is what the model itself says."""

import hashlib
import json

import pytest
import torch
from safetensors.torch import load_file

from mist_fairseq.command.info import describe, main
from mist_fairseq.release.folder import save_folder
from mist_fairseq.release.onnx_folder import save_onnx
from tests.checkpoints.helpers import write_checkpoint
from tests.helpers import bert_state, tiny_released, tiny_vocab, write_bert_folder


@pytest.mark.parametrize(
    "changes", [{}, {"rel_pos_bins": 8, "max_rel_pos": 12}, {"untie_head": True}, {"rotary_base": 9.0}]
)
def test_folders_of_a_model(tmp_path, changes):
    model = tiny_released(**changes)
    save_folder(model, str(tmp_path / "folder"), "")
    save_onnx(model, str(tmp_path / "onnx"))
    save_onnx(model, str(tmp_path / "int8"), precisions=["int8"])
    number = sum(parameter.numel() for parameter in model.encoder.parameters())
    for name, precisions in (("folder", ["fp32", "bf16", "int8"]), ("onnx", ["fp32", "int8"]), ("int8", ["int8"])):
        about = describe(str(tmp_path / name))
        assert about["parameters"] == number and about["precisions"] == precisions and about["family"] == "mist"
        assert about["limits"] == {"source": model.limits.source, "target": model.limits.target}
        assert about["vocabulary"] == len(model.tokenizer.symbols) and about["checksums"] == "right"
        for file, value in about["hashes of weights"].items():
            assert value == hashlib.sha256((tmp_path / name / file).read_bytes()).hexdigest()
        assert len(about["hashes of weights"]) == len(precisions if name != "folder" else [name])
        assert about["files"] == {path.name: path.stat().st_size for path in (tmp_path / name).iterdir()}


def test_a_pretrained_encoder(tmp_path):
    folder = write_bert_folder(tmp_path / "bert", bert_state(len(tiny_vocab())))
    about = describe(str(folder))
    state = load_file(folder / "model.safetensors")
    assert about["parameters"] == sum(value.numel() for value in state.values() if value.is_floating_point())
    assert about["family"] == "bert" and about["sizes"]["encoder_layers"] == 2
    assert about["vocabulary"] == len(tiny_vocab()) and about["checksums"] == "no SHA256SUMS"


def test_a_checkpoint(tmp_path):
    state = write_checkpoint(tmp_path)
    about = describe(str(tmp_path / "checkpoint.pt"))
    assert about["family"] == "mist_tiny" and about["task"] == "mist" and about["updates"] == 0
    assert about["parameters"] == sum(value.numel() for value in state["model"].values() if value.is_floating_point())
    assert about["sizes"]["encoder_layers"] == 2


def test_a_damaged_file_is_named(tmp_path, capsys):
    save_folder(tiny_released(), str(tmp_path), "")
    (tmp_path / "README.md").write_text("changed")
    main([str(tmp_path)])
    assert "checksums:    wrong or missing: README.md" in capsys.readouterr().out
    (tmp_path / "model.safetensors").write_bytes(b"short")
    with pytest.raises(SystemExit, match="model.safetensors is damaged"):
        main([str(tmp_path)])


def test_a_name_on_the_hub(tmp_path, capsys, hub_server):
    save_onnx(tiny_released(), str(tmp_path))
    hub_server.add("org/tiny", {path.name: path.read_bytes() for path in tmp_path.iterdir()})
    main(["org/tiny", "--json"])
    about, expected = json.loads(capsys.readouterr().out), describe(str(tmp_path))
    assert about == expected | {"name": "org/tiny"}


@pytest.mark.parametrize(
    "name, message", [("nowhere", "there is no folder nowhere"), ("file", "file is no checkpoint")]
)
def test_what_is_no_model(tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    torch.save({"a": 1}, tmp_path / "file")
    with pytest.raises(SystemExit, match=message):
        main([name])
