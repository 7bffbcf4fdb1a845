"""From BERT's words back to text as a writer would type it.

BERT's tokenizer splits at every punctuation mark and around every Chinese character, and forgets where the spaces were.
Whether a mark sticks to the word before it and to the one behind it follows from these two and the quotations open:
``what's``, ``e-mail``, ``(1,000)``, ``"quoted"``, ``v2.0.1``, ``at&t``, ``www.example.com/a?b=c``, ``用python写``.
``scripts/measure_round_trip.py`` counts the lines of a text that come back.
"""

import unicodedata
from collections.abc import Callable
from typing import NamedTuple

_CLOSING = frozenset(".,!?;:)]}%\u2026\u0964\u0965\u060c\u061b\u061f")
_OPENING = frozenset("([{$#~\u00bf\u00a1")
_JOINING = frozenset(["/", "//", "://", "::", "_", "__", "^", "\\", "=", "\u2010", "\u2011"])
_DASHES = frozenset(["-", "--", "\u2013"])
_RUNS = frozenset("-'\"`*+_=/:&|<>#~\u2014")  # several of one of these are one mark
_PAIRS = frozenset(["->", "-->", "=>", "==>", "<-", "<=", ">=", "!=", ":=", "+=", ":/", "://"])  # so are these
_BRACKET_WORDS = frozenset(["lrb", "rrb", "lsb", "rsb", "lcb", "rcb"])
_APOSTROPHES = frozenset("'\u2019")
_QUOTES = {mark: (mark,) for mark in ('"', "'", "''", "\u2019", "*", "**", "__")} | {
    '""': ('""', '"""'), '"""': ('"', '""', '"""'), "`": ("`", "'"), "``": ("``", "''"), "<": (">",),
    "\u201c": ("\u201d",), "\u2018": ("\u2019",), "\u201e": ("\u201c", "\u201d"), "\u201a": ("\u2018", "\u2019"),
    "\u00ab": ("\u00bb",), "\u00bb": ("\u00ab",), "\u2039": ("\u203a",), "\u203a": ("\u2039",),
}  # what opens a quotation, and what may close it  # fmt: skip
_CLOSING_QUOTES = frozenset(mark for marks in _QUOTES.values() for mark in marks)
_UNCLOSED = frozenset(['"', '"""', *"\u201c\u201e\u2018\u201a\u00ab\u2039"])  # these may open one that nothing closes

# What follows an apostrophe inside a word ("it's", "don't"), and what stands before one ("o'clock", "l'oreal").
_CONTRACTED = frozenset(["s", "t", "re", "ve", "ll", "d", "m", "nt", "em", "all"])
_ELIDED = frozenset(["o", "l", "d", "y", "c", "j", "qu"])
# What ends an address or a file's name, and seldom begins a sentence: "x.com", "b.tech", "a.pdf".
_ENDINGS = frozenset(
    "com org net edu gov js io co uk html php tech sc ed "
    "py css json xml csv txt md pdf doc jpg png gif zip exe dll".split()
)
# What comes behind a dash and not behind a hyphen: "it rained - which is good".
_CLAUSES = frozenset(
    "the a an and but which who that was is are if as we he they his this though while what why how when where".split()
)
_CHUNK = 99  # characters that tell what a mark is in, an address for instance
_FUNCTIONS = frozenset("bcdefghjklmnopqrstuvwxyzFGHPQR")  # "f(x)"


class _Place(NamedTuple):
    """Where a mark stands; words beyond the ends are empty."""

    before: str
    after: str
    second: str  # behind *after*
    third: str
    chunk: str  # the text since the last space, the end of it if it is long
    glue: bool  # an opening mark is before it

    def in_number(self) -> bool:  # "3.5", "10:30", "2+2", "v2.0"
        return self.before[-1:].isdecimal() and self.after[:1].isdecimal()

    def in_word(self) -> bool:  # "it's", "o'clock", "5'3"
        contracted = self.after.lower() in _CONTRACTED and self.before[-1:].isalnum()
        return contracted or (self.before.lower() in _ELIDED and self.after[:1].isalnum()) or self.in_number()

    def in_name(self) -> bool:  # "u.s.a.", "example.com", "www.a.b.c", "(.git", "`a.b`"
        before, after = self.before.lower(), self.after.lower()
        initials = len(before) == len(after) == 1 and before.isalpha() and after.isalpha()
        host = self.chunk[:3] == "www" or ("://" in self.chunk and "/" not in self.chunk.partition("://")[2])
        inside = self.glue or ("`" in self.chunk and before.isalnum()) or (host and before not in _ENDINGS)
        return initials or after in _ENDINGS or (inside and after[:1].isalnum())

    def in_thousands(self) -> bool:  # "1,000", "2,500km", "1,00,000", "3,5 %"
        digits = len(self.after) - len(self.after.lstrip("0123456789"))
        groups = digits == 3 or (digits == 2 and self.second == ",")
        return self.in_number() and (groups or (len(self.before) < 3 and self.second in ("%", "\u20ac")))

    def in_compound(self) -> bool:  # "state-of-the-art", "a/what-is-it"
        parts = "-" in self.chunk or "/" in self.chunk or self.second in _DASHES
        return self.before[-1:].isalnum() and parts

    def is_dash(self) -> bool:  # "rain - which is good", '"yes" - she said'
        outside = self.after.lower() in _CLAUSES or self.before in (")", "]", "?", "!", ",", ";", ":", '"')
        return outside and not self.glue and not self.in_compound()

    def is_option(self) -> bool:  # "-v", "-1"
        return (len(self.after) == 1 and self.after.isalnum()) or self.after.isdecimal()

    def has_arguments(self) -> bool:  # "thing(s)", "main()", "f(x)", "a_b(c)", "[text](address)"
        short = self.after == ")" or (self.second == ")" and self.after.lower() in ("s", "es"))
        letter = self.chunk == self.before in _FUNCTIONS
        return short or letter or "_" in self.chunk or self.before == "]"

    def has_ampersand(self) -> bool:  # "q&a", "at&t", "a?b=c&d=e"
        return self.second == "=" or (len(self.after) == 1 and 0 < len(self.before) < 3)


# When a mark sticks to the word before it, and to the one behind it, where that is not always the same.
_TO_BEFORE: dict[str, Callable[[_Place], bool]] = {
    ".": lambda at: not (at.before.lower() in _CLAUSES and at.after.lower() in _ENDINGS),  # "a .doc file"
    "+": lambda at: at.before[-1:].isdecimal() or len(at.before) == 1 or not at.after.isalnum(),  # "250+ people"
    "++": lambda at: at.before.isalnum(),  # "c++"
    "&": _Place.has_ampersand,
    "@": lambda at: at.second == "." and at.third != "",  # "a@b.org", "@name"
    "$": lambda at: at.before[-1:].isdecimal() and not at.after[:1].isdecimal(),  # "900$"
    "#": lambda at: at.before.lower() in ("c", "f") or "/" in at.chunk,  # "c#", "a.com/b#c"
    "(": _Place.has_arguments,
    "-": lambda at: not at.is_dash(),
    "\u2013": lambda at: not at.is_dash(),
    "--": lambda at: False,  # "git --all", "well -- what is it"
    "=": lambda at: at.before != ")",  # "a=b", "f(x) = 1"
}
_TO_AFTER: dict[str, Callable[[_Place], bool]] = {
    ".": lambda at: at.in_number() or at.in_name(),
    ",": _Place.in_thousands,
    ":": lambda at: at.in_number() or (at.glue and at.after[:1].isalnum()),  # "(:make)"
    "!": lambda at: (at.glue or at.before == "") and at.after == "[",  # "![image]"
    "?": lambda at: at.second == "=" or (at.glue and at.after[:1].isalnum()),  # "a.com/b?c=d", "(?i)"
    "+": _Place.in_number,
    "++": lambda at: not at.before.isalnum(),  # "++i"
    "&": _Place.has_ampersand,
    "@": lambda at: True,
    "$": lambda at: not _TO_BEFORE["$"](at),
    "#": lambda at: at.before.lower() not in ("", "c", "f") or at.after[:1].isdecimal(),  # "#1", "# heading"
    "-": lambda at: (at.before != "" and not at.is_dash()) or (at.is_option() and at.after.lower() not in _CLAUSES),
    "\u2013": lambda at: at.before != "" and not at.is_dash(),
    "--": lambda at: at.after.lower() not in _CLAUSES,
    "=": lambda at: at.before != ")",
}
_SIDES = ((_TO_BEFORE, _CLOSING | _JOINING), (_TO_AFTER, _OPENING | _JOINING))


def join_words(words: list[str]) -> str:
    """Join words and punctuation marks, as BERT's basic tokenizer splits them, to text."""
    words = _merge(words)
    padded = ["", *words, "", "", ""]
    last = {  # where each mark may close a quotation for the last time
        word: i
        for i, word in enumerate(words)
        if not word[:1].isalnum()
        and not (word in _APOSTROPHES and _Place(padded[i], padded[i + 2], "", "", "", False).in_word())
    }
    text = ""
    start = 0  # of the text since the last space
    glue = True  # nothing is put between the previous word and the next
    open_quotes: list[str] = []
    for i, (before, word) in enumerate(zip(padded, words)):
        if word[:1].isalnum():
            left = right = False
        else:
            after, second, third = padded[i + 2 : i + 5]
            chunk = text[max(start, len(text) - _CHUNK) :]
            place = _Place(before, after, second, third, chunk, glue and before != "")
            if word in _QUOTES or word in _CLOSING_QUOTES:
                left, right = _quote(word, place, last, i, open_quotes)
            else:
                left, right = (rules[word](place) if word in rules else word in always for rules, always in _SIDES)
        if not (glue or left or _unspaced(before, word)):
            text += " "
            start = len(text)
        text += word
        glue = right
    return text


def _merge(words: list[str]) -> list[str]:
    """Make one of marks that belong together: "--", "''", "->", and ``-lrb-``, a bracket of the Penn Treebank."""
    merged: list[str] = []
    for word in words:
        previous = merged[-1] if merged else ""
        run = word in _RUNS and previous[-1:] == word and previous[:2] in (word, word * 2)
        if run or (len(previous) < 3 and previous + word in _PAIRS):
            merged[-1] += word
        elif word == "-" and merged[-2:-1] == ["-"] and previous.lower() in _BRACKET_WORDS:
            merged[-2:] = [f"-{previous}-"]
        else:
            merged.append(word)
    return merged


def _unspaced(before: str, word: str) -> bool:
    """Whether one is a Chinese character or a wide mark: "用python写3个,好吗？"."""
    return any(
        not one.isascii()
        and unicodedata.east_asian_width(one[0]) in "WF"
        and (unicodedata.category(one[0])[0] == "P" or unicodedata.name(one[0], "").startswith("CJK"))
        for one in (before, word)
    )


def _quote(word: str, place: _Place, last: dict[str, int], i: int, open_quotes: list[str]) -> tuple[bool, bool]:
    """How a quotation mark, an apostrophe, a star or "<" sticks to what is before and behind it."""
    if word in _APOSTROPHES and place.in_word():
        return True, True
    if closed := [depth for depth, quote in enumerate(open_quotes) if word in _QUOTES[quote]]:
        del open_quotes[closed[-1] :]
        return True, False
    if any(i + 2 <= last.get(mark, 0) for mark in _QUOTES.get(word, ())):
        opens = word != "*" or (place.before != "" and not place.in_number())  # not in "* item", "2*3"
    else:  # not in 11" tall
        beside = place.before[-1:].isdecimal() or place.before in _CLOSING - {":"} or place.after in _CLOSING
        opens = word in _UNCLOSED and not beside
    if opens and place.after:
        open_quotes.append(word)
        del open_quotes[:-8]  # deeper ones are no text, and would take long
        return False, True
    if word[0] in "*<>":
        return place.in_number(), place.in_number() or place.glue
    if word[0] == "_":
        return True, True
    if word in _APOSTROPHES or word == "`":  # "the students' books", "the qur'an", "the '80s"
        year = place.after[:1].isdecimal()
        inside = year or place.glue or place.before == "" or (place.before.isalnum() and place.before[-1] != "s")
        return place.before != ":" and not year, inside and place.after[:1].isalnum()
    return True, False
