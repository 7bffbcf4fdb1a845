"""The files that tokenizers come in. Needs neither torch nor fairseq, but for BART's own ``dict.txt``."""

import base64
import json
import re
from pathlib import Path

from mist_fairseq.data.byte_level_bpe import SPECIAL, ByteLevelBPE
from mist_fairseq.data.sentencepiece import SentencePiece
from mist_fairseq.data.tokenizer import HEADER, MASK, Tokenizer, lines_of
from mist_fairseq.data.wordpiece import WordPiece
from mist_fairseq.output import read_json

TOKENIZERS = {"wordpiece": WordPiece, "sentencepiece": SentencePiece, "byte-level-bpe": ByteLevelBPE}

_NUMBER_AND_COUNT = re.compile(r"\d+ \d+\n")


def load_tokenizer(filename: str, kinds: dict[str, type[Tokenizer]] | None = None) -> Tokenizer:
    """Load a saved ``dict.*.txt``, a BERT ``vocab.txt``, a SentencePiece model or BART's ``dict.txt``, by content.

    A ``vocab.txt`` takes its casing from the ``tokenizer_config.json`` beside it, lower-case without one. BART's
    ``dict.txt`` needs GPT-2's ``encoder.json`` and ``vocab.bpe`` beside it.

    Args:
        filename: where it is.
        kinds: classes to make of each kind, by default those of ``TOKENIZERS``.

    Raises:
        FileNotFoundError: there is no such file, or none beside it that it needs.
        ValueError: the file is none of the four; says what was found.
    """
    kinds = kinds or TOKENIZERS
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
        return kinds["sentencepiece"](data, source=str(path))
    if text.startswith(HEADER + "\n"):
        return _load_saved(text, kinds, str(path))
    if _NUMBER_AND_COUNT.match(text):
        return kinds["byte-level-bpe"](*_read_bart(path), source=str(path))
    settings = {}
    config = path.with_name("tokenizer_config.json")
    if config.is_file():
        settings = read_json(config)
    return kinds["wordpiece"](
        lines_of(text),
        lowercase=settings.get("do_lower_case", True),
        strip_accents=settings.get("strip_accents"),
        tokenize_chinese_chars=settings.get("tokenize_chinese_chars", True),
        source=str(path),
    )


def _load_saved(text: str, kinds: dict[str, type[Tokenizer]], source: str) -> Tokenizer:
    try:
        _, settings, payload = text.split("\n", 2)
        settings = json.loads(settings)
        kind = settings.pop("type")
        if kind == "wordpiece":
            return kinds[kind](lines_of(payload), source=source, **settings)
        if kind == "sentencepiece":
            return kinds[kind](base64.b64decode(payload), source=source)
        if kind == "byte-level-bpe":
            return kinds[kind](**json.loads(payload), source=source)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{source} is damaged: run fairseq-preprocess or the export again ({error})") from error
    raise ValueError(f"{source} holds a dictionary of unknown type {kind!r}")


def _read_bart(path: Path) -> tuple[list[str], dict[str, int], list[str]]:
    """Symbols, encoder and merges of BART's ``dict.txt`` with GPT-2's two files beside it.

    ``<mask>`` stands behind the lines of ``dict.txt``, where fairseq's denoising task puts it: the embeddings of a
    released ``model.pt`` have a row for it (bart.base: 4 + 51,196 + 1).
    """
    from fairseq.data import Dictionary

    encoder, merges = path.with_name("encoder.json"), path.with_name("vocab.bpe")
    missing = [file.name for file in (encoder, merges) if not file.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{path} is BART's dictionary, whose tokens are numbers of GPT-2's BPE: put GPT-2's "
            f"{' and '.join(missing)} beside it (fairseq's gpt2_bpe folder)"
        )
    try:
        symbols = Dictionary.load(str(path)).symbols
    except RuntimeError as error:  # a token stands twice
        raise ValueError(f"{path}: {error}") from error
    if SPECIAL[MASK] not in symbols:
        symbols.append(SPECIAL[MASK])
    tokens = read_json(encoder)
    return symbols, tokens, lines_of(merges.read_text(encoding="utf-8"))[1:]
