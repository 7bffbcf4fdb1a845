import io
import json

import pytest
import sentencepiece
import torch
from safetensors.torch import load_file, save_file

from mist_fairseq.data.dictionary import TokenizerDictionary, load_dictionary
from mist_fairseq.models.baselines.nat_mass import NatMassModel
from mist_fairseq.models.mist import MistModel, PositionLimits
from mist_fairseq.release.folder import (
    is_released,
    load_folder,
    load_released,
    read_config,
    released_sizes,
    save_folder,
)
from mist_fairseq.text.sentencepiece_tokenizer import SentencePieceTokenizer
from tests.helpers import WORDS, renew_sums, tiny_config, tiny_dictionary, tiny_model, tiny_vocab
from tests.models.baselines.test_nat_mass import build as nat_mass
from tests.models.baselines.test_nat_mass import config as nat_mass_config


@pytest.fixture
def folder(tmp_path):
    save_folder(tiny_model(), tiny_config(), str(tmp_path / "released"), "# A card\n")
    return tmp_path / "released"


def change(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


@pytest.mark.parametrize(
    "changes", [{}, {"rel_pos_bins": 8}, {"untie_head": True}, {"token_types": 3, "target_type_id": 2}]
)
def test_round_trip(tmp_path, changes):
    model = tiny_model(source=33, target=17, **changes)
    names = save_folder(model, tiny_config(**changes), str(tmp_path / "a"), "# A card\n")
    assert sorted(names) == sorted(path.name for path in (tmp_path / "a").iterdir())
    loaded = load_folder(str(tmp_path / "a"))
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())
    assert loaded.encoder.config == model.encoder.config and loaded.limits == PositionLimits(33, 17)
    assert loaded.dictionary == model.dictionary and not loaded.training
    assert (tmp_path / "a" / "README.md").read_text() == "# A card\n"


def test_round_trip_of_an_encoder_decoder(tmp_path, dictionary):
    model = nat_mass(dictionary)
    save_folder(model, nat_mass_config(), str(tmp_path), "")
    loaded = load_folder(str(tmp_path))
    assert isinstance(loaded, NatMassModel) and loaded.encoder.config == model.encoder.config
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())


def test_another_vocabulary_kind(tmp_path):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(WORDS * 20), model_writer=model, vocab_size=40, hard_vocab_limit=False, minloglevel=2
    )
    dictionary = TokenizerDictionary(SentencePieceTokenizer(model.getvalue()))
    save_folder(tiny_model(dictionary), tiny_config(), str(tmp_path / "a"), "")
    assert (
        load_folder(str(tmp_path / "a")).dictionary == dictionary == load_dictionary(str(tmp_path / "a" / "dict.txt"))
    )


def test_files_are_not_overwritten_unasked(folder):
    with pytest.raises(FileExistsError, match=r"config.json, model.safetensors.* already: choose another folder"):
        save_folder(tiny_model(seed=1), tiny_config(), str(folder), "")
    save_folder(tiny_model(seed=1), tiny_config(), str(folder), "", overwrite=True)
    assert torch.equal(load_folder(str(folder)).encoder.head.bias, tiny_model(seed=1).encoder.head.bias)


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
        ({"version": 2}, "has version 2, this mist_fairseq reads version 1"),
        ({"format": "onnx"}, "its format is 'onnx', expected 'mist_fairseq'. An ONNX folder is read by OnnxGenerator"),
        ({"format": None, "model_type": "bert"}, "its format is None"),
        ({"architecture": "gpt"}, "architecture is 'gpt', expected mist or nat_mass"),
        ({"model": {"encoder_layers": 2}}, "expected the values of encoder_layers, encoder_embed_dim"),
        ({"model": None}, "model is None"),
        ({"max_source_positions": "40"}, "max_source_positions is '40', expected a whole number"),
        ({"max_source_positions": 30}, "config.json was changed since the export"),
    ],
)
def test_a_wrong_configuration_is_refused(folder, changes, message):
    change(folder, **changes)
    with pytest.raises(ValueError, match=message):
        load_folder(str(folder))


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("encoder_layers", -1, "encoder_layers is -1, expected a whole number"),
        ("encoder_layers", True, "encoder_layers is True, expected a whole number"),
        ("untie_head", 1, "untie_head is 1, expected true or false"),
        ("encoder_layers", 3, r"layers.2.attention_norm.bias has shape None, config.json asks for \(32,\)"),
        ("encoder_attention_heads", 2, "config.json was changed since the export"),
        ("max_positions", 65, r"position_embeddings.weight has shape \(64, 32\), config.json asks for \(65, 32\)"),
    ],
)
def test_wrong_sizes_are_refused(folder, name, value, message):
    change(folder, model={**read_config(str(folder))["model"], name: value})
    with pytest.raises(ValueError, match=message):
        load_folder(str(folder))


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
        for message in ("is damaged or not the one that SHA256SUMS", "is damaged: "):
            with pytest.raises(ValueError, match=rf"model.safetensors {message}"):
                load_folder(str(folder))
            renew_sums(folder)


def test_weights_of_another_vocabulary_are_refused(folder):
    another_dictionary().save(folder / "dict.txt")
    renew_sums(folder)
    with pytest.raises(ValueError, match="was trained with another vocabulary than that of dict.txt beside it"):
        load_folder(str(folder))


def test_a_surplus_weight_is_refused(folder):
    path = folder / "model.safetensors"
    state = load_file(path)
    save_file({**state, "extra": torch.zeros(2)}, path)
    renew_sums(folder)
    with pytest.raises(ValueError, match=r"extra has shape \(2,\), config.json asks for None"):
        load_folder(str(folder))


# -- as --pretrained ------------------------------------------------------------------------------------------


def test_sizes_and_weights_for_training(folder, dictionary):
    assert is_released(str(folder))
    sizes = released_sizes(str(folder), MistModel, dictionary)
    assert sizes["encoder_embed_dim"] == 32 and sizes["length_classes"] == 32 and "dropout" not in sizes
    model = MistModel(tiny_config(), dictionary, PositionLimits(24, 12))
    load_released(model, str(folder))
    expected = tiny_model(dictionary).encoder.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.encoder.state_dict().items())
    assert model.limits == PositionLimits(24, 12) and model.trained_limits.tolist() == [24, 12]


def test_training_with_another_kind_or_vocabulary_is_refused(folder):
    with pytest.raises(ValueError, match="holds a mist model, --arch is another kind"):
        released_sizes(str(folder), NatMassModel, tiny_dictionary())
    with pytest.raises(ValueError, match="binarized with another vocabulary"):
        released_sizes(str(folder), MistModel, another_dictionary())


def another_dictionary():
    """Of the same size."""
    vocab = tiny_vocab()
    return tiny_dictionary([*vocab[:-20], *vocab[:-21:-1]])
