import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.pre_tokenizers import BertPreTokenizer

from mist_fairseq.scoring.steps import (
    STEPS,
    apply_steps,
    collapse_repeats,
    collapse_repeats_authors,
    rejoin_quora,
    rejoin_quora_authors,
    rejoin_xsum,
    words,
)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("what's the u.s.?", "what ' s the u . s . ?"),
        ("a well-known (old) word", "a well - known ( old ) word"),
        ("-lrb- it ''s -RRB- `` x", "-lrb- it '' s -RRB- `` x"),
        ("caf\u00e9_x  1,000", "caf\u00e9 _ x 1 , 000"),
        ("", ""),
    ],
)
def test_words(text, expected):
    assert words(text) == expected


@given(st.text("ab1\u00e9 .,'\"?!()#%&*+/:;<=>@", max_size=30))
def test_words_are_berts(text):
    if "''" not in text:
        assert words(text).split() == [word for word, _ in BertPreTokenizer().pre_tokenize_str(text)]


def test_collapse_repeats():
    assert collapse_repeats("the the cat sat sat sat on the  mat") == "the cat sat on the mat"
    assert collapse_repeats("the cat the cat") == "the cat the cat"  # only directly repeated words


@pytest.mark.parametrize(
    "text, expected",
    [
        ("can ' t i don ' t", "ca n't i do n't"),
        ("what ' s it ' d they ' ll i ' m we ' re i ' ve", "what 's it 'd they 'll i 'm we 're i 've"),
        ("3 , 000 , 000 or 3 . 03 , or", "3,000,000 or 3.03 , or"),
        ("a well - known thing - , a - b - c", "a well-known thing - , a-b-c"),
        ('he said " hi " and " ho "', "he said `` hi '' and `` ho ''"),
        ("the ' best ' way", "the ` best ' way"),
        ("( a ) [ b ] { c }", "-lrb- a -rrb- -lsb- b -rsb- -lcb- c -rcb-"),
        ("well . . . yes - - no", "well ... yes -- no"),
        ("the students ' t shirt", "the students ` t shirt"),
    ],
)
def test_rejoin_quora(text, expected):
    assert rejoin_quora(text) == expected


def test_the_authors_spare_the_first_two_words():
    assert collapse_repeats_authors("the the the  cat cat the the") == "the the cat the"


@pytest.mark.parametrize(
    "text, expected",
    [  # read off their fix_tokenization, with which 400,000 random texts of such tokens agreed
        ("can ' t i don ' t", "ca n't i do n't"),
        ("what ' s it ' d they ' ll", "what 's it 'd they 'll"),
        ("i ' m we ' re i ' ve", "i ` m we ' re i ` ve"),
        ("3 , 000 , 000 or 3 . 03 or 1 . 2 . 3", "3,000,000 or 3.03 or 1.2 . 3"),
        ("\u20b9 500 , , 5", "\u20b9 500,, 5"),
        ("a well - known thing - , a - b - c -", "a well-known thing - , a-b-c -"),
        ('" hi " and " ho', "`` hi '' and `` ho"),
        ("( a ) [ b ] { c } & < >", "-lrb- a -rrb- -lsb- b -rsb- -lcb- c -rcb- &amp; &lt; &gt;"),
        ("well . . . yes - - no", "well ... yes -- no"),
        ("the U . S . A . is", "the U.S. . A . is"),
        ("n ' t [UNK]", " n't UNK"),
    ],
)
def test_rejoin_as_the_authors(text, expected):
    assert rejoin_quora_authors(text) == expected


@pytest.mark.parametrize(
    "text", ["what 's it", "i do n't", "`` hi '' -lrb- 3,000 -rrb- ...", "a well-known ` best ' way", "3.03 -- x"]
)
def test_tokenized_references_come_out_as_they_are(text):
    assert rejoin_quora(words(text)) == text


def test_raw_and_tokenized_text_become_the_same():
    steps = ["lower", "words", "rejoin-quora"]
    raw = apply_steps(["What's the \u201cbest\u201d way (if any)? I can't say: 3,000."], steps)
    tokenized = ["what 's the \u201c best \u201d way -lrb- if any -rrb- ? i ca n't say : 3,000 ."]
    assert raw == tokenized == apply_steps(tokenized, steps)


def test_rejoin_xsum():
    text = "the uk ' s top - ranked man , 30 ( from kent ) , won ."
    assert rejoin_xsum(text) == "the uk's top ranked man, 30 (from kent), won."


def test_unknown_steps_are_refused():
    with pytest.raises(ValueError, match="no step 'stem': there are lower, words"):
        apply_steps(["a"], ["stem"])
    of_the_authors = {"collapse-repeats-authors", "rejoin-quora-authors"}
    assert set(STEPS) == {"lower", "words", "collapse-repeats", "rejoin-quora", "rejoin-xsum", *of_the_authors}
