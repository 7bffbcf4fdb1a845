import pytest
import torch
import transformers

from mist_fairseq.mist.config import PositionLimits
from mist_fairseq.pretrained.weights import check_weights, load_pretrained, read_sizes
from mist_fairseq.release.folder import Released
from mist_fairseq.release.huggingface import save_huggingface
from tests.helpers import WORDS, encode, sources, tiny_encoder_decoder, tiny_released

LENGTHS = [9, 4, 13, 2]


@pytest.mark.parametrize("untie", [False, True])
def test_bert_computes_the_same(tmp_path, dictionary, untie):
    model = tiny_released(dictionary, untie_head=untie)
    if untie:
        model.encoder.head.weight.data.mul_(1.5)
    save_huggingface(model, str(tmp_path))
    tokens, lengths = sources(LENGTHS, dictionary)
    mask = torch.arange(tokens.shape[1]) < lengths[:, None]
    bert, found = transformers.BertModel.from_pretrained(tmp_path, add_pooling_layer=False, output_loading_info=True)
    assert not found["missing_keys"] and all(key.startswith("cls.") for key in found["unexpected_keys"])
    masked_lm, found = transformers.BertForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not found["missing_keys"] and not found["unexpected_keys"]
    with torch.no_grad():
        state = encode(model, tokens, lengths)
        expected = bert(tokens, attention_mask=mask).last_hidden_state
        torch.testing.assert_close(state.hidden[mask], expected[mask], atol=1e-5, rtol=1e-5)
        logits = masked_lm(tokens, attention_mask=mask).logits
        torch.testing.assert_close(model.encoder.token_logits(state.hidden[mask]), logits[mask], atol=1e-4, rtol=1e-4)


def test_the_tokenizer_gives_the_same_ids(tmp_path, dictionary):
    save_huggingface(tiny_released(dictionary), str(tmp_path))
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in (" ".join(WORDS), "Caf\u00e9 GUITAR, \u4e2d\u6587!"):
        assert tokenizer(text)["input_ids"][1:] == dictionary.encode_line(text).tolist()


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


def test_what_bert_does_not_have_is_refused(tmp_path, dictionary):
    with pytest.raises(ValueError, match="no relative position bias"):
        save_huggingface(tiny_released(dictionary, rel_pos_bins=8), str(tmp_path))
    with pytest.raises(ValueError, match=r"only mist_\* architectures are BERT encoders"):
        save_huggingface(tiny_encoder_decoder(dictionary), str(tmp_path))
    assert not list(tmp_path.iterdir())
