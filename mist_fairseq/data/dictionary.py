"""fairseq dictionaries that have a tokenizer: any of ``mist_fairseq.text.tokenizer_files.load_tokenizer``.

fairseq turns text into ids only by ``Dictionary.encode_line`` and ids into text only by ``Dictionary.string``, so with
such a dictionary every fairseq command takes raw text in and gives readable text out.
"""

from pathlib import Path

import torch
from fairseq.data import Dictionary, data_utils

from mist_fairseq.text.tokenizer import SEP, Tokenizer
from mist_fairseq.text.tokenizer_files import load_tokenizer


class TokenizerDictionary(Dictionary):
    """A tokenizer behind fairseq's interface; ``bos`` is [CLS] and ``eos`` is [SEP]."""

    def __init__(self, tokenizer: Tokenizer):
        symbols, special = tokenizer.symbols, tokenizer.special
        words = dict(bos=special.cls, pad=special.pad, eos=special.sep, unk=special.unk)
        super().__init__(**{name: symbols[index] for name, index in words.items()}, add_special_symbols=False)
        self.tokenizer = tokenizer
        self.symbols, self.indices, self.count = symbols, tokenizer.indices, [1] * len(symbols)
        self.bos_index, self.pad_index, self.eos_index, self.unk_index = words.values()
        self.nspecial = 0

    def mask(self) -> int:
        """Id of [MASK]."""
        return self.tokenizer.special.mask

    def save(self, f):
        """As of ``Tokenizer``."""
        self.tokenizer.save(f)

    def __eq__(self, other):
        return isinstance(other, TokenizerDictionary) and self.tokenizer.fingerprint() == other.tokenizer.fingerprint()

    def add_symbol(self, word, n=1, overwrite=False):
        """Return the id of *word*; the vocabulary is fixed, so an unknown one raises ValueError."""
        if word not in self.indices:
            raise ValueError(f"cannot add {word!r}: the vocabulary belongs to a tokenizer and does not grow")
        return self.indices[word]

    def encode_line(
        self, line, line_tokenizer=None, add_if_not_exist=True, consumer=None, append_eos=True, reverse_order=False
    ) -> torch.Tensor:
        """Tokenize a line of raw text; the ids are an IntTensor, *Shape:* (number of tokens + append_eos).

        A literal ``[SEP]`` is the special token; other literal specials are plain text. fairseq's arguments keep their
        meaning, but for *line_tokenizer* and *add_if_not_exist*, which have no effect. *consumer* is called with (text,
        id) of every token, an unknown one's text being the original.
        """
        tokens: list[tuple[str, int]] = []
        for text in line.split(SEP):
            tokens += [*self.tokenizer.encode(text), (SEP, self.eos())]
        tokens.pop()  # behind the last text
        if consumer is not None:
            for token in tokens:
                consumer(*token)
        ids = [index for _, index in tokens]
        if reverse_order:
            ids.reverse()
        if append_eos:
            ids.append(self.eos())
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
        """Give readable text of ids, *Shape:* (T), or of (B, T) as B lines; a list of ids will do.

        fairseq's arguments keep their meaning: *escape_unk* writes an unknown token as ``<[UNK]>``, *unk_string* as
        that. Pieces are joined whichever *bpe_symbol* is given. [PAD] and [CLS] are left out, [SEP] unless
        *include_eos*, and *extra_symbols_to_ignore*.
        """
        if torch.is_tensor(tensor) and tensor.dim() == 2:
            arguments = (bpe_symbol, escape_unk, extra_symbols_to_ignore, unk_string, include_eos, separator)
            return "\n".join(self.string(row, *arguments) for row in tensor)
        data_utils.post_process("", bpe_symbol)  # refuses names that fairseq does not know
        ignored = set(extra_symbols_to_ignore or ())
        ids = tensor.tolist() if torch.is_tensor(tensor) else map(int, tensor)
        unknown = self.unk_string(escape_unk) if unk_string is None else unk_string
        text = self.tokenizer.decode([index for index in ids if index not in ignored], unknown, keep_sep=include_eos)
        return text if separator == " " else text.replace(" ", separator)


def load_dictionary(filename: str) -> TokenizerDictionary:
    """Load a dictionary; files, folders and errors as of ``load_tokenizer``, or of a name on the Hugging Face hub.

    A name is what could be one, has no file's ending and is not there.
    """
    path = Path(filename)
    if not path.exists() and path.suffix not in (".txt", ".json", ".model"):
        from mist_fairseq.pretrained import hub

        if hub.may_be_name(filename):
            filename = hub.local_folder(filename, ["config.json", *hub.TOKENIZER])
    return TokenizerDictionary(load_tokenizer(filename))
