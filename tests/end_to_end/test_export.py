import json
import os
import runpy
import sys

import pytest
import torch
import transformers

from mist_fairseq import MistGenerator
from mist_fairseq.hub.onnx_generator import OnnxGenerator
from tests.conftest import fresh_library
from tests.end_to_end.conftest import LIMITS, ROOT, TRAINING, command_line, run
from tests.end_to_end.warm import run_module


def export(*arguments) -> str:
    """Run scripts/export.py here; its error message, or nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["scripts/export.py", *map(str, arguments)])
        try:
            runpy.run_path(str(ROOT / "scripts" / "export.py"), run_name="__main__")
        except SystemExit as error:
            return str(error)
    return ""


@pytest.fixture(scope="session")
def released(tmp_path_factory, trained, data):
    folder = tmp_path_factory.mktemp("released") / "model"
    description = ["--name", "tiny", "--training-data", "Invented questions.", "--license", "mit"]
    assert not export(trained[0], "--data", data, "--to", "folder", "--out", folder, *description)
    return folder


@pytest.fixture(scope="session")
def generated(trained, data) -> list[str]:
    """What fairseq-generate prints for the test sources, in their order."""
    output = run("generate", data, "--path", trained[0], "--cpu", "--decoding", "mist", "--decoding-iterations", "3")
    lines = [line.split("\t") for line in output.splitlines() if line.startswith("H-")]
    return [text for _, text in sorted((int(line[0][2:]), line[2]) for line in lines)]


@pytest.fixture(scope="session")
def sources(text) -> list:
    """The test sources as the Python interface takes them."""
    lines = (text / "test.src").read_text(encoding="utf-8").splitlines()
    return [tuple(line.split(" [SEP] ")) if "[SEP]" in line else line for line in lines]


def assert_same(texts, generated, sources):
    """But for empty sources, to which only fairseq-generate answers something."""
    assert len(texts) == len(generated) == len(sources)
    for text, expected, source in zip(texts, generated, sources):
        assert text == (expected if source else "")


def test_a_released_folder_answers_as_fairseq_generate(released, generated, sources):
    generator = MistGenerator.from_pretrained(str(released))
    assert_same(generator.generate(sources, decoding="mist", iterations=3, batch_size=4), generated, sources)
    assert "| updates | " in (released / "README.md").read_text()


def test_a_checkpoint_answers_the_same(trained, data, generated, sources):
    folder, name = trained[0].parent, trained[0].name
    generator = MistGenerator.from_pretrained(str(folder), checkpoint_file=name, data_name_or_path=str(data))
    assert_same(generator.generate(sources, decoding="mist"), generated, sources)


def test_onnx_answers_the_same(tmp_path, released, generated, sources):
    assert not export(released, "--to", "onnx", "--out", tmp_path)
    generator = OnnxGenerator.from_pretrained(str(tmp_path))
    assert_same(generator.generate(sources, decoding="mist"), generated, sources)


def test_huggingface_loads_the_encoder(tmp_path, released):
    assert not export(released, "--to", "huggingface", "--out", tmp_path)
    bert, found = transformers.BertModel.from_pretrained(tmp_path, add_pooling_layer=False, output_loading_info=True)
    assert not found["missing_keys"] and bert.config.hidden_size == 32


def test_training_goes_on_from_a_released_folder(tmp_path, released, data, trained):
    """Its loss begins where that of the released model is."""
    options = [*LIMITS, *TRAINING, "--lr", "0", "--max-update", "1", "--save-dir", tmp_path / "checkpoints"]
    log = run("train", data, "--arch", "mist_base", "--pretrained", released, *options)
    before = run("validate", data, "--path", trained[0], "--cpu", "--valid-subset", "valid", "--batch-size", "8")
    first = float(log.split("| valid on 'valid' subset | ")[1].split("loss ")[1].split(" ")[0])
    assert "loaded all weights of" in log
    expected = float(before.split("| loss ")[1].split(" ")[0])
    assert first == pytest.approx(expected, abs=0.002)


def test_an_export_is_pushed_and_found_by_its_name(tmp_path, monkeypatch, released, trained, data, sources, hub_server):
    """As every export to a folder does, the card says how to load it."""
    to = ["--to", "folder", "--out", tmp_path / "out", "--push", "org/tiny"]
    message = export(trained[0], "--data", data, *to)
    assert message.startswith(f"{tmp_path}/out cannot be pushed to {hub_server.url}: ") and "\n" not in message
    with fresh_library(monkeypatch, HF_TOKEN=hub_server.token):
        assert not export(trained[0], "--data", data, *to, "--private", "--overwrite")
        assert hub_server.repositories["org/tiny"].private
        generator = MistGenerator.from_pretrained("org/tiny")
        _, pushed = hub_server.repositories["org/tiny"].commits.values()
        assert pushed.pop(".gitattributes") == b"" and pushed == {
            path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()
        }
        assert b'MistGenerator.from_pretrained("org/tiny")\n' in pushed["README.md"]
        assert generator.generate(sources) == MistGenerator.from_pretrained(str(released)).generate(sources)
    assert export(released, "--to", "onnx", "--out", tmp_path / "onnx", "--private") == "2", "argparse's status"


def test_training_starts_from_a_name(tmp_path, monkeypatch, data, bert_folder, hub_server):
    """With all that fairseq does to an option's text; the checkpoint needs no hub."""
    commit = hub_server.add("org/tiny", {path.name: path.read_bytes() for path in bert_folder.iterdir()})
    folder = tmp_path / "checkpoints"
    command = ["--arch", "mist_base", *LIMITS, *TRAINING, "--max-update", "1", "--save-dir", folder]
    line = command_line("train", data, *command, "--pretrained", f"org/tiny@{commit}")
    status, printed = run_module(line, str(ROOT), {**os.environ})
    assert status == 0 and f"org/tiny@{commit} is in {tmp_path}" in printed, printed
    hub_server.down = True
    generator = MistGenerator.from_pretrained(str(folder), "checkpoint_last.pt", str(data))
    assert generator.encoder.config.hidden_size == 32


def test_what_cannot_be_exported_is_told(tmp_path, trained, released, data):
    out = ["--out", tmp_path / "out"]
    assert "no checkpoint at" in export(tmp_path / "none.pt", "--to", "folder", *out)
    whole = trained[0].read_bytes()
    for i, content in enumerate((b"", b"text", whole[: len(whole) // 2])):
        path = tmp_path / f"{i}.pt"
        path.write_bytes(content)
        assert "is damaged or is no file of plain tensors" in export(path, "--data", data, "--to", "folder", *out)
    torch.save({"model": {}}, tmp_path / "other.pt")
    assert "no checkpoint of fairseq" in export(tmp_path / "other.pt", "--data", data, "--to", "folder", *out)
    assert "is a folder: --to folder needs a checkpoint" in export(released, "--to", "folder", *out)
    assert "no data folder" in export(trained[0], "--data", tmp_path / "no", "--to", "folder", *out)
    message = export(trained[0], "--data", data, "--to", "folder", "--out", released)
    assert "already: choose another folder or allow to overwrite it (--overwrite)" in message
    assert json.loads((released / "config.json").read_text())["version"] == 1
    assert not (tmp_path / "out").exists()
