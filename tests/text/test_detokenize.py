import pydoc_data.topics

import pytest
from transformers.models.bert.tokenization_bert import BasicTokenizer

from mist_fairseq.text.detokenize import join_words


@pytest.mark.parametrize(
    "text",
    [
        # apostrophes
        "what's the best way?",
        "i don't know, you're right: we'll see.",
        "james' brother won't go to o'hare at 10 o'clock.",
        "is the qur'an old?",
        "where are the students' books?",
        "i am 5'3, is that tall?",
        # quotations
        'is "gone with the wind" a good book?',
        "he said 'hello' to me.",
        '"we won," he said: "it was late."',
        'she left the room and never came back."',
        '"in the play ""a raisin in the sun"", who is ""walter""?"',
        "they wrote ‘yes’ and “no”, „ja“ und «oui», »nein« too.",
        "the `name` of an *important* and __dunder__ thing",
        # hyphens and dashes
        "e-mail, self-driving cars and/or a twenty-one-year-old",
        "a state-of-the-art, black-and-white four-and-a-half",
        "it rained all day - which was good - and then it stopped.",
        "call it (-v) or git, --amend",
        "- an item",
        # numbers, units, currency and times
        "it costs $1,000.50 (or 3.5%) at 10:30.",
        "it costs £4.56, €1,234.50, rs. 500, or 900$ and ₹1,00,000.",
        "is v2.0.1 newer than python3.11?",
        "a run of 2,500km in 250+ days, 1992, 17 and 2016",
        "from 9:30 to 17:45, 24/7, on 12/05/2016",
        "is 2+2=4 and 180*2 more?",
        # abbreviations and names
        "do i need a b.tech degree in the u.s.?",
        "is at&t or r&d better than a q&a of jammu & kashmir?",
        "how do i learn c++ and c#?",
        "who is david j. smith, i.e. the u.k. president?",
        # web addresses and files
        "go to www.example.com or mail a@b.org!",
        "see https://a.b/c_d?e=f&g=h for more",
        "read http://www.a.b.co.uk/x/y-z_1.html now.",
        "open a .doc file, b.pdf or setup.py",
        "follow @name, #hashtag",
        # brackets and code
        "what is #1 in [this] {list}?",
        "the thing(s) of f(x) and main() are (mostly) fine.",
        "is it true? (and why) for b. (old) ones",
        "[a link](https://a.b/c) or [[b]]",
        "![an image](x.png)",
        "if a_b(c) -> d => e != f",
        "a -- who is that?",
        # runs of marks
        "really?! well... yes!!",
        "no punctuation at all",
        "",
    ],
)
def test_english_text_comes_back(text):
    assert join_words(BasicTokenizer(do_lower_case=True).tokenize(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "我们在2017年3月用Python写了3个程序，好吗？",
        "他说：“你好！”（笑）",
        "《红楼梦》的作者是曹雪芹。",
        "語法:選項",
        "2.外观好看,触摸板很好用~~下载达到2m/s,很快——还在酒店碰到老朋友...爽!",
        "負荷がN未満でない限り、複数のジョブを開始しない。",
        "テルタ・アマクロ「東京」へ",
        "佐々木さんは10時に来ます。",
        "ราคา 500 บาท ที่กรุงเทพฯ",
        "이것은 한국어 문장입니다.",
        "यह एक वाक्य है। क्या यह ठीक है?",
        "¿Qué es «esto»? ¡Nada!",
        "Der „Name“ kostet 2,50 € mehr, z.B. am 3.10. um 10:30 Uhr.",
    ],
)
def test_other_languages_come_back(text):
    assert join_words(BasicTokenizer(do_lower_case=False).tokenize(text)) == text


def test_brackets_of_the_penn_treebank_are_words():
    words = "the grotto at lourdes , france - lrb - 1858 - rrb - .".split()
    assert join_words(words) == "the grotto at lourdes, france -lrb- 1858 -rrb-."


def test_what_comes_back_has_the_same_words():
    """On any text, spaces are all that can differ."""
    tokenizer = BasicTokenizer(do_lower_case=True)
    for line in "\n".join(pydoc_data.topics.topics.values()).split("\n")[:3000]:
        words = tokenizer.tokenize(line)
        assert join_words(words).replace(" ", "") == "".join(words)
