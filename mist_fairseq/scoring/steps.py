"""What is done to texts before they are scored, each step by its name.

The authors' evaluation (``train.py`` and ``eval_utils.py`` of kongds/MIST) joins BERT's words with spaces, collapses
repeated words, lower-cases, and re-joins tokens: for Quora into the Penn Treebank's, which the question-generation
script expects, for XSum with a few rules of its own. Steps with ``authors`` in their name do it as theirs does, the
others as it seems to be meant.
"""

import re
import string
from collections.abc import Iterable
from itertools import groupby
from typing import Any

_WORD = re.compile(r"-[lr][rsc]b-|``|''|[^\W_]+|[^\w\s]|_", re.IGNORECASE)
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_QUOTES = {'"': ("``", "''"), "'": ("`", "'")}


def _join(match: re.Match) -> str:
    return match[0].replace(" ", "")


_PENN: list[tuple[re.Pattern, Any]] = [
    (re.compile(r"(?<!\S)(\S*)n ' t(?!\S)"), r"\1 n't"),
    (re.compile(r"(?<!\S)' (?:s|d|m|ll|re|ve)(?!\S)"), _join),
    (re.compile(r"(?<!\S)(?:\. \. \.|- -)(?!\S)"), _join),
    (re.compile(r"(?<!\S)\d+(?: , \d+)+(?!\S)"), _join),
    (re.compile(r"(?<!\S)[\d,]+ \. \d+(?!\S)"), _join),
    (re.compile(r"(?<=[^\W_]) - (?=[^\W_])"), "-"),
]
_REPLACED = _BRACKETS | {"&": "&amp;", "<": "&lt;", ">": "&gt;", "[UNK]": "UNK"}
_THEIR_PARTS = re.compile(r"(?:' (?:s|d|ll)|\. \. \.|- -)(?!\S)|\S+")
_XSUM = [(" - ", " "), (" ' s", "'s"), (" ,", ","), (" .", "."), ("( ", "("), (" )", ")")]


def lower(text: str) -> str:
    """Make a text lower-case, without spaces around it."""
    return text.strip().lower()


def words(text: str) -> str:
    """Split words and punctuation marks, as BERT's basic tokenizer does: ``what's`` -> ``what ' s``.

    The Penn Treebank's brackets and quotation marks, such as ``-lrb-``, stay whole.
    """
    return " ".join(_WORD.findall(text))


def collapse_repeats(text: str) -> str:
    """Leave a directly repeated word out: ``the the cat`` -> ``the cat``."""
    return " ".join(word for word, _ in groupby(text.split()))


def collapse_repeats_authors(text: str) -> str:
    """The same, but of the first two words none is left out: ``the the the cat`` -> ``the the cat``."""
    kept: list[str] = []
    for word in text.split():
        if len(kept) < 2 or kept[-1] != word:
            kept.append(word)
    return " ".join(kept)


def rejoin_quora(text: str) -> str:
    """Turn BERT's words into the Penn Treebank's tokens.

    ``can ' t`` -> ``ca n't``; ``what ' s`` -> ``what 's``; ``3 , 000`` -> ``3,000``; ``well - known`` ->
    ``well-known``; brackets -> ``-lrb-`` and the like; quotation marks open and close by turns.
    """
    for pattern, replacement in _PENN:
        text = pattern.sub(replacement, text)
    tokens, quoted = [], dict.fromkeys(_QUOTES, False)
    for token in text.split():
        for mark, (opening, _) in _QUOTES.items():
            if token in (mark, opening):
                quoted[mark] = token == opening or not quoted[mark]
                token = _QUOTES[mark][not quoted[mark]]
                break
        tokens.append(_BRACKETS.get(token, token))
    return " ".join(tokens)


def rejoin_quora_authors(text: str) -> str:
    """The same with the authors' rules, ``fix_tokenization``, word by word.

    Other than ``rejoin_quora``: ``' m``, ``' re`` and ``' ve`` stay apart, with a quotation mark; quotation marks
    alternate whichever way they face; ``&``, ``<`` and ``>`` become ``&amp;`` and the like; any figures are joined at a
    comma or period; letters with periods between them (``U . S .``) leave one period over.
    """
    parts = _THEIR_PARTS.findall(" ".join(text.split()))
    made, opened, after_dash, i = list[str](), dict.fromkeys(_QUOTES, False), False, 0
    while i < len(parts):
        part, joins, read = parts[i], False, 1
        last, following = made[-1] if made else "", parts[i + 1] if i + 1 < len(parts) else ""
        if part == "'" and last.endswith("n") and following == "t":
            made[-1:], read = [last[:-1], "n't"], 2
        elif part in _QUOTES:
            made.append(_QUOTES[part][opened[part]])
            opened[part] = not opened[part]
        elif part in (",", ".") and (joined := _joined(last, parts[i:])):
            made[-1], read = joined, 2
        elif part == "-" and made and following and not _are_marks(last) and not _are_marks(following[0]):
            made[-1], joins = f"{last}-", True
        elif after_dash and not _are_marks(part[0]):
            made[-1] = last + part
        else:
            made.append(_REPLACED.get(part, part.replace(" ", "")))
        i, after_dash = i + read, joins
    return " ".join(made)


def _joined(last: str, parts: list[str]) -> str | None:
    """A word with the comma or period after it and what follows, where the authors join them."""
    mark, following = parts[0], parts[1] if len(parts) > 1 else ""
    are_figures = _is_figure if mark == "," else str.isdigit
    if last and following and are_figures(last) and are_figures(following):
        return last + mark + following
    if mark == "." and _is_capital(last) and _is_capital(following) and parts[2:3] == ["."]:
        end = 3
        while _is_capital("".join(parts[end + 1 : end + 2])) and parts[end + 2 : end + 3] == ["."]:
            end += 2
        return last + "".join(parts[:end])
    return None


def _is_figure(token: str) -> bool:
    return all(character.isdigit() or character == "," for character in token)


def _is_capital(token: str) -> bool:
    return len(token) == 1 and token.isupper()


def _are_marks(token: str) -> bool:
    """Whether it stands so in ASCII's list of punctuation."""
    return token in string.punctuation


def rejoin_xsum(text: str) -> str:
    """Apply the authors' rules for XSum: hyphens go, ``' s``, commas, periods and brackets attach."""
    for old, new in _XSUM:
        text = text.replace(old, new)
    return text


_FUNCTIONS = (
    lower,
    words,
    collapse_repeats,
    collapse_repeats_authors,
    rejoin_quora,
    rejoin_quora_authors,
    rejoin_xsum,
)
STEPS = {function.__name__.replace("_", "-"): function for function in _FUNCTIONS}


def apply_steps(texts: Iterable[str], names: Iterable[str]) -> list[str]:
    """Run texts through steps, in this order; a ValueError lists those there are."""
    texts = list(texts)
    for name in names:
        if name not in STEPS:
            raise ValueError(f"no step {name!r}: there are {', '.join(STEPS)}")
        texts = [STEPS[name](text) for text in texts]
    return texts
