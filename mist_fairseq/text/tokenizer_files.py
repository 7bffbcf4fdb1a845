"""The files that tokenizers come in."""

import base64
import json
import re
from operator import itemgetter
from pathlib import Path
from typing import Any

from mist_fairseq.files.reading import read_json
from mist_fairseq.text.byte_level_bpe import CLS, MASK, PAD, SEP, UNK, byte_level_bpe_tokenizer
from mist_fairseq.text.lines import lines_of_file
from mist_fairseq.text.sentencepiece_tokenizer import sentencepiece_tokenizer
from mist_fairseq.text.tokenizer import HEADER, Tokenizer
from mist_fairseq.text.wordpiece import wordpiece_tokenizer

# What a folder of a pre-trained encoder may have, the first that is there is read.
VOCABULARIES = ("vocab.txt", "vocab.json")

_TOKEN_AND_COUNT = re.compile(r"(.*) \d+\s*")


def load_tokenizer(filename: str | Path) -> Tokenizer:
    """Load a saved ``dict.*.txt``, a ``vocab.txt`` or ``vocab.json``, a SentencePiece model or BART's ``dict.txt``.

    A ``vocab.txt`` takes its casing from the ``tokenizer_config.json`` beside it, lower-case without one. RoBERTa's
    ``vocab.json`` needs its ``merges.txt`` beside it, BART's ``dict.txt`` GPT-2's ``encoder.json`` and ``vocab.bpe``.

    Raises:
        FileNotFoundError: there is no such file, or none beside it that it needs.
        ValueError: the file is none of these; says what it is instead.
    """
    path = Path(filename)
    if not path.is_file():
        raise FileNotFoundError(f"no dictionary at {path}: give a vocab.txt, a SentencePiece model or BART's dict.txt")
    data = path.read_bytes()
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        text = "\0"
    if path.suffix == ".model" or "\0" in text:
        return sentencepiece_tokenizer(data, str(path))
    if text.startswith(HEADER + "\n"):
        return _load_saved(text, str(path))
    if path.suffix == ".json":
        return _load_roberta(path)
    if re.match(r"\d+ \d+\n", text):
        return _load_bart(path)
    casing = _read_casing(path.with_name("tokenizer_config.json"))
    return wordpiece_tokenizer(list(lines_of_file(path)), **casing, source=str(path))


def _load_saved(text: str, source: str) -> Tokenizer:
    """Load what ``Tokenizer.save`` wrote."""
    try:
        _, line, content = text.split("\n", 2)
        settings = json.loads(line)
        kind = settings.pop("type")
        if kind == "wordpiece":
            # A symbol may end in a carriage return, so that these are no lines as of lines_of_file.
            return wordpiece_tokenizer(content.removesuffix("\n").split("\n"), source=source, **settings)
        if kind == "sentencepiece":
            return sentencepiece_tokenizer(base64.b64decode(content), source)
        if kind == "byte-level-bpe":
            return byte_level_bpe_tokenizer(**json.loads(content), source=source)
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"{source} is damaged: run fairseq-preprocess or the export again ({error})") from error
    raise ValueError(f"{source} holds a dictionary of unknown type {kind!r}")


def _read_casing(config: Path) -> dict[str, Any]:
    """What a ``tokenizer_config.json``, where there is one, says about casing and the like, with BERT's defaults."""
    given = read_json(config) if config.is_file() else {}
    settings: dict[str, Any] = {"do_lower_case": True, "strip_accents": None, "tokenize_chinese_chars": True}
    for name, default in settings.items():
        settings[name] = given.get(name, default)
        if settings[name] is not default and not isinstance(settings[name], bool):
            raise ValueError(f"{config}: {name} is {settings[name]!r:.60}, expected true or false")
    return {"lowercase": settings.pop("do_lower_case"), **settings}


def _load_roberta(path: Path) -> Tokenizer:
    """Load RoBERTa's ``vocab.json``, token to id, with the ``merges.txt`` beside it, ids unchanged."""
    merges = path.with_name("merges.txt")
    if not merges.is_file():
        raise FileNotFoundError(f"{path} needs the merges.txt of its model beside it")
    ids = read_json(path)
    if sorted(ids.values()) != list(range(len(ids))):
        raise ValueError(f"{path}: the ids of its {len(ids)} tokens are not 0 to {len(ids) - 1}")
    special = {CLS, PAD, SEP, UNK, MASK}
    symbols = [token if token in special else str(index) for token, index in sorted(ids.items(), key=itemgetter(1))]
    encoder = {token: index for token, index in ids.items() if token not in special}
    return byte_level_bpe_tokenizer(symbols, encoder, list(lines_of_file(merges))[1:], source=str(path))


def _load_bart(path: Path) -> Tokenizer:
    """Load BART's ``dict.txt``, lines of a token and its count, with GPT-2's two files beside it.

    fairseq puts four special symbols before these lines. ``<mask>`` stands behind them, where its denoising task puts
    it: the embeddings of a released ``model.pt`` have a row for it (bart.base: 4 + 51,196 + 1).
    """
    encoder, merges = path.with_name("encoder.json"), path.with_name("vocab.bpe")
    if missing := [file.name for file in (encoder, merges) if not file.is_file()]:
        advice = f"put GPT-2's {' and '.join(missing)} beside it (fairseq's gpt2_bpe folder)"
        raise FileNotFoundError(f"{path} is BART's dictionary, whose tokens are numbers of GPT-2's BPE: {advice}")
    symbols = [CLS, PAD, SEP, UNK]
    for number, line in enumerate(lines_of_file(path), start=1):
        match = _TOKEN_AND_COUNT.fullmatch(line)
        if not match:
            raise ValueError(f"{path}, line {number:,}, is {line!r:.60}, expected a token and its count")
        symbols.append(match[1])
    if MASK not in symbols:
        symbols.append(MASK)
    return byte_level_bpe_tokenizer(symbols, read_json(encoder), list(lines_of_file(merges))[1:], source=str(path))
