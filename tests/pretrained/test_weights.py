import json
import pickle

import pytest
import torch
from transformers import BertForMaskedLM

from mist_fairseq.files.exported import write_sums
from mist_fairseq.mist.config import OPTION_NAMES, EncoderConfig, PositionLimits
from mist_fairseq.mist.encoder import Encoder
from mist_fairseq.pretrained.weights import check_vocabulary, check_weights, load_pretrained, read_sizes
from mist_fairseq.release.folder import Released
from tests.helpers import (
    BERT_CONFIG,
    bert_state,
    tiny_vocab,
    write_bert_folder,
)

V = len(tiny_vocab())


def load(folder, dictionary, **changes) -> Released:
    sizes = {OPTION_NAMES[option]: value for option, value in {**read_sizes(str(folder)), **changes}.items()}
    torch.manual_seed(5)
    encoder = Encoder(EncoderConfig(V, **sizes)).eval()
    load_pretrained(encoder, str(folder))
    return Released(encoder, dictionary.tokenizer, PositionLimits(40, 20))


@pytest.mark.parametrize("safetensors", [True, False])
@pytest.mark.parametrize("prefix", ["", "bert."])
@pytest.mark.parametrize("head", [True, False])
@pytest.mark.parametrize("gamma", [True, False])
def test_all_layouts_give_the_same_weights(tmp_path, dictionary, safetensors, prefix, head, gamma):
    state = bert_state(V, head=head, prefix=prefix)
    if gamma:  # as converted from TensorFlow
        state = {
            name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
            for name, value in state.items()
        }
    found = load(write_bert_folder(tmp_path / "a", state, safetensors=safetensors), dictionary).encoder.state_dict()
    expected = load(write_bert_folder(tmp_path / "b", bert_state(V)), dictionary).encoder.state_dict()
    for name, value in expected.items():
        if name == "length_head.weight" or (name.startswith("head.") and not head):
            continue
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("safetensors", [True, False])
def test_weights_in_several_files_as_transformers_writes_them(tmp_path, dictionary, safetensors):
    torch.manual_seed(2)
    theirs = BertForMaskedLM(BertForMaskedLM.config_class(vocab_size=V, **BERT_CONFIG))
    for name, size in (("whole", "1GB"), ("parts", "20KB")):
        theirs.save_pretrained(tmp_path / name, max_shard_size=size, safe_serialization=safetensors)
    end = "safetensors" if safetensors else "bin"
    first, *others = sorted((tmp_path / "parts").glob(f"*-of-*.{end}"))
    assert len(others) > 2
    check_weights(str(tmp_path / "parts"), read_sizes(str(tmp_path / "parts")), V)
    found, expected = (load(tmp_path / name, dictionary).encoder.state_dict() for name in ("parts", "whole"))
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
    write_sums(tmp_path / "parts", [path.name for path in (tmp_path / "parts").iterdir()])
    first.write_bytes(first.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match=f"{first.name} is damaged, or is not the file that SHA256SUMS"):
        check_weights(str(tmp_path / "parts"), read_sizes(str(tmp_path / "parts")), V)
    first.unlink()
    for read in (lambda folder: check_weights(folder, read_sizes(folder), V), lambda folder: load(folder, dictionary)):
        with pytest.raises(FileNotFoundError, match=rf"index\.json names {first.name}, not there: fetch all files"):
            read(str(tmp_path / "parts"))


@pytest.mark.parametrize("content", [{}, {"weight_map": []}, {"weight_map": {}}, {"weight_map": {"a": "../other.bin"}}])
def test_an_index_of_nothing_beside_it_is_refused(tmp_path, dictionary, content):
    folder = write_bert_folder(tmp_path / "a", bert_state(V))
    (folder / "model.safetensors").rename(tmp_path / "other.bin")
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"index\.json: weight_map does not say in which files beside it"):
        load(folder, dictionary)


def test_untied_head_takes_the_checkpoints_decoder_or_a_copy(tmp_path, dictionary):
    state = bert_state(V)
    state["cls.predictions.decoder.weight"] += 1.0
    model = load(write_bert_folder(tmp_path / "a", state), dictionary, untie_head=True)
    assert torch.equal(model.encoder.head.weight, state["cls.predictions.decoder.weight"])
    model = load(write_bert_folder(tmp_path / "b", bert_state(V, head=False)), dictionary, untie_head=True)
    assert torch.equal(model.encoder.head.weight, model.encoder.word_embeddings.weight)


def test_half_precision_weights_become_fp32(tmp_path, dictionary):
    state = {name: value.half() for name, value in bert_state(V).items()}
    model = load(write_bert_folder(tmp_path / "a", state), dictionary)
    assert {parameter.dtype for parameter in model.encoder.parameters()} == {torch.float32}


def test_missing_files_are_named(tmp_path, dictionary):
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        read_sizes(str(tmp_path))
    folder = write_bert_folder(tmp_path / "a", bert_state(V))
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors and no pytorch_model\.bin"):
        load(folder, dictionary)
    (folder / "vocab.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"no vocabulary: expected one of vocab\.txt, tokenizer\.json"):
        check_vocabulary(str(folder), dictionary.tokenizer)


@pytest.mark.parametrize("safetensors", [True, False])
@pytest.mark.parametrize("size", [0, 5, 1000])
def test_truncated_weights_are_refused(tmp_path, dictionary, safetensors, size):
    folder = write_bert_folder(tmp_path / "a", bert_state(V), safetensors=safetensors)
    path = folder / ("model.safetensors" if safetensors else "pytorch_model.bin")
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match=f"{path.name} is damaged"):
        load(folder, dictionary)


def test_code_in_weights_does_not_run(tmp_path, dictionary):
    marker = tmp_path / "ran"

    class Payload:
        def __reduce__(self):
            return (open, (str(marker), "w"))

    folder = write_bert_folder(tmp_path / "a", bert_state(V))
    (folder / "model.safetensors").unlink()
    for write in (torch.save, lambda payload, path: path.write_bytes(pickle.dumps(payload))):
        write({"bert.x": Payload()}, folder / "pytorch_model.bin")
        with pytest.raises(ValueError, match=r"pytorch_model\.bin is damaged or is no file of plain tensors"):
            load(folder, dictionary)
    assert not marker.exists()


def test_weights_that_do_not_fit_are_named(tmp_path, dictionary):
    state, name = bert_state(V), "bert.encoder.layer.1.intermediate.dense.weight"
    folder = write_bert_folder(tmp_path / "a", {**state, name: torch.zeros(60, 32)})
    with pytest.raises(ValueError, match=r"1\.intermediate.* has shape \(60, 32\), the model needs \(64, 32\)"):
        load(folder, dictionary)
    del state["bert.encoder.layer.1.attention.self.key.weight"]
    with pytest.raises(ValueError, match=r"lacks encoder\.layer\.1\.attention\.self\.key\.weight \(1 in all\)"):
        load(write_bert_folder(tmp_path / "a", state), dictionary)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model_type": "roberta", "hidden_act": "relu"}, "hidden_act is 'relu', and only 'gelu' is supported"),
        (
            {
                "model_type": "modernbert",
                "local_attention": 8,
                "global_attn_every_n_layers": 2,
                "local_rope_theta": None,
            },
            "local_rope_theta is None, expected a number above 0",
        ),
        ({"model_type": "deberta-v2"}, "deberta-v2.* disentangled"),
        ({"hidden_size": 0}, "hidden_size is 0"),
        ({"layer_norm_eps": "1e-12"}, "layer_norm_eps is '1e-12'"),
        ({"num_hidden_layers": "6"}, "num_hidden_layers is '6'"),
        ({"position_embedding_type": "relative_key"}, "relative_key"),
        (
            {"model_type": "gpt2"},
            "model_type is 'gpt2', expected one of albert, bert, camembert, distilbert, electra, ",
        ),
    ],
)
def test_other_architectures_are_refused(tmp_path, change, message):
    folder = write_bert_folder(tmp_path / "a", {}, change)
    with pytest.raises(ValueError, match=message):
        read_sizes(str(folder))


def test_data_with_another_vocabulary_is_refused(tmp_path, dictionary):
    folder = write_bert_folder(tmp_path / "a", bert_state(V), vocab=[*tiny_vocab()[:-1], "another"])
    with pytest.raises(ValueError, match=r"another vocabulary .* --srcdict .*vocab\.txt"):
        check_vocabulary(str(folder), dictionary.tokenizer)
    check_vocabulary(str(write_bert_folder(tmp_path / "b", bert_state(V))), dictionary.tokenizer)


@pytest.mark.parametrize("safetensors", [True, False])
@pytest.mark.parametrize(
    "changes, message",
    [
        ({"num_hidden_layers": 10**9}, r"is of 1000000000 layers, but the weights lack encoder\.layer\.999999999\."),
        ({"num_hidden_layers": 3}, r"is of 3 layers, but the weights lack encoder\.layer\.2\.output\.dense\.weight"),
        ({"hidden_size": 2**31 - 4, "num_attention_heads": 1}, r"config\.json: "),
        ({"hidden_size": 10**6}, r"word_embeddings\.weight has shape \(131, 32\), the model needs \(131, 1000000\)"),
        (
            {"type_vocab_size": 10**9},
            r"token_type_embeddings\.weight has shape \(2, 32\), the model needs \(1000000000, 32",
        ),
        ({"rel_pos_bins": 10**9, "max_rel_pos": 10**9}, r"lacks encoder\.rel_pos_bias\.weight"),
        ({"hidden_act": "swiglu"}, r"config\.json: activation is 'swiglu', expected one of gelu, "),
        ({"num_attention_heads": 5}, r"config\.json: hidden size 32 is not a multiple of the 5"),
    ],
)
def test_a_configuration_of_another_model_is_refused_before_memory_is_taken(tmp_path, changes, message, safetensors):
    folder = write_bert_folder(tmp_path / "a", bert_state(V), changes, safetensors=safetensors)
    with pytest.raises(ValueError, match=message):
        check_weights(str(folder), read_sizes(str(folder)), V)


@pytest.mark.parametrize("safetensors", [True, False])
def test_weights_that_fit_pass(tmp_path, safetensors):
    folder = write_bert_folder(tmp_path / "a", bert_state(V, head=False), safetensors=safetensors)
    check_weights(str(folder), read_sizes(str(folder)), V)
