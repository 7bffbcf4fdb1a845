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
from mist_fairseq.text.sentencepiece_tokenizer import LAYOUTS, sentencepiece_tokenizer
from mist_fairseq.text.tokenizer import HEADER, Tokenizer
from mist_fairseq.text.tokenizer_json import tokenizer_json_tokenizer
from mist_fairseq.text.wordpiece import SPECIAL, wordpiece_tokenizer

# What a folder of a pre-trained encoder may have; find_vocabulary says which of them counts.
VOCABULARIES = ("vocab.txt", "tokenizer.json", "vocab.json", "sentencepiece.bpe.model", "spiece.model", "sp.model")
# What is read beside one of these.
BESIDE = ("merges.txt", "special_tokens_map.json", "tokenizer_config.json")

_BRACKETED = re.compile(r"\[.*\]|<.*>")  # special tokens, whatever they are for
_TOKEN_AND_COUNT = re.compile(r"(.*) \d+\s*")


def load_tokenizer(filename: str | Path) -> Tokenizer:
    """Load the vocabulary of a folder, or one of the files that it may be in, ids as transformers has them.

    - ``dict.*.txt``: what ``Tokenizer.save`` wrote;
    - ``vocab.txt``: BERT's. ``tokenizer_config.json`` beside it tells the casing; without one a vocabulary that has
      capital letters is cased;
    - ``tokenizer.json``: anything that the ``tokenizers`` library runs; ``tokenizer_config.json`` and
      ``special_tokens_map.json`` beside it tell the special tokens;
    - ``vocab.json``: RoBERTa's, with its ``merges.txt`` beside it;
    - a SentencePiece model: our own, or that of XLM-R and CamemBERT, if ``config.json`` or ``tokenizer_config.json``
      beside it says so;
    - ``dict.txt``: BART's, with GPT-2's ``encoder.json`` and ``vocab.bpe`` beside it.

    Raises:
        FileNotFoundError: there is no such file, or none beside it that it needs.
        ValueError: the file is none of these; says what it is instead.
    """
    path = Path(filename)
    if path.is_dir():
        path = find_vocabulary(path)
    if not path.is_file():
        advice = f"give a folder or file of a tokenizer ({', '.join(VOCABULARIES)}) or BART's dict.txt"
        raise FileNotFoundError(f"no dictionary at {path}: {advice}")
    data = path.read_bytes()
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        text = "\0"
    if path.suffix == ".model" or "\0" in text:
        return sentencepiece_tokenizer(data, str(path), _find_layout(path))
    if text.startswith(HEADER + "\n"):
        return _load_saved(text, str(path))
    if path.suffix == ".json":
        return _load_json(path)
    if re.match(r"\d+ \d+\n", text):
        return _load_bart(path)
    symbols = list(lines_of_file(path))
    if MASK in symbols:
        raise ValueError(f"{path} is not BERT's, for it has {MASK}: give the tokenizer.json of its model")
    casing = _read_casing(path.with_name("tokenizer_config.json"), symbols)
    return wordpiece_tokenizer(symbols, **casing, source=str(path))


def find_vocabulary(folder: Path) -> Path:
    """The first of ``VOCABULARIES`` in a folder, or our ``dict.txt``; a ``vocab.txt`` that is not BERT's comes last.

    Raises:
        FileNotFoundError: it has none of them.
    """
    found = [path for name in (*VOCABULARIES, "dict.txt") if (path := folder / name).is_file()]
    if not found:
        raise FileNotFoundError(f"{folder} has no vocabulary: expected one of {', '.join(VOCABULARIES)}")
    if found[0].name == VOCABULARIES[0] and len(found) > 1 and not _is_berts(set(lines_of_file(found[0]))):
        return found[1]
    return found[0]


def _is_berts(symbols: set[str]) -> bool:
    """Whether a ``vocab.txt`` is BERT's; MPNet's has all of BERT's tokens, but others serve as special ones."""
    return symbols >= set(SPECIAL) and MASK not in symbols


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
            return sentencepiece_tokenizer(base64.b64decode(content), source, **settings)
        if kind == "byte-level-bpe":
            return byte_level_bpe_tokenizer(**json.loads(content), source=source)
        if kind == "tokenizer-json":
            return tokenizer_json_tokenizer(json.loads(content), **settings, source=source)
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"{source} is damaged: run fairseq-preprocess or the export again ({error})") from error
    raise ValueError(f"{source} holds a dictionary of unknown type {kind!r}")


def _read_casing(config: Path, symbols: list[str]) -> dict[str, Any]:
    """What a ``tokenizer_config.json`` says about casing and the like, with BERT's defaults; or what *symbols* say."""
    given = read_json(config) if config.is_file() else {"do_lower_case": not any(map(_has_capitals, symbols))}
    settings: dict[str, Any] = {"do_lower_case": True, "strip_accents": None, "tokenize_chinese_chars": True}
    for name, default in settings.items():
        settings[name] = given.get(name, default)
        if settings[name] is not default and not isinstance(settings[name], bool):
            raise ValueError(f"{config}: {name} is {settings[name]!r:.60}, expected true or false")
    return {"lowercase": settings.pop("do_lower_case"), **settings}


def _has_capitals(symbol: str) -> bool:
    return symbol != symbol.lower() and not _BRACKETED.fullmatch(symbol)


def _load_json(path: Path) -> Tokenizer:
    """Load a ``tokenizer.json``, with what the files beside it say about it, or a ``vocab.json``."""
    file = read_json(path)
    if not isinstance(file.get("model"), dict):
        return _load_roberta(path, file)
    config: dict[str, Any] = {}
    for beside in ("special_tokens_map.json", "tokenizer_config.json"):
        config |= _read_beside(path, beside)
    return tokenizer_json_tokenizer(file, config, str(path))


def _read_beside(path: Path, name: str) -> dict[str, Any]:
    """What a file of settings beside a vocabulary sets; nothing where there is none."""
    beside = path.with_name(name)
    given = read_json(beside) if beside.is_file() else {}
    return {name: value for name, value in given.items() if value is not None}


def _find_layout(path: Path) -> str | None:
    """Whose SentencePiece model this is, going by the files beside it: a key of ``LAYOUTS``, or None for our own.

    Raises:
        ValueError: another model's, whose ids transformers does not take from the SentencePiece model, or not all.
    """
    config = _read_beside(path, "config.json")
    names = (_read_beside(path, "tokenizer_config.json").get("tokenizer_class"), config.get("tokenizer_class"))
    name = next((str(name) for name in (*names, config.get("model_type")) if name), None)
    layout = name and re.sub("tokenizer|fast|[^a-z]", "", name.lower())
    if layout and layout not in LAYOUTS:
        raise ValueError(
            f"{path} is of {name}, whose ids are not the SentencePiece model's: give its tokenizer.json, which "
            "transformers' AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER) writes"
        )
    return layout


def _load_roberta(path: Path, ids: dict[str, Any]) -> Tokenizer:
    """Load RoBERTa's ``vocab.json``, token to id, with the ``merges.txt`` beside it, ids unchanged."""
    merges = path.with_name("merges.txt")
    if not merges.is_file():
        raise FileNotFoundError(f"{path} needs the merges.txt of its model beside it")
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
