import pytest

from mist_fairseq.text.wordpiece import wordpiece_tokenizer
from tests.helpers import tiny_vocab

TOKENIZER = wordpiece_tokenizer(list(dict.fromkeys([*tiny_vocab(), "can", "cat", "gui", "##tar", "##tars"])))


@pytest.mark.parametrize(
    "words, kept",
    [
        ("the the cat", "the cat"),
        ("how can can can i learn ? ?", "how can i learn ?"),
        ("learn c + +", "learn c + +"),
        ("the cat the cat", "the cat the cat"),
        ("the [SEP] the cat [SEP]", "the cat"),
        ("gui ##tar gui ##tar fast", "gui ##tar fast"),
        ("gui ##tar gui ##tars", "gui ##tar gui ##tars"),
        ("", ""),
    ],
)
def test_repeated_words_collapse(words, kept):
    ids = [TOKENIZER.indices[word] for word in words.split()]
    assert " ".join(TOKENIZER.symbols[ids[position]] for position in TOKENIZER.collapse_repeats(ids)) == kept


def test_text_ends_where_the_sequence_does():
    the, cat, sep = TOKENIZER.indices["the"], TOKENIZER.indices["cat"], TOKENIZER.special.sep
    assert TOKENIZER.text_positions([the, sep, the, cat, sep], keep_repeats=False) == [0, 3, 4]
    assert TOKENIZER.text_positions([the, sep, the, cat, sep], keep_repeats=True) == [0, 2, 3, 4]
    assert TOKENIZER.text_positions([the, sep, the], keep_repeats=True) == [0, 2]


def test_half_characters_are_replaced():
    assert TOKENIZER.encode("a \ud83d b") == TOKENIZER.encode("a \ufffd b")
