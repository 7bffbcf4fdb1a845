r"""Texts that are easy to get wrong, each on a line: a text may hold anything but \n and half characters."""

import random
import re

PIECES = {
    "plain": "how can I learn the guitar?",
    "emoji of several": "\U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f44d\U0001f3fd \u2764\ufe0f",
    "half a flag": "\U0001f1e9",
    "tags": "\U0001f3f4\U000e0067\U000e0062\U000e007f",
    "combining": "e\u0301\u0302 a\u0300" + "\u0301" * 40,
    "combining alone": "\u0301",
    "composed": "caf\u00e9 \u1e9e \ufb01 \u0130",
    "right to left": "\u0645\u0631\u062d\u0628\u0627 \u05e9\u05dc\u05d5\u05dd",
    "turned around": "\u202eabc\u202c \u2067x\u2069 \u200f",
    "zero width": "a\u200bb\u200cc\u200dd\u2060e\ufefff",
    "soft hyphen": "co\u00adop",
    "NUL": "a\x00b",
    "controls": "\x01\x02\x07\x08\x1b[31mred\x1b[0m\x7f",
    "carriage return": "a\rb",
    "carriage return at the end": "a\r",
    "lines within": "a\x0bb\x0cc\x1cd\x1de\x1ef\x85g\u2028h\u2029i",
    "C1": "\x80\x9f",
    "tabs": "\ta\tb\t",
    "spaces": "  a \u00a0\u2003\u3000b  ",
    "empty": "",
    "only a space": " ",
    "Chinese": "\u4e2d\u6587\uff0c\u6807\u70b9\u3002",
    "Hindi, Thai, Korean": "\u0939\u093f\u0928\u094d\u0926\u0940 \u0e44\u0e17\u0e22 \ud55c\uad6d\uc5b4",
    "full width": "\uff26\uff55\uff4c\uff4c \ufdfa \u2167",
    "no characters": "\ufffd \uffff \ufdd0 \U0010ffff",
    "private": "\ue000\U000f0000",
    "special tokens": "[SEP] [CLS] [MASK] [PAD] [UNK] <s> </s> <pad> <unk> <mask> \u2581",
    "a line of fairseq's": "D-0\t-0.5\tH-1",
    "apostrophes": "'' ' x' o' n't \u2019 `` -lrb- \"",
    "fields": "a ||| b &lt; <x/> \\n %s {} $(x) ; |",
    "word over 100": "x" * 101 + " " + "\U0001f600" * 101,
}

# What no file of text may hold.
NOT_UTF8 = {
    "half a character": b"a \xed\xa0\x80 b",
    "both halves": b"\xed\xa0\xbd\xed\xb8\x80",
    "its end missing": b"a \xe2\x82",
    "its beginning missing": b"\x80",
    "too long": b"\xc0\xaf",
    "too large": b"\xf4\x90\x80\x80",
    "Latin-1": b"caf\xe9 au lait",
    "UTF-16": b"\xff\xfea\x00",
    "end of a buffer": b"x" * 8191 + b"\xe2\x82",
}

LONGEST = 100_000  # characters of the long lines


def texts(count: int, seed: int = 0) -> list[str]:
    """All pieces, and then combinations of them up to this number."""
    rng = random.Random(seed)
    found = list(PIECES.values())
    while len(found) < count:
        pieces = rng.choices(list(PIECES.values()), k=rng.randint(2, 5))
        found.append(rng.choice(["", " "]).join(pieces))
    return found[:count]


def long_texts() -> list[str]:
    """Lines of 100,000 characters: one word, many, no letters, combining marks, apostrophes."""
    pieces = ["x", "how can ", "\U0001f600\u200d", "e\u0301\u0302\u0303", "x' ", "'", "\x00", " ", "\u4e2d", "1,"]
    return [(piece * LONGEST)[:LONGEST] for piece in pieces]


def as_file(texts: list[str], windows: bool = False) -> bytes:
    r"""A file of them: every third line, with *windows* each, ends in \r\n, and the last one has no end."""
    ends = ["\r\n" if windows or i % 3 == 2 or text.endswith("\r") else "\n" for i, text in enumerate(texts)]
    if texts[-1] and not texts[-1].endswith("\r"):
        ends[-1] = ""
    return "".join(text + end for text, end in zip(texts, ends)).encode()


def shown(text: str) -> str:
    """A text as every output has it, whoever reads its lines: controls and ends of lines are spaces."""
    return re.sub("[\x00-\x1f\x7f-\x9f\u2028\u2029]", " ", text)


def is_one_line(text: str) -> bool:
    """Whether every reader takes it for a line, and every program for text in one field."""
    return "".join(text.splitlines()) == text and not re.search("[\x00\t]", text) and text.encode().decode() == text
