import pydoc_data.topics

import pytest
from transformers.models.bert.tokenization_bert import BasicTokenizer

from mist_fairseq.text.detokenize import join_words


@pytest.mark.parametrize(
    "text",
    [
        "what's the best way?",
        "i don't know, you're right: we'll see.",
        "james' brother won't go to o'hare at 10 o'clock.",
        'is "gone with the wind" a good book?',
        "he said 'hello' to me.",
        "e-mail, self-driving cars and/or a twenty-one-year-old",
        "it costs $1,000.50 (or 3.5%) at 10:30.",
        "go to www.example.com or mail a@b.org!",
        "how do i learn c++ and c#?",
        "do i need a b.tech degree in the u.s.?",
        "the grotto at lourdes , france -lrb- 1858 -rrb- .",
        "what is #1 in [this] {list}?",
        "no punctuation at all",
        "",
    ],
)
def test_english_text_comes_back(text):
    words = BasicTokenizer(do_lower_case=True).tokenize(text)
    expected = text.replace(" ,", ",").replace(" .", ".") if "-lrb-" in text else text
    assert join_words(words) == expected


def test_what_comes_back_has_the_same_words():
    """On any text, spaces are all that can differ."""
    tokenizer = BasicTokenizer(do_lower_case=True)
    for line in "\n".join(pydoc_data.topics.topics.values()).split("\n")[:3000]:
        words = tokenizer.tokenize(line)
        assert join_words(words).replace(" ", "") == "".join(words)
