"""What all tokenizers share: raw text to ids and back, over a fixed vocabulary. Needs neither torch nor fairseq.

``mist_fairseq.data.dictionary`` makes fairseq dictionaries of them, ``mist_fairseq.text.files`` loads their files.
"""

import hashlib
import json
import os
import re
from pathlib import Path

PAD, UNK, CLS, SEP, MASK = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"

# First line of a saved dictionary, followed by one line of JSON settings and the vocabulary itself.
HEADER = "#mist_fairseq dictionary 1"

# Doubled on purpose in English text and code ("c++", "--", "``", "''"): never a repeated word.
_DOUBLED = frozenset("+-'`/*=")

_SURROGATES = re.compile("[\ud800-\udfff]")  # halves of characters, which have no UTF-8

# No end of a line to any reader, no tab that would part fields, no NUL for which grep takes a file to be binary.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class Tokenizer:
    """A fixed vocabulary and how text is cut into it.

    Subclasses give ``_encode_text``, ``_detokenize``, ``starts_word`` and ``_payload``.

    Args:
        symbols: the vocabulary; a symbol's position is its id.
        special: ids of [PAD], [UNK], [CLS], [SEP] and [MASK], by these names.
        settings: what besides the vocabulary fixes the tokenizer; JSON-serialisable.
    """

    def __init__(self, symbols: list[str], special: dict[str, int], settings: dict):
        self.symbols = symbols
        self.indices = {symbol: index for index, symbol in enumerate(symbols)}
        self.pad_index, self.unk_index = special[PAD], special[UNK]
        self.bos_index, self.eos_index, self.mask_index = special[CLS], special[SEP], special[MASK]
        self.settings = settings

    @property
    def special(self):
        from mist_fairseq.mist.config import SpecialTokens

        return SpecialTokens(self.pad_index, self.unk_index, self.bos_index, self.eos_index, self.mask_index)

    def never_predicted(self) -> list[int]:
        """Ids that no target contains: [PAD], [CLS] and [MASK]."""
        return [self.pad_index, self.bos_index, self.mask_index]

    # -- identity and files ---------------------------------------------------------------------------------

    def _serialized(self) -> str:
        settings = json.dumps(self.settings, sort_keys=True)
        return f"{HEADER}\n{settings}\n{self._payload()}"

    def fingerprint(self) -> str:
        """SHA-256 (hex) over vocabulary and settings: equal exactly when all ids of all texts are."""
        return hashlib.sha256(self._serialized().encode("utf-8")).hexdigest()

    def save(self, f):
        """Write a file that loads as an equal tokenizer.

        Args:
            f: a path, or a text file open for writing.
        """
        if isinstance(f, (str, os.PathLike)):
            Path(f).parent.mkdir(parents=True, exist_ok=True)
            Path(f).write_bytes(self._serialized().encode("utf-8"))
        else:
            f.write(self._serialized())

    # -- text to ids and back -------------------------------------------------------------------------------

    def encode(self, text: str) -> list[tuple[str, int]]:
        """Text and id of every token; special tokens in *text* are plain text. Half characters become U+FFFD."""
        return self._encode_text(_SURROGATES.sub("\ufffd", text))

    def decode(self, ids: list[int], unknown: str | None = None) -> str:
        """Readable text on one line, without special tokens.

        Args:
            ids: of tokens.
            unknown: stands for an unknown token, by default as the vocabulary writes it.
        """
        unknown = self.symbols[self.unk_index] if unknown is None else unknown
        ignored = {self.pad_index, self.bos_index, self.eos_index}
        return self._one_line([index for index in ids if index not in ignored], unknown)

    def _one_line(self, ids: list[int], unknown: str) -> str:
        """The text of ids, in which a vocabulary may have control characters and line ends."""
        return without_controls(self._detokenize(ids, unknown))

    def collapse_repeats(self, ids: list[int]) -> list[int]:
        """Positions that are left when [SEP]s and directly repeated words are dropped.

        "the the cat" becomes "the cat", as in the authors' scoring. Words compare by their ids; marks that
        text doubles on purpose, as in "c++", stay.

        Args:
            ids: a generated sequence.

        Returns:
            Increasing positions into *ids*.
        """
        words: list[list[int]] = []
        for position, index in enumerate(ids):
            if index == self.eos_index:
                continue
            if not words or self.starts_word(index):
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
        """Positions of a generated sequence that are its text: no [SEP] but a final one.

        Args:
            ids: not empty.
            keep_repeats: leave directly repeated words.
        """
        if keep_repeats:
            kept = [position for position, index in enumerate(ids) if index != self.eos_index]
        else:
            kept = self.collapse_repeats(ids)
        return [*kept, len(ids) - 1] if ids[-1] == self.eos_index else kept

    # -- given by the subclasses ----------------------------------------------------------------------------

    def _encode_text(self, text: str) -> list[tuple[str, int]]:
        raise NotImplementedError

    def _detokenize(self, ids: list[int], unknown: str) -> str:
        raise NotImplementedError

    def starts_word(self, index: int) -> bool:
        """Whether the token begins a word, rather than continuing one."""
        raise NotImplementedError

    def _payload(self) -> str:
        raise NotImplementedError


def without_controls(text: str) -> str:
    """A text with a space for each control character and line end: a line that does nothing to a terminal."""
    return _CONTROLS.sub(" ", text)


def lines_of(text: str) -> list[str]:
    """The lines of a file, ended by line feeds or by carriage returns and line feeds."""
    lines = text.replace("\r\n", "\n").split("\n")
    return lines[:-1] if lines[-1] == "" else lines
