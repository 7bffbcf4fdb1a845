"""Tokenizers of ``tokenizer.json``, the file of the ``tokenizers`` library: WordPiece, byte-level BPE, Unigram, ..."""

import json
from collections.abc import Collection, Mapping
from typing import Any

import tokenizers
from tokenizers import decoders

from mist_fairseq.text.byte_level_bpe import spelled
from mist_fairseq.text.tokenizer import CLS, MASK, PAD, SEP, UNK, LibraryTokenizer, never_text, number_symbols
from mist_fairseq.text.wordpiece import SPECIAL, join_pieces, wordpiece_tokenizer

# The special tokens, in the order of SpecialTokens: what they are called where the file itself has to tell.
_NAMES = {
    "pad": (PAD, "<pad>"),
    "unk": (UNK, "<unk>"),
    "cls": (CLS, "<s>", "<cls>"),
    "sep": (SEP, "</s>", "<sep>", "<eos>"),
    "mask": (MASK, "<mask>"),
}
_ALSO_CALLED = {"cls": "bos_token", "sep": "eos_token"}

# tokenizer_config.json's names of settings that go before those of the file, where this is one of the two.
_SETTINGS = {
    "BertNormalizer": {
        "do_lower_case": "lowercase",
        "strip_accents": "strip_accents",
        "tokenize_chinese_chars": "handle_chinese_chars",
    },
    "ByteLevel": {"add_prefix_space": "add_prefix_space"},
}

_SPACES = ("\u2581", "\u0120")  # what stands for the space before a word: SentencePiece's, GPT-2's

_BERTS = {
    "type": "WordPiece",
    "unk_token": UNK,
    "continuing_subword_prefix": "##",
    "max_input_chars_per_word": 100,
}


def tokenizer_json_tokenizer(
    file: Mapping[str, Any], config: Mapping[str, Any] | None = None, source: str = "tokenizer.json"
) -> LibraryTokenizer:
    """Build the tokenizer of a ``tokenizer.json``, ids unchanged; BERT's own is that of its ``vocab.txt``.

    Normalisers, pre-tokenisers, added tokens and the decoder are the file's. Its special tokens are taken out of what
    cuts text, so that they are plain text in one; transformers takes ``<s>`` in a text for the token.

    Args:
        file: the parsed file.
        config: what ``tokenizer_config.json`` and ``special_tokens_map.json`` say, as far as they are there. Without
            them the file's added tokens and its post-processor tell which tokens are special.
        source: what errors call the file.

    Raises:
        ValueError: the library does not take the file, or it lacks a special token.
    """
    try:
        return _build(file, config or {}, source)
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise ValueError(f"{source} is not a file of the tokenizers library ({error!r:.200})") from error


def _build(file: Mapping[str, Any], config: Mapping[str, Any], source: str) -> LibraryTokenizer:
    whole: dict[str, Any] = {"added_tokens": [], **file, "truncation": None, "padding": None}  # nothing about ids
    for name in ("normalizer", "pre_tokenizer"):
        whole[name] = _as_configured(whole.get(name), config)
    model, vocabulary = whole["model"], _read_ids(whole, source)
    names = _special_names(whole, config, vocabulary, source)
    if berts := _as_bert(whole, names):
        return wordpiece_tokenizer(**berts, source=source)

    by_id = {index: token for token, index in vocabulary.items()}
    symbols = [by_id.get(index, f"<no token {index}>") for index in range(max(by_id) + 1)]
    added = {token["content"]: token["special"] for token in whole["added_tokens"]}
    others = {name for name in symbols if added.get(name) or name not in vocabulary}
    ids, special = number_symbols(symbols, names, source, "another", others)
    hidden = {*names, *(symbols[index] for index in special.others)}

    backend = _load(_without(whole, hidden, names[1]), source)
    decoder = (whole.get("decoder") or {}).get("type")
    prefix = model.get("continuing_subword_prefix") if model.get("type") == "WordPiece" else None
    join = " ".join if backend.decoder is None else backend.decoder.decode
    if decoder == "WordPiece" and prefix == "##":
        join = join_pieces
    elif decoder == "ByteLevel" and _puts_space_first(whole["pre_tokenizer"]):
        join = decoders.Sequence([backend.decoder, decoders.Strip(" ", 1, 0)]).decode
    return LibraryTokenizer(
        backend=backend,
        ids={token: index for token, index in ids.items() if token not in hidden},
        pieces=[spelled(symbol) if decoder == "ByteLevel" and symbol in added else symbol for symbol in symbols],
        join=join,
        symbols=symbols,
        special=special,
        starts_word=[
            symbol in hidden or (not symbol.startswith(prefix) if prefix else symbol.startswith(_SPACES))
            for symbol in symbols
        ],
        settings={"type": "tokenizer-json", "config": {f"{key}_token": name for key, name in zip(_NAMES, names)}},
        content=json.dumps(whole, ensure_ascii=False, sort_keys=True) + "\n",
    )


def _read_ids(file: Mapping[str, Any], source: str) -> dict[str, int]:
    """The ids of all tokens; ValueError where they are no ids."""
    tokens = file["model"]["vocab"]
    ids = dict(tokens) if isinstance(tokens, dict) else {piece[0]: index for index, piece in enumerate(tokens)}
    for token in file["added_tokens"]:
        ids.setdefault(token["content"], token["id"])
    different = {index for index in ids.values() if type(index) is int and 0 <= index < 2 * len(ids) + 1000}
    if len(different) < len(ids):
        raise ValueError(f"{source} is damaged: it has {len(ids):,} tokens, but {len(different):,} ids that may be")
    return ids


def _load(file: Mapping[str, Any], source: str) -> Any:
    """The library's tokenizer."""
    try:
        made = tokenizers.Tokenizer.from_str(json.dumps(file))
        made.encode("a \U0010fffd", add_special_tokens=False)  # not every model can have unknown characters
    except Exception as error:  # the library raises no other
        raise ValueError(f"{source} is not a file that the tokenizers library takes: {error}") from error
    return made


def _as_configured(part: Any, config: Mapping[str, Any]) -> Any:
    """The normaliser or the pre-tokeniser, with the settings of ``tokenizer_config.json``."""
    if not isinstance(part, dict):
        return part
    names = _SETTINGS.get(str(part.get("type")), {})
    return part | {ours: config[name] for name, ours in names.items() if type(config.get(name)) is bool}


def _special_names(
    file: Mapping[str, Any], config: Mapping[str, Any], vocabulary: Collection[str], source: str
) -> tuple[str, ...]:
    """What padding, unknown token, beginning, end and mask are called; ValueError where one is missing."""
    model, post = file["model"], file.get("post_processor") or {}
    added = {token["content"] for token in file["added_tokens"] if token["special"]}
    told = {"unk": model.get("unk_token")}
    if model.get("unk_id") is not None:
        told["unk"] = model["vocab"][model["unk_id"]][0]
    for processor in post.get("processors", [post]):
        ends: list[str] = []
        if processor.get("type") == "TemplateProcessing":
            ends = [part["SpecialToken"]["id"] for part in processor["single"] if "SpecialToken" in part]
        elif processor.get("type") in ("BertProcessing", "RobertaProcessing"):
            ends = [processor["cls"][0], processor["sep"][0]]
        if len(ends) > 1:
            told |= {"cls": ends[0], "sep": ends[-1]}
    found: list[str] = []
    for key, usual in _NAMES.items():
        entries = (config.get(f"{key}_token"), config.get(_ALSO_CALLED.get(key, "")), told.get(key))
        given = [entry.get("content") if isinstance(entry, dict) else entry for entry in entries]
        candidates = (*given, *(name for name in usual if name in added), *usual)
        known = [name for name in candidates if isinstance(name, str) and name in vocabulary]
        if not known:
            raise ValueError(
                f"{source} has no {key} token such as {' or '.join(usual)}: the tokenizer of an encoder that fills "
                "masks is needed, such as BERT, RoBERTa, XLM-R, MPNet or ModernBERT"
            )
        found.append(known[0])
    if len(set(found)) < len(found):
        raise ValueError(
            f"{source} has one token for several ends: {dict(zip(_NAMES, found))}, expected five different"
        )
    return tuple(found)


def _as_bert(file: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any] | None:
    """Symbols and settings for ``wordpiece_tokenizer`` if this is exactly its tokenizer."""
    model, normalizer = file["model"], file.get("normalizer") or {}
    settings = {name: model.get(name) for name in _BERTS}
    same = settings == _BERTS and names == SPECIAL
    same = same and normalizer.get("type") == "BertNormalizer" and normalizer["clean_text"]
    same = same and (file.get("pre_tokenizer") or {}).get("type") == "BertPreTokenizer"
    same = same and all(
        token["content"] in model["vocab"] and never_text(token["content"]) for token in file["added_tokens"]
    )
    if not same or sorted(model["vocab"].values()) != list(range(len(model["vocab"]))):
        return None
    ours = {
        "lowercase": "lowercase",
        "strip_accents": "strip_accents",
        "handle_chinese_chars": "tokenize_chinese_chars",
    }
    return {
        "symbols": sorted(model["vocab"], key=model["vocab"].get),
        **{name: normalizer[theirs] for theirs, name in ours.items()},
    }


def _puts_space_first(pre_tokenizer: Any) -> bool:
    parts = (pre_tokenizer or {}).get("pretokenizers", [pre_tokenizer])
    return any(part and part.get("type") == "ByteLevel" and part["add_prefix_space"] for part in parts)


def _without(file: Mapping[str, Any], hidden: Collection[str], unknown: str) -> dict[str, Any]:
    """The file for text alone: none of the tokens of *hidden* comes out of it, but *unknown*."""
    model, vocabulary = file["model"], file["model"]["vocab"]
    if isinstance(vocabulary, list):  # Unigram's, where a piece's place is its id: nothing is spelled as an empty piece
        vocabulary = [["" if piece in hidden else piece, *score] for piece, *score in vocabulary]
    elif model.get("type") != "BPE":  # which makes no token that it has no merge for
        kept = [token for token in sorted(vocabulary, key=vocabulary.get) if token not in hidden or token == unknown]
        vocabulary = {token: number for number, token in enumerate(kept)}  # a gap would be printed about
    return {
        **file,
        "added_tokens": [token for token in file["added_tokens"] if token["content"] not in hidden],
        "post_processor": None,
        "model": {**model, "vocab": vocabulary},
    }
