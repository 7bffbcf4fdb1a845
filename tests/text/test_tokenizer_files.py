import io
import json
import pickle

import pytest

from mist_fairseq.text.tokenizer import MASK
from mist_fairseq.text.tokenizer_files import load_tokenizer
from tests.helpers import tiny_vocab
from tests.text.helpers import AWKWARD, ids_of


@pytest.fixture(scope="module")
def files(minilm, sentencepiece_model, bart_folder, tmp_path_factory) -> dict[str, str]:
    cased = tmp_path_factory.mktemp("cased") / "vocab.txt"
    cased.write_text("\n".join([*tiny_vocab(), "Hello", "ends in\r", ""]), encoding="utf-8", newline="")
    cased.with_name("tokenizer_config.json").write_text('{"do_lower_case": false, "strip_accents": true}')
    paths = (minilm + "/vocab.txt", cased, sentencepiece_model, bart_folder / "dict.txt")
    return dict(zip(("wordpiece", "cased", "sentencepiece", "byte-level-bpe"), map(str, paths)))


@pytest.mark.parametrize("kind", ["wordpiece", "cased", "sentencepiece", "byte-level-bpe"])
def test_what_is_saved_loads_back_to_the_same(kind, files, tmp_path):
    tokenizer = load_tokenizer(files[kind])
    path = tmp_path / "out" / "dict.src.txt"
    tokenizer.save(str(path))
    for other in (load_tokenizer(path), pickle.loads(pickle.dumps(tokenizer))):
        assert other.symbols == tokenizer.symbols and other.special == tokenizer.special
        assert other.fingerprint() == tokenizer.fingerprint() and other.settings == tokenizer.settings
        for line in ["Hello World, don't!", *AWKWARD]:
            assert other.encode(line) == tokenizer.encode(line)
            assert other.decode(ids_of(other, line)) == tokenizer.decode(ids_of(tokenizer, line))
    stream = io.StringIO()
    tokenizer.save(stream)
    assert stream.getvalue() == path.read_bytes().decode("utf-8")


def test_saved_files_and_fingerprints_stay(tmp_path):
    """Checkpoints and released folders hold them: this one is of version 0.1."""
    (tmp_path / "vocab.txt").write_text("\n".join(tiny_vocab()) + "\n", encoding="utf-8")
    tokenizer = load_tokenizer(tmp_path / "vocab.txt")
    assert tokenizer.fingerprint() == "fee713abe2fad3acafdc8006d4b7a882425595b26d99e2687b903e0e7eaf5464"
    tokenizer.save(tmp_path / "dict.src.txt")
    lines = (tmp_path / "dict.src.txt").read_text(encoding="utf-8").split("\n")
    assert lines[:3] == [
        "#mist_fairseq dictionary 1",
        '{"lowercase": true, "strip_accents": null, "tokenize_chinese_chars": true, "type": "wordpiece"}',
        "[PAD]",
    ]


def test_casing_comes_from_the_tokenizer_config_or_from_the_vocabulary(tmp_path):
    vocab = tmp_path / "vocab.txt"
    vocab.write_text("\n".join([*tiny_vocab(), "Hello", "hello"]) + "\n", encoding="utf-8")
    guessed = load_tokenizer(vocab)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    lower = load_tokenizer(vocab)
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    cased = load_tokenizer(vocab)
    assert guessed.fingerprint() == cased.fingerprint()
    assert lower.encode("Hello") == [("hello", lower.indices["hello"])]
    assert cased.encode("Hello") == [("Hello", cased.indices["Hello"])]
    assert lower.fingerprint() != cased.fingerprint()
    for content, message in (
        ('{"do_lower_case": null}', "do_lower_case is None"),
        ("[3]", "but a list"),
        ("{", "JSON"),
    ):
        (tmp_path / "tokenizer_config.json").write_text(content)
        with pytest.raises(ValueError, match=message):
            load_tokenizer(vocab)


@pytest.mark.parametrize(
    "content, message",
    [
        ("\n".join(s for s in tiny_vocab() if s != MASK), r"has no \[MASK\]"),
        ("the 12\nof 11\n", r"has no \[PAD\]"),
        ("\n".join([*tiny_vocab(), "the"]), "different ones"),
        ("#mist_fairseq dictionary 1\n{}\n", "damaged"),
        ('#mist_fairseq dictionary 1\n{"type": "bpe"}\n', "unknown type 'bpe'"),
        ('#mist_fairseq dictionary 1\n{"type": "sentencepiece"}\nAAAA\n', "not a SentencePiece model"),
        ('#mist_fairseq dictionary 1\n{"type": "byte-level-bpe"}\n{"symbols": []}\n', "damaged"),
        (b"\xff\x00nonsense", r"vocab\.txt is not a SentencePiece model"),
    ],
)
def test_files_that_are_no_vocabulary_are_refused(content, message, tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    with pytest.raises(ValueError, match=message):
        load_tokenizer(path)
    with pytest.raises(FileNotFoundError, match="no dictionary at"):
        load_tokenizer(tmp_path / "nothing.txt")


@pytest.mark.parametrize(
    "name, content, error, message",
    [
        ("encoder.json", None, FileNotFoundError, "put GPT-2's encoder.json beside it"),
        ("vocab.bpe", None, FileNotFoundError, "put GPT-2's vocab.bpe beside it"),
        ("encoder.json", "{", ValueError, "encoder.json is not JSON"),
        ("encoder.json", json.dumps({"a": 0}), ValueError, "no token for 255 of the 256 bytes"),
        ("vocab.bpe", "#version: 0.2\nq x\n", ValueError, "merges 'q x'"),
        ("dict.txt", "5 10\n5 9\n", ValueError, "6 different ones"),
        ("dict.txt", "5 10\n6\n", ValueError, "line 2, is '6', expected a token and its count"),
    ],
)
def test_damaged_files_of_bart_are_refused(name, content, error, message, bart_folder, tmp_path):
    for file in bart_folder.iterdir():
        if file.name != name:
            (tmp_path / file.name).write_text(file.read_text(encoding="utf-8"), encoding="utf-8")
        elif content is not None:
            (tmp_path / name).write_text(content)
    with pytest.raises(error, match=message):
        load_tokenizer(tmp_path / "dict.txt")
