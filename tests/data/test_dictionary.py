import io
import json
import pickle
import pydoc_data.topics
import re
import unicodedata
from argparse import Namespace
from pathlib import Path

import pytest
import sentencepiece
import torch
from fairseq.binarizer import BinarizeSummary, VocabularyDatasetBinarizer
from fairseq.data import Dictionary
from fairseq.data.encoders.gpt2_bpe import GPT2BPE
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import ByteLevelBPETokenizer
from transformers import BertTokenizer

from mist_fairseq.data.dictionary import CLS, MASK, PAD, SEP, UNK, WordPieceDictionary, load_dictionary
from tests.helpers import tiny_vocab

AWKWARD = [
    "",
    "   ",
    "\tTabs\u00a0and\u2003wide\u3000spaces  ",
    "café Ünïcödé naïve résumé Ångström ÇA ß ŒUVRE ﬁne ½",
    "cafe\u0301 decomposed, e\u0301\u0301 twice",
    "中文和English混合，标点。日本語テキスト 한국어 텍스트",
    "emoji 😀👍🏽 👩‍👩‍👧‍👦 🇩🇪 ❤️ ✈︎",
    "Ελληνικά Русский العربية עברית हिन्दी ไทย",
    "control \x00\x01\x7f\ufffd \u200b\u200d\ufeff chars",
    "don't what's O'Brien \u2018quoted\u2019 \u201cdouble\u201d — dash… 3.14 1,000 $5 50% C++ #1 a@b.com",
    "x" * 101 + " " + "y" * 100,
    "ＦＵＬＬ ｗｉｄｔｈ İstanbul ǅ Ǆ ﷺ ²³",
]


def real_lines() -> list[str]:
    """A few thousand lines of English that come with Python itself."""
    text = "\n".join(pydoc_data.topics.topics.values())
    return [line for line in text.split("\n") if line.strip()][:5000]


def has_special(text: str) -> bool:
    return any(name in text for name in (PAD, UNK, CLS, SEP, MASK))


def write_bart_dictionary(folder: Path, size: int = 500) -> Path:
    """BART's three vocabulary files around a small BPE; dict.txt in an order of its own, as BART's is."""
    folder.mkdir(parents=True, exist_ok=True)
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(real_lines()[:1000], vocab_size=size, show_progress=False)
    vocab, merges = bpe.save_model(str(folder))
    Path(vocab).rename(folder / "encoder.json")
    Path(merges).rename(folder / "vocab.bpe")
    lines = [f"{(number * 7) % size} {1000 - number}" for number in range(size)]
    made_up = [f"madeupword{number:04d} 0" for number in range(4)]
    (folder / "dict.txt").write_text("\n".join([*lines, *made_up]) + "\n")
    return folder


@pytest.fixture(scope="module")
def bart_folder(tmp_path_factory) -> Path:
    return write_bart_dictionary(tmp_path_factory.mktemp("bart.base"))


@pytest.fixture(scope="module")
def bert(minilm):
    return load_dictionary(minilm + "/vocab.txt")


@pytest.fixture(scope="module", params=[True, False], ids=["uncased", "cased"])
def pair(request, minilm):
    """Our dictionary and the slow, pure-Python tokenizer."""
    with open(minilm + "/vocab.txt", encoding="utf-8") as file:
        symbols = file.read().split("\n")[:-1]
    return (
        WordPieceDictionary(symbols, lowercase=request.param),
        BertTokenizer(minilm + "/vocab.txt", do_lower_case=request.param),
    )


@pytest.fixture(scope="module")
def sentencepiece_model(tmp_path_factory) -> str:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(real_lines()[:1500]), model_writer=model, vocab_size=500, minloglevel=2
    )
    path = tmp_path_factory.mktemp("sentencepiece") / "sp.model"
    path.write_bytes(model.getvalue())
    return str(path)


def expected_ids(tokenizer, text):
    return tokenizer.convert_tokens_to_ids(tokenizer.tokenize(text)) + [tokenizer.sep_token_id]


def test_ids_equal_the_slow_tokenizer_on_real_lines(pair):
    ours, theirs = pair
    lines = [line for line in real_lines() + AWKWARD if not has_special(line)]
    assert len(lines) > 4000
    for line in lines:
        assert ours.encode_line(line).tolist() == expected_ids(theirs, line), line


# Characters whose category no Unicode version since has changed: Python and the tokenizers library know different ones.
SETTLED = [
    char
    for char in map(chr, range(0x3000))
    if unicodedata.ucd_3_2_0.category(char) == unicodedata.category(char) not in ("Cn", "Cs")
]


@settings(max_examples=300, deadline=None)
@given(text=st.text(alphabet=st.sampled_from(SETTLED), max_size=30))
def test_ids_equal_the_slow_tokenizer_on_random_text(pair, text):
    ours, theirs = pair
    if not has_special(text):
        assert ours.encode_line(text).tolist() == expected_ids(theirs, text)


def test_ids_of_bert_are_unchanged(bert):
    assert (bert.pad(), bert.unk(), bert.bos(), bert.eos(), bert.mask()) == (0, 100, 101, 102, 103)
    assert len(bert) == 30522 and bert.index("hello") == 7592 and bert[7592] == "hello"
    assert bert.index("no such token") == bert.unk()


def test_only_a_literal_sep_is_special(bert):
    ids = bert.encode_line("the answer [SEP] a [MASK] and [CLS][PAD] [sep]").tolist()
    assert ids.count(bert.eos()) == 2
    assert not {bert.mask(), bert.bos(), bert.pad()} & set(ids)
    assert ids[:3] == [bert.index("the"), bert.index("answer"), bert.eos()]


def test_encode_line_honours_its_arguments(bert):
    plain = bert.encode_line("hello world", append_eos=False).tolist()
    assert plain == [bert.index("hello"), bert.index("world")]
    reverse = bert.encode_line("hello world", reverse_order=True).tolist()
    assert reverse == [*reversed(plain), bert.eos()]
    assert bert.encode_line("").tolist() == [bert.eos()]
    size = len(bert)
    bert.encode_line("zzzqqq ☃☃☃", add_if_not_exist=True)
    assert len(bert) == size
    with pytest.raises(ValueError, match="does not grow"):
        bert.add_symbol("zzzqqq")


def test_preprocess_counts_unknown_words_by_their_text(bert):
    summary = BinarizeSummary()
    VocabularyDatasetBinarizer(bert).binarize_line("a ☃ snowman and \U00012000 cuneiform", summary)
    assert set(summary.replaced) == {"☃", "\U00012000"}


@pytest.mark.parametrize("kind", ["wordpiece", "cased", "sentencepiece", "byte-level-bpe"])
def test_what_preprocess_writes_loads_back_to_the_same(kind, minilm, sentencepiece_model, bart_folder, tmp_path):
    if kind == "sentencepiece":
        dictionary = load_dictionary(sentencepiece_model)
    elif kind == "byte-level-bpe":
        dictionary = load_dictionary(str(bart_folder / "dict.txt"))
    else:
        with open(minilm + "/vocab.txt", encoding="utf-8") as file:
            dictionary = WordPieceDictionary(file.read().split("\n")[:-1], lowercase=kind == "wordpiece")
    path = tmp_path / "out" / "dict.src.txt"
    dictionary.save(str(path))
    for other in (load_dictionary(str(path)), pickle.loads(pickle.dumps(dictionary))):
        assert other == dictionary and other.fingerprint() == dictionary.fingerprint()
        for line in ["Hello World, don't!", *AWKWARD]:
            assert other.encode_line(line).tolist() == dictionary.encode_line(line).tolist()
    stream = io.StringIO()
    dictionary.save(stream)
    assert stream.getvalue() == path.read_text(encoding="utf-8")


def test_casing_comes_from_the_tokenizer_config(tmp_path):
    vocab = tmp_path / "vocab.txt"
    vocab.write_text("\n".join([*tiny_vocab(), "Hello", "hello"]) + "\n", encoding="utf-8")
    lower = load_dictionary(str(vocab))
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    cased = load_dictionary(str(vocab))
    assert lower.encode_line("Hello")[0] == lower.index("hello")
    assert cased.encode_line("Hello")[0] == cased.index("Hello")
    assert lower != cased and lower.fingerprint() != cased.fingerprint()


@pytest.mark.parametrize(
    "content, message",
    [
        ("\n".join(s for s in tiny_vocab() if s != MASK), r"has no \[MASK\]"),
        ("the 12\nof 11\n", r"has no \[PAD\]"),
        ("\n".join([*tiny_vocab(), "the"]), "different tokens"),
        ("#mist_fairseq dictionary 1\n{}\n", "damaged"),
        ('#mist_fairseq dictionary 1\n{"type": "bpe"}\n', "unknown type 'bpe'"),
        ('#mist_fairseq dictionary 1\n{"type": "sentencepiece"}\nAAAA\n', "not a SentencePiece model"),
        ('#mist_fairseq dictionary 1\n{"type": "byte-level-bpe"}\n{"symbols": []}\n', "damaged"),
    ],
)
def test_files_that_are_no_dictionary_are_refused(content, message, tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        load_dictionary(str(path))


def test_a_file_that_is_no_sentencepiece_model_is_refused(tmp_path):
    path = tmp_path / "sp.model"
    path.write_bytes(b"\xff\x00nonsense")
    with pytest.raises(ValueError, match=r"sp\.model is not a SentencePiece model"):
        load_dictionary(str(path))
    with pytest.raises(FileNotFoundError, match="no dictionary at"):
        load_dictionary(str(tmp_path / "nothing.txt"))


def test_string_gives_readable_text(bert):
    text = "what's the best e-mail app, and why don't (most) people use it?"
    assert bert.string(bert.encode_line(text)) == text
    assert bert.string(bert.encode_line("unaffable embeddings")) == "unaffable embeddings"


def test_string_honours_its_arguments(bert):
    ids = torch.tensor([bert.bos(), bert.index("hello"), bert.unk(), bert.eos(), bert.index("you"), bert.pad()])
    assert bert.string(ids) == "hello [UNK] you"
    assert bert.string(ids, escape_unk=True) == "hello <[UNK]> you"
    assert bert.string(ids, unk_string="?!") == "hello ?! you"
    assert bert.string(ids, extra_symbols_to_ignore={bert.unk()}) == "hello you"
    assert bert.string(ids, include_eos=True) == "hello [UNK] [SEP] you"
    assert bert.string(ids, separator="_") == "hello_[UNK]_you"
    assert bert.string(torch.stack([ids, ids]), escape_unk=True) == "hello <[UNK]> you\nhello <[UNK]> you"
    assert bert.string(ids.tolist()) == bert.string(ids)
    for symbol in ("sentencepiece", "wordpiece", "@@ ", "subword_nmt"):
        assert bert.string(ids, symbol) == bert.string(ids)
    with pytest.raises(NotImplementedError, match="no-such-thing"):
        bert.string(ids, "no-such-thing")


def test_sentencepiece_ids_are_the_models_own(sentencepiece_model):
    processor = sentencepiece.SentencePieceProcessor(model_file=sentencepiece_model)
    dictionary = load_dictionary(sentencepiece_model)
    for line in [*real_lines()[:500], *(line for line in AWKWARD if not has_special(line))]:
        assert dictionary.encode_line(line).tolist() == [*processor.encode(line), processor.eos_id()]
        assert dictionary.string(dictionary.encode_line(line), unk_string=" \u2047 ") == " ".join(
            processor.decode(processor.encode(line)).split()
        )
    assert dictionary.bos() == processor.bos_id() and dictionary.eos() == processor.eos_id()
    assert sorted([dictionary.pad(), dictionary.mask()]) == [500, 501] and len(dictionary) == 502


def test_sentencepiece_specials(sentencepiece_model):
    dictionary = load_dictionary(sentencepiece_model)
    ids = dictionary.encode_line("the answer [SEP] the text [MASK]").tolist()
    assert ids.count(dictionary.eos()) == 2 and dictionary.mask() not in ids
    text = "Raw text, with Case and punctuation: isn't it nice."
    assert dictionary.string(dictionary.encode_line(text)) == text
    assert dictionary.string(dictionary.encode_line("nice \u2603")) == "nice <unk>"
    assert dictionary.string(dictionary.encode_line("nice \u2603"), escape_unk=True) == "nice <<unk>>"
    shown = dictionary.string([dictionary.bos(), dictionary.mask(), *ids[:2]])
    assert shown.startswith("[MASK]") and "answer" in dictionary.string(ids)


def test_sentencepiece_with_mask_as_text_is_refused(tmp_path):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(real_lines()[:500]),
        model_writer=model,
        vocab_size=300,
        user_defined_symbols=[MASK],
        minloglevel=2,
    )
    path = tmp_path / "sp.model"
    path.write_bytes(model.getvalue())
    with pytest.raises(ValueError, match=r"\[MASK\] as an ordinary piece"):
        load_dictionary(str(path))


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
    dictionary = WordPieceDictionary(list(dict.fromkeys([*tiny_vocab(), "can", "cat", "gui", "##tar", "##tars"])))
    ids = [dictionary.index(word) for word in words.split()]
    positions = dictionary.collapse_repeats(ids)
    assert " ".join(dictionary[ids[position]] for position in positions) == kept


def test_sentencepiece_repeats_collapse(sentencepiece_model):
    dictionary = load_dictionary(sentencepiece_model)
    ids = dictionary.encode_line("this object object is is new", append_eos=False).tolist()
    assert dictionary.string([ids[position] for position in dictionary.collapse_repeats(ids)]) == "this object is new"


def test_ids_of_bart_are_fairseqs(bart_folder):
    dictionary = load_dictionary(str(bart_folder / "dict.txt"))
    files = Namespace(
        gpt2_encoder_json=str(bart_folder / "encoder.json"), gpt2_vocab_bpe=str(bart_folder / "vocab.bpe")
    )
    bpe, theirs = GPT2BPE(files), Dictionary.load(str(bart_folder / "dict.txt"))
    for line in [*real_lines()[:2000], *AWKWARD]:
        if has_special(line):
            continue
        line = line.rstrip()
        expected = theirs.encode_line(bpe.encode(line), append_eos=True, add_if_not_exist=False).tolist()
        assert dictionary.encode_line(line + "\n").tolist() == expected, line
        assert bpe.decode(theirs.string(torch.tensor(expected))) == line
        assert dictionary.string(expected) == re.sub("[\x00-\x1f\x7f-\x9f\u2028\u2029]", " ", line)
    assert (dictionary.bos(), dictionary.pad(), dictionary.eos(), dictionary.unk()) == (0, 1, 2, 3)
    assert len(dictionary) == len(theirs) + 1 == 4 + 500 + 4 + 1 and dictionary.mask() == 508
    assert dictionary[5] == theirs[5] == "7"


def test_bart_specials(bart_folder):
    dictionary = load_dictionary(str(bart_folder / "dict.txt"))
    ids = dictionary.encode_line("the answer [SEP] the text <mask> </s>").tolist()
    assert ids.count(dictionary.eos()) == 2 and not {dictionary.mask(), dictionary.unk()} & set(ids)
    assert dictionary.string(ids) == "the answer the text <mask> </s>"
    assert dictionary.string(ids, include_eos=True) == "the answer</s> the text <mask> </s></s>"
    assert dictionary.string([dictionary.unk(), *ids[:2]], escape_unk=True).startswith("<<unk>>")
    assert dictionary.string(dictionary.encode_line("\u2603")[:1]) == "\ufffd"
    words = dictionary.encode_line("a the the cat", append_eos=False).tolist()
    assert dictionary.string([words[position] for position in dictionary.collapse_repeats(words)]) == "a the cat"


@pytest.mark.parametrize(
    "name, content, error, message",
    [
        ("encoder.json", None, FileNotFoundError, "put GPT-2's encoder.json beside it"),
        ("vocab.bpe", None, FileNotFoundError, "put GPT-2's vocab.bpe beside it"),
        ("encoder.json", "{", ValueError, "encoder.json is not JSON"),
        ("encoder.json", json.dumps({"a": 0}), ValueError, "no token for 255 of the 256 bytes"),
        ("vocab.bpe", "#version: 0.2\nq x\n", ValueError, "merges 'q x'"),
        ("dict.txt", "5 10\n5 9\n", ValueError, "Duplicate word"),
    ],
)
def test_damaged_files_of_bart_are_refused(name, content, error, message, bart_folder, tmp_path):
    for file in bart_folder.iterdir():
        if file.name != name:
            (tmp_path / file.name).write_text(file.read_text(encoding="utf-8"), encoding="utf-8")
        elif content is not None:
            (tmp_path / name).write_text(content)
    with pytest.raises(error, match=message):
        load_dictionary(str(tmp_path / "dict.txt"))
