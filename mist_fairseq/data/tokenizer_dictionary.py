"""What all dictionaries share that are tokenizers; ``mist_fairseq.data.dictionary`` loads them.

fairseq turns text into ids only through ``Dictionary.encode_line`` and ids into text only through
``Dictionary.string``. A dictionary that owns its tokenizer therefore takes raw text in and gives readable text
out at every fairseq command.
"""

import hashlib
import json
import os
from pathlib import Path

import torch
from fairseq.data import Dictionary, data_utils

PAD, UNK, CLS, SEP, MASK = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"

# First line of a saved dictionary, followed by one line of JSON settings and the vocabulary itself.
HEADER = "#mist_fairseq dictionary 1"

# Doubled on purpose in English text and code ("c++", "--", "``", "''"): never a repeated word.
_DOUBLED = frozenset("+-'`/*=")


class TokenizerDictionary(Dictionary):
    """A fixed vocabulary with its own tokenizer; ``bos`` is [CLS] and ``eos`` is [SEP].

    Subclasses give ``_encode_text``, ``_detokenize``, ``starts_word`` and ``_payload``.

    Args:
        symbols: the vocabulary; a symbol's position is its id.
        special: ids of [PAD], [UNK], [CLS], [SEP] and [MASK], by these names.
        settings: what besides the vocabulary fixes the tokenizer; JSON-serialisable.
    """

    def __init__(self, symbols: list[str], special: dict[str, int], settings: dict):
        self.symbols = symbols
        self.count = [1] * len(symbols)
        self.indices = {symbol: index for index, symbol in enumerate(symbols)}
        self.pad_index, self.unk_index = special[PAD], special[UNK]
        self.bos_index, self.eos_index, self.mask_index = special[CLS], special[SEP], special[MASK]
        self.pad_word, self.unk_word = symbols[self.pad_index], symbols[self.unk_index]
        self.bos_word, self.eos_word = symbols[self.bos_index], symbols[self.eos_index]
        self.nspecial = 0
        self.settings = settings

    def mask(self) -> int:
        """Id of [MASK]."""
        return self.mask_index

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

    def __eq__(self, other):
        return isinstance(other, TokenizerDictionary) and self._serialized() == other._serialized()

    def save(self, f):
        """Write a file that ``load_dictionary`` turns back into an equal dictionary.

        Args:
            f: a path, or a text file open for writing.
        """
        if isinstance(f, (str, os.PathLike)):
            Path(f).parent.mkdir(parents=True, exist_ok=True)
            Path(f).write_bytes(self._serialized().encode("utf-8"))
        else:
            f.write(self._serialized())

    def add_symbol(self, word, n=1, overwrite=False):
        """Return the id of *word*; the vocabulary is fixed, so an unknown one raises ValueError."""
        if word not in self.indices:
            raise ValueError(f"cannot add {word!r}: the vocabulary belongs to a tokenizer and does not grow")
        return self.indices[word]

    # -- text to ids ----------------------------------------------------------------------------------------

    def encode_line(
        self,
        line,
        line_tokenizer=None,
        add_if_not_exist=True,
        consumer=None,
        append_eos=True,
        reverse_order=False,
    ) -> torch.IntTensor:
        """Tokenize raw text. A literal ``[SEP]`` is the special token; other literal specials are plain text.

        Args:
            line: one line of raw text.
            line_tokenizer, add_if_not_exist: part of fairseq's signature, without effect: the dictionary is
                the tokenizer and never grows.
            consumer: called with (text, id) of every token; an unknown token's text is the original word.
            append_eos: end with [SEP].
            reverse_order: reverse the tokens before [SEP] is appended.

        Returns:
            IntTensor of ids, *Shape:* (number of tokens + append_eos).
        """
        tokens = []
        for i, text in enumerate(line.split(SEP)):
            if i > 0:
                tokens.append((SEP, self.eos_index))
            tokens.extend(self._encode_text(text))
        if consumer is not None:
            for token in tokens:
                consumer(*token)
        ids = [index for _, index in tokens]
        if reverse_order:
            ids.reverse()
        if append_eos:
            ids.append(self.eos_index)
        return torch.tensor(ids, dtype=torch.int32)

    # -- ids to text ----------------------------------------------------------------------------------------

    def string(
        self,
        tensor,
        bpe_symbol=None,
        escape_unk=False,
        extra_symbols_to_ignore=None,
        unk_string=None,
        include_eos=False,
        separator=" ",
    ) -> str:
        """Readable text from ids. fairseq's arguments keep their meaning.

        Args:
            tensor: ids, *Shape:* (T), or (B, T) for B lines joined by newlines; a list of ids will do.
            bpe_symbol: any of fairseq's ``--post-process`` names; pieces are joined whichever is given.
            escape_unk: write the unknown token as ``<[UNK]>``, so that it matches no hypothesis.
            extra_symbols_to_ignore: ids to leave out beside [PAD], [CLS] and [SEP].
            unk_string: text for the unknown token.
            include_eos: keep [SEP].
            separator: stands between words.
        """
        if torch.is_tensor(tensor) and tensor.dim() == 2:
            arguments = (bpe_symbol, escape_unk, extra_symbols_to_ignore, unk_string, include_eos, separator)
            return "\n".join(self.string(row, *arguments) for row in tensor)
        data_utils.post_process("", bpe_symbol)  # refuses names that fairseq does not know
        ignored = {self.pad_index, self.bos_index, *(extra_symbols_to_ignore or ())}
        if not include_eos:
            ignored.add(self.eos_index)
        ids = tensor.tolist() if torch.is_tensor(tensor) else tensor
        unknown = unk_string if unk_string is not None else self.unk_string(escape_unk)
        text = self._detokenize([int(i) for i in ids if int(i) not in ignored], unknown)
        return text if separator == " " else text.replace(" ", separator)

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


def lines_of(text: str) -> list[str]:
    """The lines of a file, ended by line feeds or by carriage returns and line feeds."""
    lines = text.replace("\r\n", "\n").split("\n")
    return lines[:-1] if lines[-1] == "" else lines
