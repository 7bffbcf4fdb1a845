import pytest
import torch
import transformers

from mist_fairseq.mist.config import EncoderConfig, PositionLimits
from mist_fairseq.mist.encoder import Encoder
from mist_fairseq.pretrained.weights import check_weights, load_pretrained, read_sizes
from mist_fairseq.release.folder import Released
from mist_fairseq.release.huggingface import save_huggingface
from mist_fairseq.text.tokenizer_files import load_tokenizer
from tests.helpers import WORDS, encode, sources, tiny_encoder_decoder, tiny_released
from tests.text.test_tokenizer_json import FAMILIES

LENGTHS = [9, 4, 13, 2]


MODERNBERT = dict(
    **dict(pre_norm=True, gated=True, without_biases=True, layers=4, rotary_base=1e5, layer_norm_eps=1e-5),
    **dict(local_rotary_base=1e4, local_window=3, global_every=3),
)


@pytest.mark.parametrize("untie", [False, True])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        dict(layer_norm_eps=0.01, activation="relu", token_types=3, source_type=0, target_type=2),
        dict(embedding_size=16),
        dict(embedding_size=16, shared_layers=True, activation="gelu_new"),
        dict(rel_pos_bins=32),
        MODERNBERT,
    ],
    ids=["BERT", "BERT, switches", "ELECTRA", "ALBERT", "MPNet", "ModernBERT"],
)
def test_transformers_computes_the_same(tmp_path, dictionary, changes, untie):
    model = tiny_released(dictionary, untie_head=untie, **changes)
    if untie:
        model.encoder.head.weight.data.mul_(1.5)
    save_huggingface(model, str(tmp_path))
    tokens, lengths = sources(LENGTHS, dictionary)
    mask = torch.arange(tokens.shape[1]) < lengths[:, None]
    given = {"attention_mask": mask}
    if "rel_pos_bins" in changes:  # else MPNet's count from what is no padding, by its own vocabulary
        given["position_ids"] = torch.arange(2, 2 + tokens.shape[1]).expand(len(tokens), -1)
    plain, found = transformers.AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert all("pooler" in key for key in found["missing_keys"])
    masked_lm, found = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not found["missing_keys"] and not found["unexpected_keys"]
    with torch.no_grad():
        state = encode(model, tokens, lengths)
        expected = plain(tokens, **given).last_hidden_state
        torch.testing.assert_close(state.hidden[mask], expected[mask], atol=1e-5, rtol=1e-5)
        logits = masked_lm(tokens, **given).logits
        torch.testing.assert_close(model.encoder.token_logits(state.hidden[mask]), logits[mask], atol=1e-4, rtol=1e-4)


def test_the_tokenizer_gives_the_same_ids(tmp_path, dictionary):
    save_huggingface(tiny_released(dictionary), str(tmp_path))
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in (" ".join(WORDS), "Caf\u00e9 GUITAR, \u4e2d\u6587!"):
        assert tokenizer(text)["input_ids"][1:] == dictionary.encode_line(text).tolist()


@pytest.mark.parametrize("kind", ["MPNet", "ModernBERT", "XLM-R"])
def test_a_tokenizer_json_is_written_again(tmp_path, kind):
    """With special tokens of the family's names."""
    theirs = FAMILIES[kind](tmp_path)
    theirs.save_pretrained(tmp_path / "theirs")
    tokenizer = load_tokenizer(tmp_path / "theirs")
    encoder = Encoder(EncoderConfig(len(tokenizer.symbols), hidden_size=8, layers=1, heads=2, ffn_size=8))
    save_huggingface(Released(encoder, tokenizer, PositionLimits(40, 20)), str(tmp_path / "ours"))
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    for text in (*WORDS, "Caf\u00e9 GUITAR, 2.5 \u4e2d\u6587!"):
        assert again(text)["input_ids"] == theirs(text)["input_ids"]
    assert set(again.special_tokens_map.values()) <= set(theirs.special_tokens_map.values())
    assert load_tokenizer(tmp_path / "ours").fingerprint() == tokenizer.fingerprint()


def test_pretrained_reads_it_back(tmp_path, dictionary):
    types = dict(token_types=3, source_type=1, target_type=2)
    encoder, other = (tiny_released(dictionary, seed=seed, **types).encoder for seed in (0, 1))
    save_huggingface(Released(encoder, dictionary.tokenizer, PositionLimits(40, 20)), str(tmp_path))
    sizes = read_sizes(str(tmp_path))
    assert [sizes[name] for name in ("token_types", "source_type_id", "target_type_id")] == [3, 1, 2]
    assert sizes["encoder_embed_dim"] == 32
    check_weights(str(tmp_path), sizes, len(dictionary))
    load_pretrained(other, str(tmp_path))
    for name, value in encoder.state_dict().items():
        assert name == "length_head.weight" or torch.equal(value, other.state_dict()[name])


def test_what_transformers_does_not_have_is_refused(tmp_path, dictionary):
    with pytest.raises(
        ValueError, match="MPNetModel has no such rel_pos_bins, max_rel_pos: export this model with --to fo"
    ):
        save_huggingface(tiny_released(dictionary, rel_pos_bins=8, max_rel_pos=60), str(tmp_path))
    with pytest.raises(ValueError, match="BertModel has no such copy_head: export this model with --to folder"):
        save_huggingface(tiny_released(dictionary, copy_head=True), str(tmp_path))
    with pytest.raises(ValueError, match="BertModel has no such head: export this model with --to folder"):
        save_huggingface(tiny_released(dictionary, head="dag"), str(tmp_path))
    with pytest.raises(ValueError, match=r"only mist_\* architectures are encoders"):
        save_huggingface(tiny_encoder_decoder(dictionary), str(tmp_path))
    assert not list(tmp_path.iterdir())
