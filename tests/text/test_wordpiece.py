import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertTokenizer

from mist_fairseq.text.tokenizer_files import load_tokenizer
from mist_fairseq.text.wordpiece import wordpiece_tokenizer
from tests.text.helpers import AWKWARD, has_special, ids_of, real_lines


@pytest.fixture(scope="module", params=[True, False], ids=["uncased", "cased"])
def pair(request, minilm):
    """Our tokenizer and the slow, pure-Python one."""
    with open(minilm + "/vocab.txt", encoding="utf-8") as file:
        ours = wordpiece_tokenizer(file.read().split("\n")[:-1], lowercase=request.param)
    return ours, BertTokenizer(minilm + "/vocab.txt", do_lower_case=request.param)


def expected_ids(tokenizer, text):
    return tokenizer.convert_tokens_to_ids(tokenizer.tokenize(text))


def test_ids_equal_the_slow_tokenizer_on_real_lines(pair):
    ours, theirs = pair
    lines = [line for line in real_lines() + AWKWARD if not has_special(line)]
    assert len(lines) > 4000
    for line in lines:
        assert ids_of(ours, line) == expected_ids(theirs, line), line


# Characters whose category no Unicode version since has changed: Python and the tokenizers library know different ones.
SETTLED = [
    char
    for char in map(chr, range(0x3000))
    if unicodedata.ucd_3_2_0.category(char) == unicodedata.category(char) not in ("Cn", "Cs")
]


@settings(max_examples=300)
@given(text=st.text(alphabet=st.sampled_from(SETTLED), max_size=30))
def test_ids_equal_the_slow_tokenizer_on_random_text(pair, text):
    ours, theirs = pair
    if not has_special(text):
        assert ids_of(ours, text) == expected_ids(theirs, text)


def test_text_of_bert(minilm):
    bert = load_tokenizer(minilm + "/vocab.txt")
    special = bert.special
    assert (special.pad, special.unk, special.cls, special.sep, special.mask) == (0, 100, 101, 102, 103)
    assert len(bert.symbols) == 30522 and bert.encode("hello") == [("hello", 7592)] and bert.symbols[7592] == "hello"
    assert bert.encode("a \u2603") == [("a", bert.indices["a"]), ("\u2603", special.unk)]
    assert not {special.cls, special.mask, special.pad, special.sep} & set(ids_of(bert, "[MASK] [CLS][PAD] [SEP]"))
    for text in ("what's the best e-mail app, and why don't (most) people use it?", "unaffable embeddings"):
        assert bert.decode(ids_of(bert, text)) == text
