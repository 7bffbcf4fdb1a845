import json

import pytest
import torch

from mist_fairseq.mist.config import PositionLimits
from mist_fairseq.release.folder import is_released, load_folder, load_released, released_sizes, save_folder
from mist_fairseq.release.huggingface import save_huggingface
from mist_fairseq.release.onnx_folder import save_onnx
from tests.helpers import change_released, renew_sums, tiny_dictionary, tiny_encoder_decoder, tiny_released, tiny_vocab


@pytest.fixture
def folder(tmp_path):
    save_folder(tiny_released(), str(tmp_path / "released"), "# A card\n")
    return tmp_path / "released"


@pytest.mark.parametrize(
    "build, sizes",
    [
        (tiny_released, {}),
        (tiny_released, {"rel_pos_bins": 8}),
        (tiny_released, {"copy_head": True}),
        (tiny_released, {"head": "dag"}),
        (tiny_released, {"untie_head": True}),
        (tiny_released, {"token_types": 3, "target_type": 2}),
        (tiny_encoder_decoder, {}),
    ],
)
def test_round_trip(tmp_path, build, sizes):
    model = build(source=33, target=17, **sizes)
    names = save_folder(model, str(tmp_path / "a"), "# A card\n")
    assert sorted(names) == sorted(path.name for path in (tmp_path / "a").iterdir())
    loaded = load_folder(str(tmp_path / "a"))
    expected, found = model.encoder.state_dict(), loaded.encoder.state_dict()
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)
    assert type(loaded.encoder) is type(model.encoder) and not loaded.encoder.training
    assert loaded.encoder.config == model.encoder.config and loaded.limits == PositionLimits(33, 17)
    assert loaded.tokenizer.fingerprint() == model.tokenizer.fingerprint()
    assert (tmp_path / "a" / "README.md").read_text() == "# A card\n"


@pytest.mark.parametrize("save", [lambda *given: save_folder(*given[:2], "", *given[2:]), save_huggingface, save_onnx])
def test_files_are_overwritten_only_when_told_and_nothing_else(tmp_path, save):
    for name in ("config.json", "SHA256SUMS", "notes.txt"):
        (tmp_path / name).write_text("mine")
    with pytest.raises(FileExistsError, match=r"has config.json, SHA256SUMS already: choose another folder"):
        save(tiny_released(), str(tmp_path))
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"] * 3
    save(tiny_released(), str(tmp_path), True)
    assert json.loads((tmp_path / "config.json").read_text()) and (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "dict.txt", "SHA256SUMS"])
def test_a_missing_file_is_told(folder, name):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"has no {name}: export the model again"):
        load_folder(str(folder))


def test_the_card_may_be_missing(folder):
    (folder / "README.md").unlink()
    load_folder(str(folder))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"version": 2}, "version is 2, expected 1: export the model again"),
        ({"format": "onnx"}, "its format is 'onnx', expected 'mist_fairseq'. An ONNX folder is read by OnnxGenerator"),
        ({"format": None, "model_type": "bert"}, "its format is None"),
        ({"max_source_positions": 30}, "config.json was changed since the export"),
        ({"model": None}, "config.json was changed since the export"),
    ],
)
def test_another_configuration_is_refused(folder, changes, message):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(ValueError, match=message):
        load_folder(str(folder))


@pytest.mark.parametrize(
    "changes, tensors, message",
    [
        ({"architecture": "gpt"}, {}, "config.json makes no model of mist or nat_mass: KeyError.'gpt'"),
        ({"model": {"encoder_layers": 2}}, {}, r"embedding_norm.bias has shape \(32,\), .* asks for \(768,\)"),
        ({"model": None}, {}, "config.json makes no model .*: TypeError"),
        ({"max_source_positions": "40"}, {}, "config.json makes no model .*: TypeError"),
        ({"encoder_layers": -1}, {}, r"layers.0.attention_norm.bias has shape \(32,\), .* asks for None"),
        ({"encoder_layers": 3}, {}, r"layers.2.attention_norm.bias has shape None, .* asks for \(32,\)"),
        ({"encoder_layers": 10**9}, {}, "configuration asks for 1,000,000,000 layers, but it has 35"),
        ({"max_positions": 65}, {}, r"position_embeddings.weight has shape \(64, 32\), .* asks for \(65, 32\)"),
        ({}, {"extra": torch.zeros(2)}, r"extra has shape \(2,\), the configuration asks for None"),
        ({}, {"fingerprint": torch.zeros(2, 2)}, "trained with another vocabulary than that of dict.txt beside it"),
    ],
)
def test_an_export_that_does_not_fit_is_refused(folder, dictionary, changes, tensors, message):
    """Before a model of its sizes is built for training, too."""
    change_released(folder, changes, **tensors)
    for read in (load_folder, lambda folder: released_sizes(folder, "mist", dictionary.tokenizer)):
        with pytest.raises(ValueError, match=message):
            read(str(folder))


@pytest.mark.parametrize("content", ["", "{", "[]", "3", "null", "\x00"])
def test_a_configuration_that_is_no_object_is_refused(folder, content):
    (folder / "config.json").write_text(content)
    assert not is_released(str(folder))
    with pytest.raises(ValueError, match=r"config.json is not"):
        load_folder(str(folder))


def test_damaged_weights_are_refused(folder):
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], b"\xff" * 100 + whole[100:]):
        path.write_bytes(damaged)
        for message in ("is damaged, or is not the file that SHA256SUMS", "is damaged or is no file of plain"):
            with pytest.raises(ValueError, match=rf"model.safetensors {message}"):
                load_folder(str(folder))
            renew_sums(folder)


def test_weights_of_another_vocabulary_are_refused(folder):
    another_tokenizer().save(folder / "dict.txt")
    renew_sums(folder)
    with pytest.raises(ValueError, match="was trained with another vocabulary than that of dict.txt beside it"):
        load_folder(str(folder))


# -- as --pretrained ------------------------------------------------------------------------------------------


def test_sizes_and_weights_for_training(folder, dictionary):
    assert is_released(str(folder))
    sizes = released_sizes(str(folder), "mist", dictionary.tokenizer)
    assert sizes["encoder_embed_dim"] == 32 and sizes["length_classes"] == 32 and "dropout" not in sizes
    encoder, expected = (tiny_released(dictionary, seed=seed).encoder for seed in (1, 0))
    load_released(encoder, str(folder))
    assert all(torch.equal(value, expected.state_dict()[name]) for name, value in encoder.state_dict().items())
    assert "copy_head" not in sizes  # so --copy-head adds one
    encoder = tiny_released(dictionary, copy_head=True).encoder
    own = encoder.copy_head.weight.clone()
    load_released(encoder, str(folder))
    assert torch.equal(encoder.copy_head.weight, own) and torch.equal(encoder.head.bias, expected.head.bias)


def test_paths_for_a_model_of_a_fixed_length(folder, dictionary, tmp_path):
    """A model that has paths keeps their sizes."""
    assert not {"head", "upsample", "least_vertices"} & released_sizes(str(folder), "mist", dictionary.tokenizer).keys()
    model = tiny_released(dictionary, seed=1, head="dag", upsample=2)
    own = model.encoder.transition_head.gate.weight.clone()
    load_released(model.encoder, str(folder))
    assert torch.equal(model.encoder.transition_head.gate.weight, own)
    save_folder(model, str(tmp_path / "paths"), "card")
    sizes = released_sizes(str(tmp_path / "paths"), "mist", dictionary.tokenizer)
    assert (sizes["head"], sizes["upsample"], sizes["least_vertices"]) == ("dag", 2, 48)
    assert torch.equal(load_folder(str(tmp_path / "paths")).encoder.transition_head.gate.weight, own)


def test_training_with_another_kind_or_vocabulary_is_refused(folder):
    with pytest.raises(ValueError, match="holds a mist model, --arch is another kind"):
        released_sizes(str(folder), "nat_mass", tiny_dictionary().tokenizer)
    with pytest.raises(ValueError, match="binarized with another vocabulary"):
        released_sizes(str(folder), "mist", another_tokenizer())


def another_tokenizer():
    """Of the same size."""
    vocab = tiny_vocab()
    return tiny_dictionary([*vocab[:-20], *vocab[:-21:-1]]).tokenizer
