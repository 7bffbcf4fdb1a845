"""GPT-2's byte-level BPE, with the ids of fairseq's BART."""

import json

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from mist_fairseq.mist.config import SpecialTokens
from mist_fairseq.text.tokenizer import LibraryTokenizer, number_symbols

PAD, UNK, CLS, SEP, MASK = "<pad>", "<unk>", "<s>", "</s>", "<mask>"


def byte_level_bpe_tokenizer(
    symbols: list[str], encoder: dict[str, int], merges: list[str], source: str = "dict.txt"
) -> LibraryTokenizer:
    """Build GPT-2's byte-level BPE (Radford et al. 2019) under the ids of BART's ``dict.txt`` (Lewis et al. 2020).

    A symbol is GPT-2's number of a token, as a decimal string. ``<s>``, ``</s>``, ``<pad>``, ``<unk>`` and ``<mask>``
    serve as [CLS], [SEP], [PAD], [UNK] and [MASK]. Case, spaces and all characters of a text come back as they were,
    but control characters and line ends as spaces; white space at its end, or before a literal ``[SEP]``, is dropped.

    Args:
        symbols: fairseq's four special symbols, the tokens of ``dict.txt`` and ``<mask>``.
        encoder: the text of a token, one character a byte as GPT-2 writes it -> GPT-2's number (``encoder.json``).
        merges: pairs joined by a space, the first merged first (``vocab.bpe`` without its first line).
        source: what errors call the file.

    Raises:
        ValueError: a special symbol or byte is missing, a token or number stands twice, or a merge makes no token.
    """
    ids = number_symbols(symbols, (CLS, PAD, SEP, UNK, MASK), source, "BART's dict.txt")
    character_of = byte_characters()
    if len({number for number in encoder.values() if type(number) is int and 0 <= number < 2**32}) < len(encoder):
        raise ValueError(f"encoder.json of {source} has a token without a number of its own")
    if absent := sorted(set(character_of.values()) - encoder.keys()):
        missing = f"no token for {len(absent)} of the 256 bytes, such as {absent[0]!r}"
        raise ValueError(f"encoder.json of {source} has {missing}: GPT-2's is needed")
    pairs = [tuple(merge.split(" ")) for merge in merges]
    for pair in pairs:
        if len(pair) != 2 or not encoder.keys() >= {*pair, "".join(pair)}:
            raise ValueError(f"vocab.bpe of {source} merges {' '.join(pair)!r}, which encoder.json does not know")
    backend = tokenizers.Tokenizer(models.BPE(encoder, pairs))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    text_of = {str(number): text for text, number in encoder.items()}
    spelled = ("".join(character_of[byte] for byte in symbol.encode("utf-8")) for symbol in symbols)
    return LibraryTokenizer(
        backend=backend,
        ids={text: ids[str(number)] for text, number in encoder.items() if str(number) in ids},
        pieces=[text_of.get(symbol, spelling) for symbol, spelling in zip(symbols, spelled)],
        join=_join,
        symbols=symbols,
        special=SpecialTokens(ids[PAD], ids[UNK], ids[CLS], ids[SEP], ids[MASK]),
        starts_word=[symbol not in text_of or text_of[symbol].startswith(character_of[ord(" ")]) for symbol in symbols],
        settings={"type": "byte-level-bpe"},
        content=json.dumps({"symbols": symbols, "encoder": encoder, "merges": merges}, sort_keys=True) + "\n",
    )


def byte_characters() -> dict[int, str]:
    """GPT-2's character for each byte: itself where that shows, else one of those from U+0100 on."""
    shown = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {byte: chr(byte) for byte in shown} | {byte: chr(256 + n) for n, byte in enumerate(hidden)}


def _join(pieces: list[str]) -> str:
    text: str = decoders.ByteLevel().decode(pieces)  # half a character becomes U+FFFD
    return text
