"""Dictionaries that are tokenizers: BERT's WordPiece, SentencePiece, and the byte-level BPE of BART.

``load_dictionary`` reads the files that a pre-trained model comes with, or the self-contained ``dict.*.txt`` that
``save`` writes from them.
"""

import base64
import json
import re
from pathlib import Path

from mist_fairseq.data.byte_level_bpe import ByteLevelBPEDictionary, read_bart
from mist_fairseq.data.sentencepiece import SentencePieceDictionary
from mist_fairseq.data.tokenizer_dictionary import CLS, HEADER, MASK, PAD, SEP, UNK, TokenizerDictionary, lines_of
from mist_fairseq.data.wordpiece import WordPieceDictionary

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

_NUMBER_AND_COUNT = re.compile(r"\d+ \d+\n")


def load_dictionary(filename: str) -> TokenizerDictionary:
    """Load a saved ``dict.*.txt``, a BERT ``vocab.txt``, a SentencePiece model or BART's ``dict.txt``, by content.

    A ``vocab.txt`` takes its casing from the ``tokenizer_config.json`` beside it, lower-case without one. BART's
    ``dict.txt`` needs GPT-2's ``encoder.json`` and ``vocab.bpe`` beside it.

    Raises:
        FileNotFoundError: there is no such file, or none beside it that it needs.
        ValueError: the file is none of the four; says what was found.
    """
    path = Path(filename)
    if not path.is_file():
        raise FileNotFoundError(
            f"no dictionary at {path}: give a BERT vocab.txt, a SentencePiece model or BART's dict.txt"
        )
    data = path.read_bytes()
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        text = None
    if path.suffix == ".model" or text is None or "\0" in text:
        return SentencePieceDictionary(data, source=str(path))
    if text.startswith(HEADER + "\n"):
        return _load_saved(text, str(path))
    if _NUMBER_AND_COUNT.match(text):
        return read_bart(path)
    settings = {}
    config = path.with_name("tokenizer_config.json")
    if config.is_file():
        try:
            settings = json.loads(config.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{config} is not JSON: {error}") from error
    return WordPieceDictionary(
        lines_of(text),
        lowercase=settings.get("do_lower_case", True),
        strip_accents=settings.get("strip_accents"),
        tokenize_chinese_chars=settings.get("tokenize_chinese_chars", True),
        source=str(path),
    )


def _load_saved(text: str, source: str) -> TokenizerDictionary:
    try:
        _, settings, payload = text.split("\n", 2)
        settings = json.loads(settings)
        kind = settings.pop("type")
        if kind == "wordpiece":
            return WordPieceDictionary(lines_of(payload), source=source, **settings)
        if kind == "sentencepiece":
            return SentencePieceDictionary(base64.b64decode(payload), source=source)
        if kind == "byte-level-bpe":
            return ByteLevelBPEDictionary(**json.loads(payload), source=source)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{source} is damaged: run fairseq-preprocess again ({error})") from error
    raise ValueError(f"{source} holds a dictionary of unknown type {kind!r}")
