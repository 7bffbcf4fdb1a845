"""Each family against transformers' own model with random weights: ragged batches against one joint pass a sentence."""

import json
import logging
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import nn

from mist_fairseq.mist.config import OPTION_NAMES, EncoderConfig, PositionLimits
from mist_fairseq.mist.encoder import Encoder
from mist_fairseq.pretrained.weights import check_weights, load_pretrained, read_sizes
from mist_fairseq.release.folder import Released
from mist_fairseq.text.tokenizer_files import load_tokenizer
from tests.helpers import BERT_CONFIG, decode, encode, joint_mask, sources, targets, tiny_vocab

V = len(tiny_vocab())
NO_TYPES = {name: value for name, value in BERT_CONFIG.items() if name != "type_vocab_size"}
DISTIL = dict(dim=32, n_layers=2, n_heads=4, hidden_dim=64, max_position_embeddings=64)
MODERN = dict(NO_TYPES, num_hidden_layers=4, local_attention=12, pad_token_id=0)
# The class of transformers, and its configuration.
FAMILIES = {
    "bert": ("Bert", dict(BERT_CONFIG, layer_norm_eps=0.01, hidden_act="gelu_new")),
    "bert, one type": ("Bert", dict(BERT_CONFIG, type_vocab_size=1)),
    "roberta": ("Roberta", dict(BERT_CONFIG, layer_norm_eps=0.01, max_position_embeddings=66, type_vocab_size=1)),
    "xlm-roberta": ("XLMRoberta", dict(BERT_CONFIG, max_position_embeddings=66, type_vocab_size=1)),
    "camembert": ("Camembert", dict(BERT_CONFIG, max_position_embeddings=66, type_vocab_size=1)),
    "distilbert": ("DistilBert", DISTIL),
    "distilbert, relu": ("DistilBert", dict(DISTIL, activation="relu", sinusoidal_pos_embds=True)),
    "electra": ("Electra", dict(BERT_CONFIG, embedding_size=16)),
    "electra, one size": ("Electra", dict(BERT_CONFIG, embedding_size=32)),
    "albert": ("Albert", dict(BERT_CONFIG, embedding_size=16, hidden_act="gelu_new", num_hidden_layers=3)),
    "mpnet": ("MPNet", dict(NO_TYPES, max_position_embeddings=66)),
    "modernbert": ("ModernBert", MODERN),
    "modernbert, untied": ("ModernBert", dict(MODERN, tie_word_embeddings=False, global_attn_every_n_layers=2)),
}


def saved(family: str, folder) -> nn.Module:
    """A small model of transformers, saved in *folder*."""
    name, sizes = FAMILIES[family]
    torch.manual_seed(2)
    config = getattr(transformers, f"{name}Config")(vocab_size=V, **{"initializer_range": 0.2, **sizes})
    model = getattr(transformers, f"{name}ForMaskedLM")(config).eval()
    for weight in model.parameters():
        if weight.dim() == 1:  # LayerNorms and biases, which start as ones and zeros
            nn.init.normal_(weight, mean=float(weight[0]), std=0.2)
    model.save_pretrained(folder)
    return model


def loaded(folder, dictionary) -> Released:
    """The same in ours."""
    sizes = read_sizes(str(folder))
    check_weights(str(folder), sizes, V)
    torch.manual_seed(5)
    encoder = Encoder(EncoderConfig(V, **{OPTION_NAMES[option]: value for option, value in sizes.items()})).eval()
    load_pretrained(encoder, str(folder))
    return Released(encoder, dictionary.tokenizer, PositionLimits(40, 20))


def joint_logits(model, ids, S, T, monkeypatch):
    """What transformers computes of one joint sequence, with the paper's mask, types and positions."""
    visible = joint_mask(S, T)
    inputs = {"input_ids": ids[None], "attention_mask": visible[None]}
    kind = model.config.model_type
    inputs["position_ids"] = torch.arange(S + T)[None]
    if kind in ("bert", "electra", "albert"):
        last = model.config.type_vocab_size - 1
        inputs["token_type_ids"] = torch.tensor([[0] * S + [last] * T])
    if kind == "modernbert":  # which takes no mask for each row
        near = (torch.arange(S + T)[:, None] - torch.arange(S + T)).abs() <= model.config.local_attention // 2
        masks = [torch.where(mask.bool(), 0.0, -torch.inf)[None, None] for mask in (visible, visible * near)]
        monkeypatch.setattr(model.model, "_update_attention_mask", lambda *_, **__: masks)
        inputs["attention_mask"] = torch.ones(1, S + T)
    elif kind in ("distilbert", "albert"):  # neither
        attend = F.scaled_dot_product_attention
        monkeypatch.setattr(
            F,
            "scaled_dot_product_attention",
            lambda query, key, value, **_: attend(query, key, value, attn_mask=visible.bool()),
        )
        inputs["attention_mask"] = torch.ones(1, S + T)
    elif kind in ("roberta", "xlm-roberta", "camembert", "mpnet"):
        inputs["position_ids"] += model.config.pad_token_id + 1
    if kind == "distilbert":
        del inputs["position_ids"]
    logits = model(**inputs).logits[0, S:]
    monkeypatch.undo()
    return logits


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_logits_equal_transformers(family, tmp_path, dictionary, monkeypatch):
    theirs, ours = saved(family, tmp_path), loaded(tmp_path, dictionary)
    source_lengths, target_lengths = [7, 44, 2], [5, 20, 9]
    src, src_lengths = sources(source_lengths, dictionary)
    tgt, tgt_lengths = targets(target_lengths, dictionary)
    hidden = decode(ours, tgt, tgt_lengths, encode(ours, src, src_lengths))
    for row, (S, T) in enumerate(zip(source_lengths, target_lengths)):
        ids = torch.cat([src[row, :S], tgt[row, :T]])
        expected = joint_logits(theirs, ids, S, T, monkeypatch)
        torch.testing.assert_close(ours.encoder.token_logits(hidden[row]), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_sources_are_what_the_plain_model_makes_of_them(family, tmp_path, dictionary):
    """Which predicts masked tokens: its fill-mask."""
    theirs, ours = saved(family, tmp_path), loaded(tmp_path, dictionary)
    (src, lengths), encoder = sources([19], dictionary), ours.encoder
    src[0, 5] = dictionary.mask()
    given = {}
    if theirs.config.model_type in ("roberta", "xlm-roberta", "camembert", "mpnet"):  # by default they look for padding
        given["position_ids"] = torch.arange(2, 21)[None]
    expected = theirs(src, attention_mask=torch.ones(1, 19), **given).logits[0]
    state = encoder.encode_source(src, lengths, torch.arange(19))
    torch.testing.assert_close(encoder.token_logits(state.hidden[0]), expected, atol=1e-4, rtol=1e-4)


def test_rows_that_are_no_tokens_are_cut(tmp_path, dictionary, caplog):
    """Vocabularies are padded to a multiple of 64 or so."""
    caplog.set_level(logging.INFO)
    theirs = transformers.BertForMaskedLM(transformers.BertConfig(vocab_size=V + 5, **BERT_CONFIG))
    theirs.save_pretrained(tmp_path)
    ours = loaded(tmp_path, dictionary).encoder
    assert torch.equal(ours.word_embeddings.weight, theirs.bert.embeddings.word_embeddings.weight[:V])
    assert "the last 5 rows of words are no tokens and cut" in caplog.text
    theirs = transformers.BertForMaskedLM(transformers.BertConfig(vocab_size=V - 1, **BERT_CONFIG))
    theirs.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=rf"weight has shape \({V - 1}, 32\), the model needs \({V}, 32\)"):
        loaded(tmp_path, dictionary)


MPNET = Path(__file__).parents[2] / ".cache" / "mpnet-base"


@pytest.mark.skipif(not MPNET.is_dir(), reason="needs scripts/get_pretrained.py mpnet-base .cache/mpnet-base")
@torch.no_grad()
def test_real_mpnet():
    theirs = transformers.MPNetModel.from_pretrained(MPNET, add_pooling_layer=False).eval()
    tokenizer, sizes = load_tokenizer(MPNET), read_sizes(str(MPNET))
    encoder = Encoder(EncoderConfig(len(tokenizer.symbols), **{OPTION_NAMES[name]: sizes[name] for name in sizes}))
    load_pretrained(encoder.eval(), str(MPNET))
    ids = torch.tensor([tokenizer.special.cls, *(index for _, index in tokenizer.encode("How can I learn to play?"))])
    S, T = len(ids) - 4, 4
    src, tgt = ids[None, :S], ids[None, S:]
    state = encoder.encode_source(src, torch.tensor([S]), torch.arange(S))
    hidden = encoder.decode_target(tgt, torch.tensor([T]), torch.arange(T), state)
    positions = torch.arange(2, 2 + S + T)[None]
    expected = theirs(ids[None], attention_mask=joint_mask(S, T)[None], position_ids=positions).last_hidden_state[0]
    torch.testing.assert_close(torch.cat([state.hidden[0], hidden]), expected, atol=1e-4, rtol=0)


def test_modernbert_of_transformers_5(tmp_path):
    """Which says the same in other words: these are of its 5.24."""
    saved("modernbert", tmp_path)
    expected = read_sizes(str(tmp_path))
    config = json.loads((tmp_path / "config.json").read_text())
    for name in ("global_attn_every_n_layers", "global_rope_theta", "local_rope_theta"):
        del config[name]
    config["layer_types"] = ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]
    rope = {"rope_type": "default", "rope_theta": 160000.0}
    config["rope_parameters"] = {"full_attention": rope, "sliding_attention": rope | {"rope_theta": 5000.0}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert read_sizes(str(tmp_path)) == expected | {"local_rotary_base": 5000.0}

    yarn = {"full_attention": {"rope_type": "yarn"}}
    refused = {
        "layer_types are .* expected full_attention first": {"layer_types": ["sliding_attention", "full_attention"]},
        "rope_parameters of full_attention are .* default type": {"rope_parameters": yarn},
        "rope_theta is -1, expected a number": {"rope_parameters": {"full_attention": {"rope_theta": -1}}},
        "config.json: ": {"rope_parameters": [1]},
    }
    for message, changes in refused.items():
        (tmp_path / "config.json").write_text(json.dumps(config | changes))
        with pytest.raises(ValueError, match=message):
            read_sizes(str(tmp_path))
