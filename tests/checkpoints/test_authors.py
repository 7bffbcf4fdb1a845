"""Synthetic checkpoints under the authors' keys; tests/test_authors.py has the numbers of their own models."""

import pytest
import torch
import torch.nn.functional as F
from fairseq.checkpoint_utils import load_model_ensemble_and_task

from mist_fairseq.checkpoints.authors import convert_checkpoint
from tests.helpers import BERT_CONFIG, bert_state, decode, encode, joint_mask, sources, tiny_vocab, write_bert_folder
from tests.mist.test_encoder import plain_unilm, unilm_state

V, D = len(tiny_vocab()), BERT_CONFIG["hidden_size"]
UNILM = {**BERT_CONFIG, "rel_pos_bins": 8, "max_rel_pos": 12, "type_vocab_size": 6}
UNILM |= {"source_type_id": 4, "target_type_id": 5}


def released_state(state, prefix="module."):
    """The authors' keys: an untied decoder, its bias twice, the length classifier and what they never use."""
    generator = torch.Generator().manual_seed(7)
    state = {
        **state,
        "embed_length.weight": torch.randn(512, D, generator=generator),
        "cls.predictions.decoder.weight": torch.randn(V, D, generator=generator),
        "cls.predictions.decoder.bias": state["cls.predictions.bias"].clone(),
        "bert.embeddings.position_ids": torch.arange(64)[None],
        "crit_mask_lm_smoothed.one_hot": torch.zeros(1, V),
    }
    return {prefix + name: value for name, value in state.items()}


def write(folder, state, config=None):
    """The checkpoint, and the folder of the encoder that it started from."""
    write_bert_folder(folder, {}, config)
    torch.save(state, folder / "model_state_dict.bin")
    return str(folder / "model_state_dict.bin"), str(folder), str(folder / "out" / "mist.pt")


def load(out, dictionary, folder, **overrides):
    for language in ("src", "tgt"):
        dictionary.save(str(folder / f"dict.{language}.txt"))
    overrides |= {"data": str(folder), "source_lang": "src", "target_lang": "tgt"}
    (model,), _, _ = load_model_ensemble_and_task([out], arg_overrides=overrides)
    return model.eval()


def logits(model, dictionary, S=9, T=6):
    """Joint tokens ``[CLS] X [SEP] [MASK] × T``, our token logits (T, V) and length logits (512)."""
    src, lengths = sources([S], dictionary)
    masks = torch.full((1, T), dictionary.mask())
    with torch.no_grad():
        state = encode(model, src, lengths)
        (hidden,) = decode(model, masks, torch.tensor([T]), state)
        return torch.cat([src, masks], 1), model.encoder.token_logits(hidden), model.encoder.length_logits(state)[0]


@pytest.mark.parametrize("bias", ["bert.encoder.rel_pos_bias.weight", "bert.rel_pos_bias.weight"])
def test_logits_equal_unilm(tmp_path, dictionary, bias):
    """Token types are 0 and 1, which the authors' code has as constants, not those of config.json."""
    state = unilm_state(V, UNILM)
    released = released_state(state, "")
    released[bias] = released.pop("bert.encoder.rel_pos_bias.weight")
    checkpoint, config, out = write(tmp_path, {"module." + k: v for k, v in released.items()}, UNILM)
    convert_checkpoint(checkpoint, config, out, 40, 20)
    tokens, token_logits, length_logits = logits(load(out, dictionary, tmp_path), dictionary)

    hidden = plain_unilm(state, UNILM, tokens[0], torch.tensor([0] * 9 + [1] * 6), joint_mask(9, 6))
    head = {name.removeprefix("cls.predictions."): value for name, value in released.items()}
    x = F.gelu(F.linear(hidden[9:], head["transform.dense.weight"], head["transform.dense.bias"]))
    x = F.layer_norm(x, (D,), head["transform.LayerNorm.weight"], head["transform.LayerNorm.bias"], 1e-12)
    torch.testing.assert_close(
        token_logits, F.linear(x, head["decoder.weight"], head["decoder.bias"]), atol=1e-4, rtol=1e-4
    )
    torch.testing.assert_close(
        length_logits, hidden[:9].mean(0) @ released["embed_length.weight"].T, atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("prefix", ["module.", ""])
@pytest.mark.parametrize("config", [{}, UNILM], ids=["BERT", "UniLM"])
def test_the_checkpoint_holds_plain_values_in_fairseqs_layout(tmp_path, prefix, config):
    """Their BERT has no relative position bias, whatever that of the encoder's config.json has."""
    state = bert_state(V, config)
    checkpoint, config, out = write(tmp_path, released_state(state, prefix), config)
    line = convert_checkpoint(checkpoint, config, out, 40, 20)
    assert "2 layers of 32" in line and "at most 40 source and 20 target" in line
    state = torch.load(out, weights_only=True)
    assert state["model"]["trained_limits"].tolist() == [40, 20] and state["model"]["fingerprint"].shape == (32,)
    assert state["cfg"]["model"]["encoder_embed_dim"] == 32 and state["cfg"]["model"]["untie_head"]
    assert state["cfg"]["task"]["_name"] == "mist" and state["cfg"]["task"]["max_source_positions"] == 40
    assert state["extra_state"]["train_iterator"]["epoch"] == 1
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mist.pt"]


def test_an_existing_file_is_kept(tmp_path):
    checkpoint, config, out = write(tmp_path, released_state(bert_state(V)))
    convert_checkpoint(checkpoint, config, out, 40, 20)
    with pytest.raises(FileExistsError, match="--overwrite"):
        convert_checkpoint(checkpoint, config, out, 30, 20)
    assert torch.load(out)["model"]["trained_limits"].tolist() == [40, 20]
    convert_checkpoint(checkpoint, config, out, 30, 20, overwrite=True)
    assert torch.load(out)["model"]["trained_limits"].tolist() == [30, 20]


LAYER = "module.bert.encoder.layer.1."
SELF = LAYER + "attention.self."
FUSED = {SELF + name: None for name in ("query.weight", "key.weight", "value.weight", "query.bias")}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"module.bert.encoder.layer.2.x": torch.zeros(D)}, r"has encoder\.layer\.2\.x \(1 in all\), unknown"),
        ({"module.bert_decoder.x": torch.zeros(1)}, r"has bert_decoder\.x .* unknown to the model: is .*config\.json"),
        ({"module.bert.encoder.rel_pos_bias.weight": torch.zeros(4, 8)}, r"has encoder\.rel_pos_bias.* unknown"),
        ({LAYER + "output.dense.bias": None}, r"lacks encoder\.layer\.1\.output\.dense\.bias"),
        ({SELF + "key.weight": None}, r"lacks encoder\.layer\.1\.attention\.self\.key\.weight"),
        ({"module.embed_length.weight": None}, r"lacks embed_length\.weight"),
        ({f"module.cls.predictions.{name}bias": None for name in ("", "decoder.")}, r"lacks cls\.predictions\.bias"),
        ({"module.cls.predictions.decoder.bias": torch.ones(V)}, "decoder.bias differs from cls.predictions.bias"),
        ({"module.embed_length.weight": torch.zeros(64, D)}, r"embed_length.* \(64, 32\), the model needs \(512, 32\)"),
        ({LAYER + "intermediate.dense.weight": torch.zeros(3, D)}, r"layer\.1\.intermediate\.dense.* \(3, 32\)"),
        ({**FUSED, SELF + "qkv_linear.weight": torch.zeros(3 * D, D)}, r"lacks .*1\.attention\.self\.query\.bias"),
    ],
)
def test_keys_that_do_not_fit_are_named(tmp_path, changes, message):
    state = {k: v for k, v in {**released_state(bert_state(V)), **changes}.items() if v is not None}
    checkpoint, config, out = write(tmp_path, state)
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(checkpoint, config, out, 40, 20)
    assert not (tmp_path / "out").exists()


def test_limits_over_the_models_positions_are_refused(tmp_path):
    checkpoint, config, out = write(tmp_path, released_state(bert_state(V)))
    with pytest.raises(ValueError, match="= 512 exceed the model's 64 positions"):
        convert_checkpoint(checkpoint, config, out)


def test_missing_files_are_named(tmp_path):
    _, config, out = write(tmp_path, {})
    with pytest.raises(FileNotFoundError, match="ckpt-5 is not there or no file"):
        convert_checkpoint(str(tmp_path / "ckpt-5"), config, out)
    (tmp_path / "vocab.txt").unlink()
    with pytest.raises(FileNotFoundError, match="vocab.txt is not there"):
        convert_checkpoint(str(tmp_path / "model_state_dict.bin"), config, out)
