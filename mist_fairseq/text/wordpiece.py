"""BERT's tokenizer."""

import tokenizers
from tokenizers import models, normalizers, pre_tokenizers

from mist_fairseq.text.detokenize import join_words
from mist_fairseq.text.tokenizer import CLS, MASK, PAD, SEP, UNK, LibraryTokenizer, number_symbols

SPECIAL = (PAD, UNK, CLS, SEP, MASK)


def wordpiece_tokenizer(
    symbols: list[str],
    lowercase: bool = True,
    strip_accents: bool | None = None,
    tokenize_chinese_chars: bool = True,
    source: str = "vocab.txt",
) -> LibraryTokenizer:
    """Build BERT's tokenizer over the lines of a ``vocab.txt``, ids unchanged (Devlin et al. 2018).

    The settings are those of BERT's ``tokenizer_config.json``; ``strip_accents=None`` follows *lowercase*. *source* is
    what errors call the file.

    Raises:
        ValueError: a special token is missing, or a line stands twice.
    """
    needed = "a masked-LM vocabulary (BERT's vocab.txt, one token a line) or a SentencePiece model"
    ids, special = number_symbols(symbols, SPECIAL, source, needed)
    backend = tokenizers.Tokenizer(models.WordPiece(ids, unk_token=UNK, max_input_chars_per_word=100))
    # The slow BertTokenizer composes characters (NFC) before it looks at casing and accents.
    casing = {"lowercase": lowercase, "strip_accents": strip_accents}
    clean = normalizers.BertNormalizer(True, tokenize_chinese_chars, strip_accents=False, lowercase=False)
    fold = normalizers.BertNormalizer(clean_text=False, handle_chinese_chars=False, **casing)
    backend.normalizer = normalizers.Sequence([clean, normalizers.NFC(), fold])
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return LibraryTokenizer(
        backend=backend,
        ids=ids,
        pieces=symbols,
        join=join_pieces,
        symbols=symbols,
        special=special,
        starts_word=[not _continues(symbol) for symbol in symbols],
        settings={"type": "wordpiece", **casing, "tokenize_chinese_chars": tokenize_chinese_chars},
        content="".join(symbol + "\n" for symbol in symbols),
    )


def _continues(piece: str) -> bool:
    return piece.startswith("##") and len(piece) > 2


def join_pieces(pieces: list[str]) -> str:
    """Make text of pieces, of which those that go on with a word begin with ``##``."""
    words: list[str] = []
    for piece in pieces:
        if words and _continues(piece):
            words[-1] += piece[2:]
        else:
            words.append(piece)
    return join_words(words)
