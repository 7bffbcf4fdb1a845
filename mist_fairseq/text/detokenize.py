"""From BERT's words back to English text.

BERT's tokenizer splits at every punctuation mark and forgets where the spaces were; these rules put them back as
English is written: ``what's``, ``don't``, ``e-mail``, ``(1,000)``, ``"quoted"``, ``www.example.com``.
"""

import re

_CLOSING = frozenset(".,!?;:)]}%\u2026\u201d\u00bb\u3002\uff0c\uff1f\uff01")
_OPENING = frozenset("([{$\u00a3\u20ac\u20b9#\u201c\u00ab\u00bf\u00a1`\u2018")
_JOINING = frozenset("-/_@^\\\u2010\u2011\u2013")
_APOSTROPHES = frozenset("'\u2019")

# What follows an apostrophe inside a word ("it's", "don't"), and what stands before one ("o'clock", "l'oreal").
_CONTRACTED = frozenset(["s", "t", "re", "ve", "ll", "d", "m", "nt", "em", "all"])
_ELIDED = frozenset(["o", "l", "d", "y", "c", "j", "qu"])
_BRACKET_WORDS = frozenset(["lrb", "rrb", "lsb", "rsb", "lcb", "rcb"])
_AFTER_PERIOD = frozenset("com org net edu gov js io co uk html php tech sc ed".split())  # "x.com", "b.tech"

_THOUSANDS = re.compile(r"\d{3}")
_LETTER = re.compile(r"[^\W\d_]")


def join_words(words: list[str]) -> str:
    """Join words and punctuation marks, as BERT's basic tokenizer splits them, to text."""
    words = _merge_bracket_words(words)
    places = list(enumerate(zip(["", *words], words, [*words[1:], ""])))
    last_closing = {  # the last place where each kind of apostrophe may close a quotation
        word: i
        for i, (before, word, after) in places
        if word in _APOSTROPHES and before.lower() not in _ELIDED and after.lower() not in _CONTRACTED
    }
    text = ""
    glue = True  # nothing is put between the previous word and the next
    open_quotes: set[str] = set()
    for i, (before, word, after) in places:
        closes_later = i + 2 <= last_closing.get(word, -1)
        left, right = _attachment(before, word, after, closes_later, open_quotes)
        text += word if glue or left else " " + word
        glue = right
    return text


def _attachment(before: str, word: str, after: str, closes_later: bool, open_quotes: set[str]) -> tuple[bool, bool]:
    """Say whether *word* attaches to the word *before* it and to the word *after* it."""
    if word == ".":
        return True, _joins_period(before, after)
    if word == ",":
        return True, before.isdecimal() and bool(_THOUSANDS.fullmatch(after))
    if word == ":":
        return True, (before.isdecimal() and after.isdecimal()) or after == "/"
    if word == '"' or word in _APOSTROPHES:
        return _quotes(before, word, after, closes_later, open_quotes)
    if word == "#" and before in ("c", "C", "f", "F"):
        return True, False
    if word == "+":
        return before in ("c", "C", "+", "g", "G"), after == "+"
    if word in _JOINING:
        return True, True
    if word in _OPENING:
        return word == before == "`", True
    return word in _CLOSING, False


def _joins_period(before: str, after: str) -> bool:
    """Say whether a period stands inside a number, an abbreviation or an address: "3.5", "u.s.a.", "example.com"."""
    number = before.isdecimal() and after[:1].isdecimal()
    initials = len(before) == len(after) == 1 and _LETTER.match(before) and _LETTER.match(after)
    return number or bool(initials) or after.lower() in _AFTER_PERIOD or before.lower() == "www"


def _quotes(before: str, word: str, after: str, closes_later: bool, open_quotes: set[str]) -> tuple[bool, bool]:
    if word != '"':
        if (after.lower() in _CONTRACTED and before and before[-1].isalnum()) or (before.lower() in _ELIDED and after):
            return True, True
        if word in (before, after):  # '' closes what `` opened
            return word == before or bool(before), word == after
    if word in open_quotes:
        open_quotes.discard(word)
        return True, False
    if closes_later or word == '"':
        open_quotes.add(word)
        return False, True
    return bool(before), not before  # behind a word a plural's genitive: "the students' books"


def _merge_bracket_words(words: list[str]) -> list[str]:
    """Make one word of ``-lrb-`` and its like, which are the Penn Treebank's brackets."""
    merged: list[str] = []
    for word in words:
        if word == "-" and merged[-2:-1] == ["-"] and merged[-1].lower() in _BRACKET_WORDS:
            merged[-2:] = [f"-{merged[-1]}-"]
        else:
            merged.append(word)
    return merged
