import sys

import pytest
import sentencepiece

from mist_fairseq.text.sentencepiece_tokenizer import sentencepiece_tokenizer
from mist_fairseq.text.tokenizer import MASK
from mist_fairseq.text.tokenizer_files import load_tokenizer
from tests.text.helpers import AWKWARD, has_special, ids_of, real_lines, train_sentencepiece


@pytest.fixture(scope="module")
def tokenizer(sentencepiece_model):
    return load_tokenizer(sentencepiece_model)


def test_ids_are_the_models_own(tokenizer, sentencepiece_model):
    processor = sentencepiece.SentencePieceProcessor(model_file=str(sentencepiece_model))
    for line in [*real_lines()[:500], *(line for line in AWKWARD if not has_special(line))]:
        ids = processor.encode(line)
        assert ids_of(tokenizer, line) == ids
        assert tokenizer.decode(ids, unknown=" \u2047 ") == " ".join(processor.decode(ids).split())
    special = tokenizer.special
    assert (special.cls, special.sep) == (processor.bos_id(), processor.eos_id())
    assert sorted([special.pad, special.mask]) == [500, 501] and len(tokenizer.symbols) == 502


def test_specials(tokenizer):
    special = tokenizer.special
    ids = ids_of(tokenizer, "the answer [SEP] the text [MASK]")
    assert not {special.sep, special.mask} & set(ids)
    text = "Raw text, with Case and punctuation: isn't it nice."
    assert tokenizer.decode(ids_of(tokenizer, text)) == text
    assert tokenizer.decode(ids_of(tokenizer, "nice \u2603")) == "nice <unk>"
    assert tokenizer.decode([special.cls, special.mask, *ids]).startswith("[MASK] the answer")
    repeated = ids_of(tokenizer, "this object object is is new")
    kept = [repeated[position] for position in tokenizer.collapse_repeats(repeated)]
    assert tokenizer.decode(kept) == "this object is new"


def test_mask_as_text_is_refused(tmp_path):
    path = train_sentencepiece(tmp_path / "sp.model", vocab_size=300, user_defined_symbols=[MASK])
    with pytest.raises(ValueError, match=r"\[MASK\] as an ordinary piece"):
        load_tokenizer(path)


def test_mask_as_control_symbol_is_taken(tmp_path):
    path = train_sentencepiece(tmp_path / "sp.model", vocab_size=300, control_symbols=[MASK], pad_id=3)
    tokenizer = load_tokenizer(path)
    assert tokenizer.symbols[tokenizer.special.mask] == MASK and len(tokenizer.symbols) == 300
    assert tokenizer.special.mask not in ids_of(tokenizer, "a [MASK]") and tokenizer.special.pad == 3


def test_sentencepiece_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(ImportError, match=r"^a/sp.model needs SentencePiece, .*: pip install sentencepiece$"):
        sentencepiece_tokenizer(b"", "a/sp.model")
