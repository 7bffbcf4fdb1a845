"""Texts and vocabularies for the tests of tokenizers."""

import io
import pydoc_data.topics
import random
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


WORDS = {
    "German": "Wie kann ich die Straße für größere Häuser Übung Ärger nicht öffnen über Mädchen heißt Donaudampfschiff",
    "Spanish": "¿Cómo puedo aprender español más rápido? ¡El niño y la señora están aquí! corazón también Árbol",
    "Hindi": "मैं हिन्दी कैसे सीख सकता हूँ क्या यह ज़रूरी है भारत में सबसे अच्छा तरीका क्यों नहीं पढ़ना विद्यार्थी",
    "Chinese": "我 怎么 才能 学好 英语 ？ 北京 的 天气 很 好 ， 明天 去 上海 吗 。 这 是 什么 意思 “ 你好 ” 龘",
    "Japanese": "どう すれ ば ギター を 速く 学べ ます か 。 東京 タワー は 高い です ｶﾞｷﾞ ﾊﾟ",
    "Russian": "Как мне быстро выучить английский язык ? Ёлка объём чай Йогурт",
    "Arabic": "كَيْفَ أتعلم العربية بسرعة ؟ مدرسة الطلاب إلى",
}
MARKS = [
    "3.14",
    "1,000",
    "$5",
    "v2.0.1",
    "(2024)",
    "AT&T",
    "https://a.b/c?d=e",
    "don't",
    "C++",
    "--",
    "…",
    "NASA",
    "e\u0301",
]


def lines_of_languages(count: int = 300) -> list[str]:
    """Made-up lines of each language, with numbers, marks, capital letters, and spaces where there may be several."""
    rng, lines = random.Random(0), []
    for language, text in WORDS.items():
        space = "" if language in ("Chinese", "Japanese") else " "
        for _ in range(count):
            words = rng.choices(text.split(), k=rng.randint(2, 12)) + rng.choices(MARKS, k=rng.randint(0, 2))
            rng.shuffle(words)
            words[-1:] = rng.choice([words[-1:], [words[-1].upper(), " " + words[0]], [words[-1] + "?"]])
            lines.append(space.join(words))
    return lines


def has_special(text: str) -> bool:
    return any(name in text for name in (PAD, UNK, CLS, SEP, MASK))


def ids_of(tokenizer: Tokenizer, text: str) -> list[int]:
    return [index for _, index in tokenizer.encode(text)]


def train_sentencepiece(path: Path, vocab_size: int = 500, lines: list[str] | None = None, **options) -> Path:
    """A small SentencePiece model, by default of the real lines."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines or real_lines()[:1500]),
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
