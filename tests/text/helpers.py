"""Texts and vocabularies for the tests of tokenizers."""

import io
import pydoc_data.topics
from pathlib import Path

import sentencepiece
from tokenizers import ByteLevelBPETokenizer

from mist_fairseq.text.tokenizer import CLS, MASK, PAD, SEP, UNK, Tokenizer

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


def ids_of(tokenizer: Tokenizer, text: str) -> list[int]:
    return [index for _, index in tokenizer.encode(text)]


def train_sentencepiece(path: Path, vocab_size: int = 500, **options) -> Path:
    """A small SentencePiece model of the real lines."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(real_lines()[:1500]),
        model_writer=model,
        vocab_size=vocab_size,
        minloglevel=2,
        **options,
    )
    path.write_bytes(model.getvalue())
    return path


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
