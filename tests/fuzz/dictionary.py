"""Tokenizers: their files, texts into ids, and ids into texts."""

import base64
import io
import json
import pickle
import unicodedata
from functools import cache
from pathlib import Path

import sentencepiece
from tokenizers.pre_tokenizers import ByteLevel

from mist_fairseq.text.byte_level_bpe import byte_level_bpe_tokenizer
from mist_fairseq.text.sentencepiece_tokenizer import sentencepiece_tokenizer
from mist_fairseq.text.tokenizer import CLS, HEADER, MASK, PAD, SEP, UNK, Tokenizer
from mist_fairseq.text.tokenizer_files import load_tokenizer
from mist_fairseq.text.wordpiece import wordpiece_tokenizer
from tests.fuzz import SEPARATOR, files, refuses

WORDS = "how can i learn the guitar fast ' s t , . - ? 3 5 do n ##n ##ing gui ##tar C + \u4e2d \u2028 caf\u00e9".split(
    " "
)
SYMBOLS = [PAD, "[unused1]", UNK, CLS, SEP, MASK, *WORDS]
LINES = ["how can i learn the guitar", "what is the best way to learn it fast?", "Don't you - well, 3.5 times"]
DEEP = b"[" * 3000 + b"]" * 3000
TEXTS = ["", "How can't I learn\u2028the guitar, fast? \ud800 \x00", "[MASK][SEP] <s> \u2603 caf\u00e9 \U0001f600"]


def check_tokenizer(tokenizer: Tokenizer, path: Path):
    """It encodes and decodes, and what it saves loads as an equal one."""
    for text in TEXTS:
        check_ids(tokenizer, [index for _, index in tokenizer.encode(text)])
    check_ids(tokenizer, list(range(min(len(tokenizer.symbols), 300))))
    tokenizer.save(path)
    loaded = load_tokenizer(str(path))
    assert loaded.symbols == tokenizer.symbols and loaded.fingerprint() == tokenizer.fingerprint()
    for text in TEXTS:
        assert loaded.encode(text) == tokenizer.encode(text)


def check_ids(tokenizer: Tokenizer, ids: list[int]) -> str:
    """Ids are in range, and their text is one line, which has ids again."""
    assert all(0 <= index < len(tokenizer.symbols) for index in ids)
    text = tokenizer.decode(ids)
    assert "\n" not in text and "\r" not in text
    for piece, index in tokenizer.encode(text):
        assert isinstance(piece, str) and 0 <= index < len(tokenizer.symbols)
    return text


def _loads_or_is_refused(paths: list[str]):
    try:
        tokenizer = load_tokenizer(paths[0])
    except (ValueError, FileNotFoundError) as error:
        refuses(error, paths)
    else:
        check_tokenizer(tokenizer, Path(paths[0]).with_name("saved.txt"))


def vocabulary(data: bytes):
    """Any file is a vocabulary or is refused."""
    _loads_or_is_refused(files(data, ["vocab.txt"]))


def saved_dictionary(data: bytes):
    """The same behind the first line of a saved dictionary."""
    _loads_or_is_refused(files(HEADER.encode() + b"\n" + data, ["dict.src.txt"]))


def sentencepiece_model(data: bytes):
    """The same of a SentencePiece model."""
    _loads_or_is_refused(files(data, ["sp.model"]))


def tokenizer_config(data: bytes):
    """The same of the settings beside a vocabulary."""
    (config,) = files(data, ["tokenizer_config.json"])
    vocabulary = Path(config).with_name("vocab.txt")
    vocabulary.write_text("\n".join(SYMBOLS), encoding="utf-8")
    _loads_or_is_refused([str(vocabulary), config])


def tokenizer_json(data: bytes):
    """The same of a file of the tokenizers library, with settings beside it."""
    _loads_or_is_refused(files(data, ["tokenizer.json", "tokenizer_config.json"]))


@cache
def tokenizers() -> list[Tokenizer]:
    """One of each kind, and a cased WordPiece."""
    encoder = {char: i for i, char in enumerate(sorted(ByteLevel.alphabet()))}
    merges = ["h o", "\u0120 t", "\u0120t h", "\u0120th e", "1 2", "i n", "in g"]
    for merge in merges:
        encoder[merge.replace(" ", "")] = len(encoder)
    symbols = ["<s>", "<pad>", "</s>", "<unk>", *map(str, reversed(range(len(encoder)))), "<mask>"]
    return [
        wordpiece_tokenizer(SYMBOLS),
        wordpiece_tokenizer([*SYMBOLS, "How", "C++"], lowercase=False),
        sentencepiece_tokenizer(_sentencepiece()),
        byte_level_bpe_tokenizer(symbols, encoder, merges),
        pickle.loads(pickle.dumps(wordpiece_tokenizer(SYMBOLS))),
    ]


def _sentencepiece() -> bytes:
    model = io.BytesIO()
    options = dict(vocab_size=60, hard_vocab_limit=False, pad_id=3, minloglevel=2, num_threads=1)
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(LINES * 3), model_writer=model, **options)
    return model.getvalue()


def text(data: bytes):
    """Any text has ids, none of them special; those of a line have a text that has the same ids again."""
    given = data.decode("utf-8", errors="surrogateescape")  # whatever is no UTF-8 becomes half characters
    line = "".join(" " if unicodedata.category(char) in ("Cc", "Zl", "Zp") else char for char in given)
    for tokenizer in tokenizers():
        check_ids(tokenizer, [index for _, index in tokenizer.encode(given)])
        ids = [index for _, index in tokenizer.encode(line)]
        special = {*tokenizer.special.never_predicted, tokenizer.special.sep} - {tokenizer.special.unk}
        assert not special & set(ids)
        shown = check_ids(tokenizer, ids)
        if tokenizer.special.unk not in ids:
            assert [index for _, index in tokenizer.encode(shown)] == ids, (line, shown)


def ids(data: bytes):
    """Any ids have a text, and lose repeated words as a plain loop says."""
    for tokenizer in tokenizers():
        given = [byte % len(tokenizer.symbols) for byte in data]
        check_ids(tokenizer, given)
        kept = tokenizer.collapse_repeats(given)
        assert kept == plain_collapse(tokenizer, given)
        if given:
            ends = [len(given) - 1] if given[-1] == tokenizer.special.sep else []
            assert tokenizer.text_positions(given, keep_repeats=False) == kept + ends
            no_sep = [position for position, index in enumerate(given) if index != tokenizer.special.sep]
            assert tokenizer.text_positions(given, keep_repeats=True) == no_sep + ends


def plain_collapse(tokenizer: Tokenizer, ids: list[int]) -> list[int]:
    """Positions that ``collapse_repeats`` should keep."""
    positions = [position for position in range(len(ids)) if ids[position] != tokenizer.special.sep]
    starts = [n for n, position in enumerate(positions) if n == 0 or tokenizer.starts_word[ids[position]]]
    words = [positions[start:end] for start, end in zip(starts, [*starts[1:], len(positions)])]
    kept = []
    for n, word in enumerate(words):
        repeated = n > 0 and [ids[i] for i in words[n - 1]] == [ids[i] for i in word]
        doubled = tokenizer.symbols[ids[word[0]]] in list("+-'`/*=")
        if not repeated or doubled:
            kept += word
    return kept


_VOCABULARY = "\n".join(SYMBOLS).encode()
_SETTINGS = {"type": "wordpiece", "lowercase": True, "strip_accents": None, "tokenize_chinese_chars": True}
_BYTES = [bytes([byte]) for byte in (0, 9, 10, 13, 32, 127, 128, 255)]
_CHARACTERS = [*_BYTES, b"\xc2\x85", b"\xe2\x80\xa8", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\r\n"]
_ODD = [*_CHARACTERS, b"[" * 2000, DEEP, b"9" * 5000]


def _start_saved() -> list[bytes]:
    wordpiece = json.dumps(_SETTINGS).encode() + b"\n" + _VOCABULARY
    bpe = {"encoder": {char: i for i, char in enumerate(sorted(ByteLevel.alphabet()))}, "merges": ["h o"]}
    bpe["encoder"]["ho"] = 256
    bpe["symbols"] = ["<s>", "<pad>", "</s>", "<unk>", *map(str, range(257)), "<mask>"]
    return [
        wordpiece,
        b'{"type": "sentencepiece"}\n' + base64.encodebytes(_sentencepiece()),
        b'{"type": "byte-level-bpe"}\n' + json.dumps(bpe).encode(),
        # A token twice.
        b'{"type": "byte-level-bpe"}\n' + json.dumps(bpe | {"symbols": [*bpe["symbols"], "0"]}).encode(),
        # What was no ValueError once: JSON that is nested too deeply.
        DEEP + b"\n",
        b'{"type": "byte-level-bpe"}\n' + DEEP,
    ]


_CONFIG = b'{"do_lower_case": false, "strip_accents": null, "tokenize_chinese_chars": true}'


def _start_tokenizer_json() -> list[bytes]:
    cased = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None}
    wordpiece = {"type": "WordPiece", "unk_token": UNK, "continuing_subword_prefix": "##"}
    wordpiece |= {"max_input_chars_per_word": 100, "vocab": {symbol: i for i, symbol in enumerate(SYMBOLS)}}
    ends = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    unigram = {"type": "Unigram", "unk_id": 3, "vocab": [[piece, 0.0] for piece in ends]}
    unigram["vocab"] += [["\u2581" + word, -float(i)] for i, word in enumerate(WORDS)]
    encoder = {piece: i for i, piece in enumerate([*ends, *sorted(ByteLevel.alphabet()), "ho"])}
    added = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added_tokens = [{"id": i, "content": piece, "special": True, **added} for i, piece in enumerate(ends)]
    roberta = {"type": "RobertaProcessing", "sep": ["</s>", 2], "cls": ["<s>", 0], "trim_offsets": True}
    metaspace = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True}
    bytes_ = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    parts = [
        {
            "model": wordpiece,
            "normalizer": cased | {"lowercase": False},
            "pre_tokenizer": {"type": "BertPreTokenizer"},
            "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        },
        {"model": unigram, "pre_tokenizer": metaspace, "decoder": metaspace, "added_tokens": added_tokens},
        {
            "model": {"type": "BPE", "vocab": encoder, "merges": ["h o"]},
            "pre_tokenizer": bytes_,
            "decoder": bytes_,
            "post_processor": roberta | {"add_prefix_space": False},
            "added_tokens": [*added_tokens, {"id": 300, "content": "a b", "special": False, **added}],
        },
    ]
    empty = {"version": "1.0", "added_tokens": [], "normalizer": None, "post_processor": None}
    return [json.dumps(empty | part).encode() + SEPARATOR + _CONFIG for part in parts]


_TEXT_PIECES = [
    *(word.encode() for word in WORDS + SYMBOLS),
    b" ",
    b"the ",
    *_CHARACTERS,
    b"9" * 200,
    "\u0130\u1e9e\ufb01\u0301".encode(),
]
START = {
    "vocabulary": (
        # The last was saved as another one once.
        [_VOCABULARY + b"\n", b"the 12\n1 2\n", HEADER.encode(), _VOCABULARY + b"\nguitar\r\r\n"],
        [*(symbol.encode() + b"\n" for symbol in SYMBOLS), *_ODD],
    ),
    "saved_dictionary": (_start_saved(), [b'"type"', b"{}", b"null", b"[]", b"wordpiece", b"\n", *_ODD]),
    # The second has a piece that is not UTF-8.
    "sentencepiece_model": (
        [_sentencepiece(), _sentencepiece().replace(b"\xe2", b"\xbe", 1)],
        [b"\x0a\x08", b"\x12", b"[MASK]", b"\x18\x04", *_ODD],
    ),
    # After the first, what was no ValueError once.
    "tokenizer_config": (
        [_CONFIG, b"null", b"[3]", DEEP, b'{"do_lower_case": null}', b'{"strip_accents": []}'],
        [b"{}", b"[]", b"null", b"true", b"3", *_ODD],
    ),
    "tokenizer_json": (_start_tokenizer_json(), [b"null", b"{}", b"[]", b"true", b'"type"', b'"<s>"', b"-1", *_ODD]),
    "text": ([text.encode("utf-8", "surrogatepass") for text in [*TEXTS, *LINES]], _TEXT_PIECES),
    "ids": ([bytes(range(60)), b"\x06\x06\x04\x06"], [bytes([byte]) for byte in range(70)]),
}
