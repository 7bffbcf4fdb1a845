"""Tokenizers: raw text to ids and back, over a fixed vocabulary; ``mist_fairseq.text.tokenizer_files`` loads them."""

import hashlib
import json
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from mist_fairseq.mist.config import SpecialTokens

PAD, UNK, CLS, SEP, MASK = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"

# First line of a saved tokenizer, followed by one line of JSON settings and the vocabulary itself.
HEADER = "#mist_fairseq dictionary 1"

# Doubled on purpose in English text and code ("c++", "--", "``", "''"): never a repeated word.
_DOUBLED = frozenset("+-'`/*=")

_SURROGATES = re.compile("[\ud800-\udfff]")  # halves of characters, which have no UTF-8

# What no text contains: BERT's room for more, its special tokens where a family has others, too, fairseq's filling,
# GPT-2's end of a text.
_NEVER_TEXT = re.compile(r"\[(unused\d+|PAD|UNK|CLS|SEP|MASK)\]|madeupword\d+|<\|endoftext\|>")

# What some reader takes for the end of a line; tabs, which part fields; NUL, which makes a file binary to grep.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


@dataclass(kw_only=True, eq=False, repr=False)
class Tokenizer:
    """A fixed vocabulary and how text is cut into it. Subclasses give ``_encode_text`` and ``_join``."""

    symbols: list[str]  # the vocabulary; a symbol's position is its id
    special: SpecialTokens
    starts_word: list[bool]  # whether each symbol begins a word, rather than continuing one
    settings: dict[str, object]  # what else fixes the tokenizer, its type first of all; JSON-serialisable
    content: str  # what stands behind the settings in a saved file
    indices: dict[str, int] = field(init=False)  # ids of the symbols

    def __post_init__(self) -> None:
        self.indices = {symbol: index for index, symbol in enumerate(self.symbols)}

    def saved(self) -> bytes:
        """What ``save`` writes."""
        return f"{HEADER}\n{json.dumps(self.settings, sort_keys=True)}\n{self.content}".encode()

    def fingerprint(self) -> str:
        """Give the SHA-256 (hex) of vocabulary and settings: equal exactly when all ids of all texts are."""
        return hashlib.sha256(self.saved()).hexdigest()

    def save(self, f: str | Path | TextIO) -> None:
        """Write what loads as an equal tokenizer: to a path, whose folder is made, or to an open text file."""
        if isinstance(f, str | Path):
            Path(f).parent.mkdir(parents=True, exist_ok=True)
            Path(f).write_bytes(self.saved())
        else:
            f.write(self.saved().decode("utf-8"))

    def encode(self, text: str) -> list[tuple[str, int]]:
        """Give text and id of every token; an unknown one has its text as it was given.

        Special tokens in *text* are plain text. Half characters become U+FFFD.
        """
        return self._encode_text(_SURROGATES.sub("\ufffd", text))

    def decode(self, ids: list[int], unknown: str | None = None, keep_sep: bool = False) -> str:
        """Give readable text on one line, without [PAD], [CLS] and, unless *keep_sep*, [SEP].

        *unknown* stands for an unknown token, which by default looks as the vocabulary writes it.
        """
        unknown = self.symbols[self.special.unk] if unknown is None else unknown
        dropped = {self.special.pad, self.special.cls} | (set() if keep_sep else {self.special.sep})
        return without_controls(self._join([index for index in ids if index not in dropped], unknown))

    def collapse_repeats(self, ids: list[int]) -> list[int]:
        """Positions, increasing, of what is left of a generated sequence without [SEP]s and directly repeated words.

        "the the cat" becomes "the cat", as in the authors' scoring. Words compare by their ids; marks that
        text doubles on purpose, as in "c++", stay.
        """
        words: list[list[int]] = []
        for position in self._without_sep(ids):
            if not words or self.starts_word[ids[position]]:
                words.append([])
            words[-1].append(position)
        kept: list[int] = []
        previous = None
        for word in words:
            current = [ids[position] for position in word]
            if current != previous or self.symbols[current[0]] in _DOUBLED:
                kept.extend(word)
            previous = current
        return kept

    def text_positions(self, ids: list[int], keep_repeats: bool) -> list[int]:
        """Positions of a generated sequence, not empty, that are its text: no [SEP] but a final one."""
        kept = self._without_sep(ids) if keep_repeats else self.collapse_repeats(ids)
        return [*kept, len(ids) - 1] if ids[-1] == self.special.sep else kept

    def _without_sep(self, ids: list[int]) -> list[int]:
        return [position for position, index in enumerate(ids) if index != self.special.sep]

    def _encode_text(self, text: str) -> list[tuple[str, int]]:
        raise NotImplementedError

    def _join(self, ids: list[int], unknown: str) -> str:
        raise NotImplementedError


@dataclass(kw_only=True, eq=False, repr=False)
class LibraryTokenizer(Tokenizer):
    """A tokenizer of the ``tokenizers`` library. White space at the end of a text is dropped."""

    backend: Any  # a tokenizers.Tokenizer, which cuts text into tokens
    ids: dict[str, int]  # of the backend's tokens; whatever is not in it is unknown
    pieces: list[str]  # what each id gives to join
    join: Callable[[list[str]], str]  # makes text of pieces; something that can be pickled

    def _encode_text(self, text: str) -> list[tuple[str, int]]:
        encoding = self.backend.encode(text.rstrip(), add_special_tokens=False)
        ids = [self.ids.get(token, self.special.unk) for token in encoding.tokens]
        return [
            (text[slice(*span)] if index == self.special.unk else token, index)
            for token, index, span in zip(encoding.tokens, ids, encoding.offsets)
        ]

    def _join(self, ids: list[int], unknown: str) -> str:
        return self.join([unknown if index == self.special.unk else self.pieces[index] for index in ids])


def never_text(symbol: str) -> bool:
    """Whether this is a token that stands for no text, going by its name."""
    return bool(_NEVER_TEXT.fullmatch(symbol))


def number_symbols(
    symbols: list[str], names: tuple[str, ...], source: str, needed: str, others: Collection[str] = ()
) -> tuple[dict[str, int], SpecialTokens]:
    """The id of each symbol, and those of the special *names*, in the order of ``SpecialTokens``, and of *others*.

    Raises:
        ValueError: a special one is missing, where *needed* is what to give instead; or one stands twice.
    """
    ids = {symbol: index for index, symbol in enumerate(symbols)}
    if missing := [name for name in names if name not in ids]:
        raise ValueError(f"{source} has no {', '.join(missing)}: {needed} is needed")
    if len(ids) != len(symbols):
        raise ValueError(f"{source} has {len(symbols)} tokens but only {len(ids)} different ones")
    further = (i for i, name in enumerate(symbols) if name not in names and (name in others or never_text(name)))
    pad, unk, cls, sep, mask = (ids[name] for name in names)
    return ids, SpecialTokens(pad, unk, cls, sep, mask, tuple(further))


def without_controls(text: str) -> str:
    """Put a space for each control character and line end: the result is a line that does nothing to a terminal."""
    return _CONTROLS.sub(" ", text)
