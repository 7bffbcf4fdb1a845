"""fairseq dictionaries that are tokenizers: BERT's WordPiece, SentencePiece, and the byte-level BPE of BART.

fairseq turns text into ids only through ``Dictionary.encode_line`` and ids into text only through
``Dictionary.string``. A dictionary that owns its tokenizer therefore takes raw text in and gives readable text
out at every fairseq command.
"""

from typing import cast

import torch
from fairseq.data import Dictionary, data_utils

from mist_fairseq.text.byte_level_bpe import ByteLevelBPE
from mist_fairseq.text.files import load_tokenizer
from mist_fairseq.text.sentencepiece import SentencePiece
from mist_fairseq.text.tokenizer import CLS, MASK, PAD, SEP, UNK, Tokenizer
from mist_fairseq.text.wordpiece import WordPiece

__all__ = [
    "CLS",
    "MASK",
    "PAD",
    "SEP",
    "UNK",
    "ByteLevelBPEDictionary",
    "SentencePieceDictionary",
    "TokenizerDictionary",
    "WordPieceDictionary",
    "load_dictionary",
]


class TokenizerDictionary(Tokenizer, Dictionary):
    """A tokenizer behind fairseq's interface; ``bos`` is [CLS] and ``eos`` is [SEP]."""

    def __init__(self, symbols: list[str], special: dict[str, int], settings: dict):
        super().__init__(symbols, special, settings)
        self.count = [1] * len(symbols)
        self.pad_word, self.unk_word = symbols[self.pad_index], symbols[self.unk_index]
        self.bos_word, self.eos_word = symbols[self.bos_index], symbols[self.eos_index]
        self.nspecial = 0

    @property
    def tokenizer(self):
        return self

    def mask(self) -> int:
        """Id of [MASK]."""
        return self.mask_index

    def __eq__(self, other):
        return isinstance(other, TokenizerDictionary) and self._serialized() == other._serialized()

    def add_symbol(self, word, n=1, overwrite=False):
        """Return the id of *word*; the vocabulary is fixed, so an unknown one raises ValueError."""
        if word not in self.indices:
            raise ValueError(f"cannot add {word!r}: the vocabulary belongs to a tokenizer and does not grow")
        return self.indices[word]

    def encode_line(
        self,
        line,
        line_tokenizer=None,
        add_if_not_exist=True,
        consumer=None,
        append_eos=True,
        reverse_order=False,
    ) -> torch.Tensor:
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
            tokens.extend(self.encode(text))
        if consumer is not None:
            for token in tokens:
                consumer(*token)
        ids = [index for _, index in tokens]
        if reverse_order:
            ids.reverse()
        if append_eos:
            ids.append(self.eos_index)
        return torch.tensor(ids, dtype=torch.int32)

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
        text = self._one_line([int(i) for i in ids if int(i) not in ignored], unknown)
        return text if separator == " " else text.replace(" ", separator)


class WordPieceDictionary(WordPiece, TokenizerDictionary):
    """``WordPiece`` as a dictionary."""


class SentencePieceDictionary(SentencePiece, TokenizerDictionary):
    """``SentencePiece`` as a dictionary."""


class ByteLevelBPEDictionary(ByteLevelBPE, TokenizerDictionary):
    """``ByteLevelBPE`` as a dictionary."""


_DICTIONARIES = {"wordpiece": WordPieceDictionary, "sentencepiece": SentencePieceDictionary}
_DICTIONARIES["byte-level-bpe"] = ByteLevelBPEDictionary


def load_dictionary(filename: str) -> TokenizerDictionary:
    """Load a dictionary; files and errors as of ``data.files.load_tokenizer``."""
    return cast(TokenizerDictionary, load_tokenizer(filename, _DICTIONARIES))
