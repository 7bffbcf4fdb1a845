"""GPT-2's byte-level BPE, with the ids of fairseq's BART."""

import json

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from mist_fairseq.text.tokenizer import LibraryTokenizer, never_text, number_symbols

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
        source: the file, for errors: ValueError if something is missing or stands twice, or a merge makes no token.
    """
    others = {str(number) for text, number in encoder.items() if never_text(text)}
    ids, special = number_symbols(symbols, (PAD, UNK, CLS, SEP, MASK), source, "BART's dict.txt", others)
    if len({number for number in encoder.values() if type(number) is int and 0 <= number < 2**32}) < len(encoder):
        raise ValueError(f"encoder.json of {source} has a token without a number of its own")
    if absent := sorted(set(pre_tokenizers.ByteLevel.alphabet()) - encoder.keys()):
        missing = f"no token for {len(absent)} of the 256 bytes, such as {absent[0]!r}"
        raise ValueError(f"encoder.json of {source} has {missing}: GPT-2's is needed")
    pairs = [tuple(merge.split(" ")) for merge in merges]
    for pair in pairs:
        if len(pair) != 2 or not encoder.keys() >= {*pair, "".join(pair)}:
            raise ValueError(f"vocab.bpe of {source} merges {' '.join(pair)!r}, which encoder.json does not know")
    backend = tokenizers.Tokenizer(models.BPE(encoder, pairs))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    text_of = {str(number): text for text, number in encoder.items()}
    pieces = [text_of[symbol] if symbol in text_of else spelled(symbol) for symbol in symbols]
    space = spelled(" ")
    return LibraryTokenizer(
        backend=backend,
        ids={text: ids[str(number)] for text, number in encoder.items() if str(number) in ids},
        pieces=pieces,
        join=decoders.ByteLevel().decode,  # half a character becomes U+FFFD
        symbols=symbols,
        special=special,
        starts_word=[symbol not in text_of or piece.startswith(space) for symbol, piece in zip(symbols, pieces)],
        settings={"type": "byte-level-bpe"},
        content=json.dumps({"symbols": symbols, "encoder": encoder, "merges": merges}, sort_keys=True) + "\n",
    )


def spelled(text: str) -> str:
    """A text with GPT-2's character for each of its bytes."""
    spelling = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
    return "".join(characters for characters, _ in spelling)
