"""What is done to texts before they are scored, each step by its name.

The authors' evaluation joins BERT's words with spaces, collapses repeated words, lower-cases, and re-joins tokens: for
Quora into the Penn Treebank's, which the question-generation script expects, for XSum with a few rules of its own.
"""

import re
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


def rejoin_xsum(text: str) -> str:
    """Apply the authors' rules for XSum: hyphens go, ``' s``, commas, periods and brackets attach."""
    for old, new in _XSUM:
        text = text.replace(old, new)
    return text


_FUNCTIONS = (lower, words, collapse_repeats, rejoin_quora, rejoin_xsum)
STEPS = {function.__name__.replace("_", "-"): function for function in _FUNCTIONS}


def apply_steps(texts: Iterable[str], names: Iterable[str]) -> list[str]:
    """Run texts through steps, in this order; a ValueError lists those there are."""
    texts = list(texts)
    for name in names:
        if name not in STEPS:
            raise ValueError(f"no step {name!r}: there are {', '.join(STEPS)}")
        texts = [STEPS[name](text) for text in texts]
    return texts
