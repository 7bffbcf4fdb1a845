"""Files that would run code, make models of another size than their weights, or reach outside of their folder."""

import argparse
import io
import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from fairseq import checkpoint_utils
from safetensors.torch import load_file

from mist_fairseq import MistGenerator
from mist_fairseq.checkpoints.authors import convert_checkpoint
from mist_fairseq.checkpoints.averaging import average_checkpoints
from mist_fairseq.checkpoints.loading import load_checkpoint, untrained_state
from mist_fairseq.data.dictionary import load_dictionary
from mist_fairseq.experiments.benchmark.inputs import read_entries, read_profile
from mist_fairseq.experiments.benchmark.systems import load_system
from mist_fairseq.files.exported import SUMS
from mist_fairseq.files.torch_files import load_torch_file
from mist_fairseq.hub.onnx_generator import OnnxGenerator
from mist_fairseq.models.mist_model import MistModel
from mist_fairseq.pretrained.weights import WEIGHTS, find_file, read_weights
from mist_fairseq.release.folder import load_folder, save_folder
from mist_fairseq.release.onnx_folder import save_onnx
from tests.checkpoints.helpers import write_checkpoint
from tests.end_to_end.conftest import ENVIRONMENT, LIMITS, ROOT, TRAINING, run
from tests.end_to_end.damage import read_data
from tests.end_to_end.warm import run_module
from tests.helpers import (
    bert_state,
    change_released,
    renew_sums,
    tiny_dictionary,
    tiny_released,
    tiny_vocab,
    write_bert_folder,
)

# -- code ---------------------------------------------------------------------------------------------------------


class Payload:
    """Makes a file where it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


def in_todays_format(content) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def in_the_format_before(content) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


@pytest.fixture(params=[in_todays_format, in_the_format_before, pickle.dumps])
def evil(request, tmp_path) -> bytes:
    """A pickle with a payload, which did not run in the end."""
    marker = tmp_path / "ran"
    yield request.param({"model": {"bert.x": Payload(marker)}, "cfg": Payload(marker), "args": None})
    assert not marker.exists()


def test_payloads_would_run(tmp_path):
    """Where code is executed: the tests below could fail."""
    for i, write in enumerate((in_todays_format, in_the_format_before, pickle.dumps)):
        file = io.BytesIO(write({"model": Payload(tmp_path / str(i))}))
        pickle.load(file) if write is pickle.dumps else torch.load(file, weights_only=False)
        assert (tmp_path / str(i)).exists()


def written(path: Path, content: bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return str(path)


def refused(name: str, read: Callable):
    with pytest.raises((ValueError, OSError)) as error:
        read()
    assert name in str(error.value) and "weights_only" not in str(error.value), error.value


def test_code_in_checkpoints(evil, tmp_path, data):
    path = written(tmp_path / "folder" / "checkpoint_last.pt", evil)
    bert = str(write_bert_folder(tmp_path / "bert", {}))
    refused(path, lambda: checkpoint_utils.load_checkpoint_to_cpu(path))
    refused(path, lambda: load_checkpoint(path, str(data)))
    refused(path, lambda: average_checkpoints([path], tmp_path / "mean.pt"))
    refused(path, lambda: convert_checkpoint(path, bert, str(tmp_path / "out.pt"), 40, 20))
    refused(path, lambda: MistGenerator.from_pretrained(str(tmp_path / "folder"), "checkpoint_last.pt", str(data)))
    entry = {"name": "a", "path": path, "data": str(data), "options": {"beam": 1}}
    (tmp_path / "systems.yaml").write_text(json.dumps({"systems": [entry]}))
    refused(path, lambda: load_system(read_entries(tmp_path / "systems.yaml")[0][0]))


@pytest.mark.parametrize("evil", [in_todays_format], indirect=True)
@pytest.mark.parametrize("how", ["generate", "validate", "last", "restore", "finetune", "pretrained"])
def test_code_in_files_of_commands(evil, how, tmp_path, data, bert_folder):
    path = written(tmp_path / "folder" / "checkpoint_last.pt", evil)
    if how in ("generate", "validate"):
        output = run(how, data, "--path", path, "--cpu", "--batch-size", "8", fails=True)
    else:
        arch = ["--arch", "mist_base", *LIMITS, *TRAINING, "--max-update", "1"]
        save = tmp_path / ("folder" if how == "last" else "new")
        options = {"last": [], "restore": ["--restore-file", path], "finetune": ["--finetune-from-model", path]}
        if how == "pretrained":
            folder = Path(shutil.copytree(bert_folder, tmp_path / "bert"))
            (folder / "model.safetensors").unlink()
            path = written(folder / "pytorch_model.bin", evil)
            options[how] = ["--pretrained", folder]
        output = run("train", data, *arch, *options[how], "--save-dir", save, fails=True)
    assert f"{path} is damaged" in output.strip().splitlines()[-1]


def test_code_in_folders(evil, tmp_path):
    """In place of each file of a pre-trained, a released and an ONNX folder."""
    dictionary = tiny_dictionary()
    bert = write_bert_folder(tmp_path / "bert", bert_state(len(tiny_vocab())))
    save_folder(tiny_released(dictionary), str(tmp_path / "released"), "")
    save_onnx(tiny_released(dictionary), str(tmp_path / "onnx"))

    def pretrained():
        MistModel.pretrained_sizes(str(bert), dictionary)
        read_weights(find_file(str(bert), WEIGHTS))

    reads = {
        "bert": (pretrained, ["config.json", "vocab.txt", "model.safetensors"]),
        "released": (lambda: load_folder(str(tmp_path / "released")), ["config.json", "dict.txt", "model.safetensors"]),
        "onnx": (
            lambda: OnnxGenerator.from_pretrained(str(tmp_path / "onnx")),
            ["config.json", "dict.txt", "model.onnx"],
        ),
    }
    for kind, (read, names) in reads.items():
        for name in names:
            path = tmp_path / kind / name
            whole = path.read_bytes()
            path.write_bytes(evil)
            refused(name, read)
            if kind != "bert":
                renew_sums(path.parent)  # by an attacker
                refused(name, read)
            path.write_bytes(whole)
            if kind != "bert":
                renew_sums(path.parent)
        read()


def test_code_in_data(evil, tmp_path, data):
    for name in ("train.src-tgt.src.idx", "train.src-tgt.tgt.bin", "dict.src.txt"):
        folder = Path(shutil.copytree(data, tmp_path / name))
        (folder / name).write_bytes(evil)
        refused(name[:-4], lambda folder=folder: read_data(folder))


@pytest.mark.parametrize("name", ["train.src-tgt.src.idx", "train.src-tgt.tgt.bin", "dict.src.txt"])
def test_pipes_in_data(name, tmp_path, data):
    """Whoever reads one waits for ever."""
    folder = Path(shutil.copytree(data, tmp_path / "bin"))
    (folder / name).unlink()
    os.mkfifo(folder / name)
    refused(name, lambda: read_data(folder))


def test_code_in_vocabularies(evil, tmp_path):
    for name in ("vocab.txt", "sp.model", "dict.txt", "encoder.json"):
        if name == "encoder.json":
            written(tmp_path / "dict.txt", b"1 1\n")
            written(tmp_path / "vocab.bpe", b"#\n")
        path = written(tmp_path / name, evil)
        refused(name, lambda path=path: load_dictionary(path if "json" not in path else str(tmp_path / "dict.txt")))


@pytest.mark.parametrize("tag", ["object/apply:builtins.open [%s, w]", "object/new:builtins.open [[%s, w]]"])
def test_code_in_yaml(tag, tmp_path):
    path, tag = tmp_path / "given.yaml", f"!!python/{tag}" % (tmp_path / "ran")
    path.write_text(f"systems:\n- {{name: {tag}, path: a.pt}}\n")
    refused("given.yaml", lambda: read_entries(path))
    path.write_text(f"source: {tag}\ntarget: 9\n")
    refused("given.yaml", lambda: read_profile(str(path)))
    assert not (tmp_path / "ran").exists()


def test_code_in_a_configuration_of_hydra(tmp_path):
    shutil.copytree(ROOT / "examples" / "config", tmp_path / "config")
    config = tmp_path / "config" / "quickstart.yaml"
    config.write_text(f"{config.read_text()}\nevil: !!python/object/apply:builtins.open [{tmp_path / 'ran'}, w]\n")
    options = ["--config-dir", str(tmp_path / "config"), "--config-name", "quickstart"]
    status, output = run_module(["fairseq_cli.hydra_train", *options], str(ROOT), ENVIRONMENT)
    assert status != 0 and "could not determine a constructor for the tag" in output
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("form", ["model", "task", "criterion", "args"])
def test_code_in_the_options_of_a_checkpoint(form, tmp_path):
    """fairseq runs some options of a checkpoint as Python, in each architecture others."""
    path, code = str(tmp_path / "checkpoint.pt"), f"[open({str(tmp_path / 'ran')!r}, 'w')]"
    attacks = [
        {"adaptive_softmax_cutoff": code},
        {"conv_feature_layers": f" \t{code}"},
        {"pretrained": code},
        {"encoder": {"xformers_att_config": code}},
        {"any": "[0 for Namespace.__class_getitem__ in [print]]"},
        {"any": "[a] + [i for i in open('b')]"},
        {"any": code.encode()},
    ]
    for attack in attacks:
        options = {"_name": "transformer", "arch": "transformer", **attack}
        state = {"model": {"x": torch.zeros(3)}, "args": None, "cfg": None, **untrained_state()}
        cfg = {"model": {}, "task": {}, "criterion": {}, form: options}
        torch.save(state | ({"args": argparse.Namespace(**options)} if form == "args" else {"cfg": cfg}), path)
        refused("which fairseq might run as code", lambda: checkpoint_utils.load_checkpoint_to_cpu(path))
    assert not (tmp_path / "ran").exists()


def test_options_that_are_no_code(tmp_path):
    path = str(tmp_path / "checkpoint.pt")
    usual = {"decoder_layers": "[(512, 3)] * 20", "data": "run(2)", "adam_betas": "(0.9, 0.999)", "w2v_path": "a/b.pt"}
    usual |= {
        "eval_bleu_args": '{"beam": 4, "match_source_len": true}',
        "quotes": "it's",
        "lang": "en-de",
        "none": None,
    }
    usual |= {"w2v_path": "~/models/a (1).pt", "sizes": "[(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512, 2, 2)] * 2"}
    state = {"model": {"x": torch.zeros(3)}, "args": None, **untrained_state()}
    torch.save(state | {"cfg": {"model": {"_name": "fconv", **usual}, "task": usual}}, path)
    assert checkpoint_utils.load_checkpoint_to_cpu(path)["cfg"]["model"]["decoder_layers"] == "[(512, 3)] * 20"


def test_a_folder_with_a_name_like_a_call(tmp_path):
    """Our models evaluate nothing; fairseq's fconv_self_att evaluates this option."""
    path, state = str(tmp_path / "checkpoint.pt"), write_checkpoint(tmp_path)
    state["cfg"]["model"]["pretrained"] = "bert (1)"
    torch.save(state, path)
    assert checkpoint_utils.load_checkpoint_to_cpu(path)["cfg"]["model"]["pretrained"] == "bert (1)"
    state["cfg"]["model"]["_name"] = "fconv_self_att"
    torch.save(state, path)
    refused("pretrained is 'bert (1)', which fairseq might run", lambda: checkpoint_utils.load_checkpoint_to_cpu(path))


@pytest.mark.parametrize(
    "text",
    [
        "'a' * 2000000000",
        "[0] * 1000 * 1000 * 1000",
        "f'{1:2000000000}'",
        "9 ** 9 ** 9",
        "1 << 9999999999",
        "0" * 10_001,
    ],
)
def test_options_that_would_take_all_memory(text, tmp_path):
    path = str(tmp_path / "checkpoint.pt")
    options = {"_name": "transformer", "adaptive_softmax_cutoff": text, "other": "a"}
    state = {"args": None, "cfg": {"model": options, "task": {"_name": "translation"}}, "model": {"x": torch.zeros(3)}}
    torch.save(untrained_state() | state, path)
    refused(f"{path}: adaptive_softmax_cutoff is", lambda: checkpoint_utils.load_checkpoint_to_cpu(path))


# -- sizes -------------------------------------------------------------------------------------------------------


def test_options_that_refer_to_each_other(tmp_path):
    """In any part: fairseq has OmegaConf put them into each other before anybody can look at them."""
    path = str(tmp_path / "checkpoint.pt")
    options = {"a0": "x", **{f"a{i}": f"${{.a{i - 1}}}${{.a{i - 1}}}" for i in range(1, 40)}}
    for part in ("model", "common"):
        cfg = {"model": {"_name": "transformer"}, "task": {"_name": "translation"}}
        torch.save({"args": None, "cfg": cfg | {part: options}, "model": {}} | untrained_state(), path)
        refused("a1 is '${.a0}${.a0}', which is no value", lambda: checkpoint_utils.load_checkpoint_to_cpu(path, {}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder_layers": 10**12}, "asks for 1,000,000,000,000 layers, but it has"),
        (
            {"encoder_layers": 9},
            "encoder.layers.2.attention_norm.bias has shape None, the configuration asks for (32,)",
        ),
        ({"encoder_embed_dim": 10**7}, "the configuration asks for"),
        ({"encoder_embed_dim": 10**12}, ""),
        (
            {"max_positions": 10**10},
            "encoder.position_embeddings.weight has shape (64, 32), the configuration asks for",
        ),
        ({"encoder_ffn_embed_dim": -1}, "makes no model"),
        ({"encoder_layers": "a"}, "the number of layers is no number"),
        ({"encoder_attention_heads": 0}, "is not a multiple of the 0 attention heads"),
        ({"source_type_id": 9}, "makes no model"),
    ],
)
def test_sizes_of_a_checkpoint(changes, message, tmp_path):
    """Such a model is never built where it would take memory."""
    path, state = str(tmp_path / "checkpoint.pt"), write_checkpoint(tmp_path)
    assert load_checkpoint(path, str(tmp_path))[0].encoder.config.layers == 2
    state["cfg"]["model"] |= changes
    torch.save(state, path)
    refused(path, lambda: checkpoint_utils.load_checkpoint_to_cpu(path))
    refused(message, lambda: checkpoint_utils.load_checkpoint_to_cpu(path))


@pytest.mark.parametrize(
    "changes",
    [
        *({"num_hidden_layers": 10**9}, {"hidden_size": 10**6}, {"type_vocab_size": 10**9}, {"rel_pos_bins": 10**9}),
        dict.fromkeys(["num_hidden_layers"], 10**6)
        | dict.fromkeys(["hidden_size", "num_attention_heads", "intermediate_size"], 1),
    ],
)
def test_sizes_of_folders(changes, tmp_path):
    dictionary = tiny_dictionary()
    bert = write_bert_folder(tmp_path / "bert", bert_state(len(tiny_vocab())), changes)
    refused(str(tmp_path / "bert"), lambda: MistModel.pretrained_sizes(str(bert), dictionary))
    checkpoint = tmp_path / "state.bin"
    torch.save(bert_state(len(tiny_vocab())), checkpoint)
    refused(
        str(tmp_path),
        lambda: convert_checkpoint(str(checkpoint), str(bert), str(tmp_path / "out.pt")),
    )
    save_folder(tiny_released(dictionary), str(tmp_path / "released"), "")
    names = {
        "num_hidden_layers": "encoder_layers",
        "hidden_size": "encoder_embed_dim",
        "type_vocab_size": "token_types",
        "num_attention_heads": "encoder_attention_heads",
        "intermediate_size": "encoder_ffn_embed_dim",
    }
    change_released(tmp_path / "released", {names.get(name, name): value for name, value in changes.items()})
    refused(str(tmp_path / "released"), lambda: load_folder(str(tmp_path / "released")))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_source_positions": 2**31 - 1}, "exceed the model's 64 positions"),
        ({"rel_pos_bins": 3, "max_rel_pos": 9}, "3 buckets of relative positions"),
        ({"rel_pos_bins": 8, "max_rel_pos": 2}, "8 buckets of relative positions up to 2"),
        ({"encoder_attention_heads": 5}, "is not a multiple of the 5 attention heads"),
    ],
)
def test_released_folders_of_no_model(changes, message, tmp_path):
    save_folder(tiny_released(), str(tmp_path), "")
    change_released(tmp_path, changes)
    refused(str(tmp_path / "config.json"), lambda: load_folder(str(tmp_path)))
    refused(message, lambda: load_folder(str(tmp_path)))


def test_released_weights_of_another_type(tmp_path):
    save_folder(tiny_released(), str(tmp_path), "")
    tensors = load_file(tmp_path / "model.safetensors")
    change_released(tmp_path, {}, **{name: tensor.to(torch.int8) for name, tensor in tensors.items()})
    refused("model.safetensors: ", lambda: load_folder(str(tmp_path)))
    refused("is not a plain tensor of floats on the CPU", lambda: load_folder(str(tmp_path)))


def test_compressed_files(tmp_path):
    torch.save({"x": torch.zeros(10**6)}, tmp_path / "whole.bin")
    whole = zipfile.ZipFile(tmp_path / "whole.bin")
    with zipfile.ZipFile(tmp_path / "bomb.bin", "w", zipfile.ZIP_DEFLATED) as bomb:
        for name in whole.namelist():
            bomb.writestr(name, whole.read(name))
    assert (tmp_path / "bomb.bin").stat().st_size < 10**4
    refused(
        "bomb.bin is damaged or is no file of plain tensors: it is compressed",
        lambda: load_torch_file(tmp_path / "bomb.bin"),
    )


def test_storages_bigger_than_their_file(tmp_path):
    """torch's format of before 1.6 names a storage's size apart from its content."""
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(in_the_format_before({"x": torch.zeros(1000)}).replace(b"M\xe8\x03", b"J\x00\xca\x9a\x3b"))
    refused(f"{path} is damaged or is no file of plain tensors", lambda: load_torch_file(path))


# -- paths --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["../secret.bin", "/etc/hostname", "sub/../../secret.bin"])
def test_onnx_files_do_not_reach_outside(where, tmp_path):
    folder = tmp_path / "folder"
    save_onnx(tiny_released(), str(folder))
    (tmp_path / "secret.bin").write_bytes(bytes(10**6))
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    for entry in next(one for one in model.graph.initializer if one.external_data).external_data:
        entry.value = {"location": where, "offset": "0"}.get(entry.key, entry.value)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    renew_sums(folder)
    refused("model.onnx or its weights are damaged", lambda: OnnxGenerator.from_pretrained(str(folder)))


def test_sums_name_no_files_elsewhere(tmp_path):
    save_onnx(tiny_released(), str(tmp_path))
    sums = (tmp_path / SUMS).read_text()
    (tmp_path / SUMS).write_text(sums.replace("  model.bin", "  ../model.bin"))
    refused(f"{SUMS} does not name model.bin", lambda: OnnxGenerator.from_pretrained(str(tmp_path)))
