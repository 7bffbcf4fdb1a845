"""GPT-2's byte-level BPE, with the ids of fairseq's BART."""

import json

import tokenizers
from tokenizers import models, pre_tokenizers

from mist_fairseq.text.tokenizer import CLS, MASK, PAD, SEP, UNK, Tokenizer

SPECIAL = {CLS: "<s>", PAD: "<pad>", SEP: "</s>", UNK: "<unk>", MASK: "<mask>"}


class ByteLevelBPE(Tokenizer):
    """GPT-2's byte-level BPE (Radford et al. 2019) under the ids of BART's ``dict.txt`` (Lewis et al. 2020).

    A symbol is GPT-2's number of a token, as a decimal string. ``<s>``, ``</s>``, ``<pad>``, ``<unk>`` and ``<mask>``
    serve as [CLS], [SEP], [PAD], [UNK] and [MASK]. Case, spaces and all characters of a text come back as they were,
    but control characters and line ends as spaces; white space at its end, or before a literal ``[SEP]``, is dropped.

    Args:
        symbols: fairseq's four special symbols, the tokens of ``dict.txt`` and ``<mask>``.
        encoder: the text of a token, one character a byte as GPT-2 writes it -> GPT-2's number (``encoder.json``).
        merges: pairs joined by a space, the first merged first (``vocab.bpe`` without its first line).

    Raises:
        ValueError: a special symbol or a byte is missing, two tokens are or have the same number, or a merge makes no
            token.
    """

    def __init__(self, symbols: list[str], encoder: dict[str, int], merges: list[str], source: str = "dict.txt"):
        missing = [name for name in SPECIAL.values() if name not in symbols]
        if missing:
            raise ValueError(f"{source} has no {', '.join(missing)}: BART's dict.txt is needed")
        byte_of = {char: byte for byte, char in _byte_characters().items()}
        for text, number in encoder.items():
            if type(number) is not int or not 0 <= number < 2**32 or not byte_of.keys() >= set(text):
                raise ValueError(
                    f"encoder.json of {source} has {text!r}: {number!r}, expected characters of GPT-2's: a number"
                )
        if len(set(encoder.values())) < len(encoder):  # of whose texts one would be taken, now this and now that
            raise ValueError(f"encoder.json of {source} has a number twice")
        if absent := sorted(byte_of.keys() - encoder.keys()):
            raise ValueError(
                f"encoder.json of {source} has no token for {len(absent)} of the 256 bytes, such as {absent[0]!r}: "
                "GPT-2's is needed"
            )
        pairs = [tuple(merge.split(" ")) for merge in merges]
        for pair in pairs:
            if len(pair) != 2 or not encoder.keys() >= {*pair, "".join(pair)}:
                raise ValueError(f"vocab.bpe of {source} merges {' '.join(pair)!r}, which encoder.json does not know")
        super().__init__(
            symbols, {name: symbols.index(symbol) for name, symbol in SPECIAL.items()}, {"type": "byte-level-bpe"}
        )
        if len(self.indices) != len(symbols):
            raise ValueError(f"{source} has {len(symbols)} tokens but only {len(self.indices)} different ones")
        self._encoder, self._merges = encoder, merges
        self._library = tokenizers.Tokenizer(models.BPE(encoder, pairs))
        self._library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        text_of = {str(number): bytes(byte_of[char] for char in text) for text, number in encoder.items()}
        self._bytes = [text_of.get(symbol, symbol.encode("utf-8")) for symbol in symbols]
        self._starts = [symbol not in text_of or text_of[symbol].startswith(b" ") for symbol in symbols]

    def _encode_text(self, text):
        encoding = self._library.encode(text.rstrip(), add_special_tokens=False)
        return [
            (token, self.indices.get(str(number), self.unk_index))
            for token, number in zip(encoding.tokens, encoding.ids)
        ]

    def _detokenize(self, ids, unknown):
        pieces = [unknown.encode("utf-8") if index == self.unk_index else self._bytes[index] for index in ids]
        return b"".join(pieces).decode("utf-8", errors="replace")

    def starts_word(self, index):
        """Whether the token begins with a space."""
        return self._starts[index]

    def _payload(self):
        content = {"symbols": self.symbols, "encoder": self._encoder, "merges": self._merges}
        return json.dumps(content, sort_keys=True) + "\n"


def _byte_characters() -> dict[int, str]:
    """GPT-2's character for each byte: itself where that shows, else one of those from U+0100 on."""
    shown = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {byte: chr(byte) for byte in shown} | {byte: chr(256 + n) for n, byte in enumerate(hidden)}
