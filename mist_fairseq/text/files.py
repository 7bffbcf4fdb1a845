"""The files that tokenizers come in. Needs neither torch nor fairseq, but for BART's own ``dict.txt``."""

import base64
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from mist_fairseq.files.reading import read_json
from mist_fairseq.text.byte_level_bpe import SPECIAL, ByteLevelBPE
from mist_fairseq.text.sentencepiece import SentencePiece
from mist_fairseq.text.tokenizer import HEADER, MASK, Tokenizer, lines_of
from mist_fairseq.text.wordpiece import WordPiece

TOKENIZERS: dict[str, Callable[..., Tokenizer]] = {
    "wordpiece": WordPiece,
    "sentencepiece": SentencePiece,
    "byte-level-bpe": ByteLevelBPE,
}

_NUMBER_AND_COUNT = re.compile(r"\d+ \d+\n")


def load_tokenizer(filename: str, kinds: Mapping[str, Callable[..., Tokenizer]] = TOKENIZERS) -> Tokenizer:
    """Load a saved ``dict.*.txt``, a BERT ``vocab.txt``, a SentencePiece model or BART's ``dict.txt``, by content.

    A ``vocab.txt`` takes its casing from the ``tokenizer_config.json`` beside it, lower-case without one. BART's
    ``dict.txt`` needs GPT-2's ``encoder.json`` and ``vocab.bpe`` beside it.

    Args:
        filename: where it is.
        kinds: classes to make of each kind.

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
        return kinds["sentencepiece"](data, source=str(path))
    if text.startswith(HEADER + "\n"):
        return _load_saved(text, kinds, str(path))
    if _NUMBER_AND_COUNT.match(text):
        return kinds["byte-level-bpe"](*_read_bart(path), source=str(path))
    settings = _read_settings(path.with_name("tokenizer_config.json"))
    return kinds["wordpiece"](
        lines_of(text),
        lowercase=settings["do_lower_case"],
        strip_accents=settings["strip_accents"],
        tokenize_chinese_chars=settings["tokenize_chinese_chars"],
        source=str(path),
    )


def _read_settings(config: Path) -> dict[str, bool | None]:
    """What a ``tokenizer_config.json`` says about casing and the like, or the defaults where it says nothing."""
    settings = {"do_lower_case": True, "strip_accents": None, "tokenize_chinese_chars": True}
    given = read_json(config) if config.is_file() else {}
    if not isinstance(given, dict):
        raise ValueError(f"{config} is a {type(given).__name__}, expected an object with settings")
    for name, default in settings.items():
        value = given.get(name, default)
        if value is not default and not isinstance(value, bool):
            raise ValueError(f"{config}: {name} is {value!r:.60}, expected true or false")
        settings[name] = value
    return settings


def _load_saved(text: str, kinds: Mapping[str, Callable[..., Tokenizer]], source: str) -> Tokenizer:
    try:
        _, settings, payload = text.split("\n", 2)
        settings = json.loads(settings)
        kind = settings.pop("type")
        if kind == "wordpiece":
            # Not lines_of: a vocabulary may have a symbol that ends in a carriage return.
            return kinds[kind](payload.removesuffix("\n").split("\n"), source=source, **settings)
        if kind == "sentencepiece":
            return kinds[kind](base64.b64decode(payload), source=source)
        if kind == "byte-level-bpe":
            return kinds[kind](**json.loads(payload), source=source)
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
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
    except (RuntimeError, ValueError) as error:  # a token stands twice, or a line is no token with its count
        raise ValueError(f"{path}: {error}") from error
    if SPECIAL[MASK] not in symbols:
        symbols.append(SPECIAL[MASK])
    tokens = read_json(encoder)
    if not isinstance(tokens, dict):
        raise ValueError(f"{encoder} is a {type(tokens).__name__}, expected an object of tokens with their numbers")
    try:
        return symbols, tokens, lines_of(merges.read_text(encoding="utf-8"))[1:]
    except UnicodeDecodeError as error:
        raise ValueError(f"{merges} is not UTF-8: {error}") from error
