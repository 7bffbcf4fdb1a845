"""Ids of folders that transformers saves, for each kind of tokenizer, equal those of its own fast tokenizers."""

import json
import pickle
import shutil
import unicodedata

import pytest
import transformers
from tokenizers import (
    AddedToken,
    ByteLevelBPETokenizer,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from mist_fairseq.text.tokenizer import CLS, MASK, PAD, SEP, UNK
from mist_fairseq.text.tokenizer_files import find_vocabulary, load_tokenizer
from tests.awkward import shown
from tests.text.helpers import AWKWARD, has_special, ids_of, lines_of_languages, real_lines, train_sentencepiece

BERTS = [PAD, "[unused1]", UNK, CLS, SEP, MASK]
ROBERTAS = ["<s>", "<pad>", "</s>", "<unk>"]
ENDS = {"<s>": 0, "<pad>": 1, "</s>": 2, "<mask>": 3}
WORDS = {"model": {"type": "WordLevel", "vocab": ENDS | {"a": 4}, "unk_token": "a"}}
LINES = [*lines_of_languages(), *real_lines()[:1500]]
TEXTS = [line.rstrip() for line in [*LINES, *AWKWARD] if not has_special(line)]


def bert(folder, lowercase, kind="BertTokenizerFast", special=BERTS):
    tokenizer = Tokenizer(models.WordPiece(unk_token=UNK))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=1500, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(LINES, trainer)
    vocabulary = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    return getattr(transformers, kind)(str(folder / "vocab.txt"), do_lower_case=lowercase)


def roberta(folder):
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(LINES, vocab_size=1000, special_tokens=[*ROBERTAS, "<mask>"], show_progress=False)
    bpe.save_model(str(folder))
    return transformers.RobertaTokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt"))


def modernbert(folder, add_prefix_space=False):
    """GPT-NeoX's BPE, whose special tokens stand behind its own, with runs of spaces and others as added tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(LINES, trainers.BpeTrainer(vocab_size=900, initial_alphabet=alphabet))
    tokenizer.add_tokens(["|||EMAIL|||", "  ", "    ", "[unused1]", AddedToken("Häuser", single_word=True)])
    tokenizer.add_special_tokens(["<|endoftext|>", UNK, CLS, SEP, PAD, AddedToken(MASK, lstrip=True)])
    ends = [(name, tokenizer.token_to_id(name)) for name in (CLS, SEP)]
    tokenizer.post_processor = processors.TemplateProcessing(f"{CLS} $0 {SEP}", special_tokens=ends)
    names = {"unk_token": UNK, "cls_token": CLS, "sep_token": SEP, "pad_token": PAD, "mask_token": MASK}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, add_prefix_space=add_prefix_space, **names)


def unigram(folder, kind, **options):
    """Of a SentencePiece model, as XLM-R's and ALBERT's come from; with text that looks like special tokens."""
    lines = [*LINES, *["a <s> b </s> <mask> <unk>"] * 20]
    path = train_sentencepiece(folder / "sentencepiece.bpe.model", 1200, lines, **options)
    return getattr(transformers, kind)(str(path))


def albert(folder):
    named = {
        "pad_piece": "<pad>",
        "bos_piece": CLS,
        "eos_piece": SEP,
        "pad_id": 0,
        "unk_id": 1,
        "bos_id": 2,
        "eos_id": 3,
    }
    return unigram(folder, "AlbertTokenizerFast", control_symbols=[MASK], **named)


FAMILIES = {
    "BERT": lambda folder: bert(folder, True),
    "BERT, cased": lambda folder: bert(folder, False),
    "MPNet": lambda folder: bert(folder, True, "MPNetTokenizerFast", [*ROBERTAS, *BERTS, "<mask>"]),
    "RoBERTa": roberta,
    "ModernBERT": modernbert,
    "a space first": lambda folder: modernbert(folder, True),
    "XLM-R": lambda folder: unigram(folder, "XLMRobertaTokenizerFast"),
    "CamemBERT": lambda folder: unigram(folder, "CamembertTokenizerFast"),
    "ALBERT": albert,
}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    """Our tokenizer of a folder, theirs, and the folder."""
    made, folder = tmp_path_factory.mktemp("made"), tmp_path_factory.mktemp("saved")
    theirs = FAMILIES[request.param](made)
    theirs.save_pretrained(folder)
    return load_tokenizer(folder), theirs, folder


def expected_ids(theirs, texts):
    # BERT's slow tokenizer, which ours equals, composes characters; the fast one does not.
    if type(theirs).__name__ == "BertTokenizerFast":
        texts = [unicodedata.normalize("NFC", text) for text in texts]
    return theirs(texts, add_special_tokens=False)["input_ids"]  # of all at once: each call takes a millisecond


def test_ids_are_those_of_transformers(family):
    ours, theirs, _ = family
    assert len(ours.symbols) == len(theirs) and len(TEXTS) > 3500
    for name in ("pad", "unk", "cls", "sep", "mask"):
        assert getattr(ours.special, name) == getattr(theirs, f"{name}_token_id")
    for text, expected in zip(TEXTS, expected_ids(theirs, TEXTS), strict=True):
        assert ids_of(ours, text) == expected, text


def test_special_tokens_are_plain_text(family):
    ours, theirs, _ = family
    never = {*ours.special.never_predicted, ours.special.sep} - {ours.special.unk}
    assert never >= set(theirs.all_special_ids) - {ours.special.unk}
    assert {ours.symbols[index] for index in ours.special.others} >= set(ours.indices) & {"[unused1]"}
    for name in (*theirs.all_special_tokens, "[unused1]"):
        ids = ids_of(ours, f"a {name} b{name}")
        assert not never & set(ids)
        assert "".join(ours.decode(ids, name[1:-1]).lower().split()) == f"a{name}b{name}".lower()


def test_a_tokenizer_json_alone_is_the_same(family, tmp_path):
    ours, _, folder = family
    shutil.copy(folder / "tokenizer.json", tmp_path)
    alone = load_tokenizer(tmp_path)
    assert alone.fingerprint() == ours.fingerprint() and alone.special == ours.special


def test_what_is_saved_and_what_is_pickled_is_the_same(family, tmp_path):
    ours, _, _ = family
    ours.save(tmp_path / "dict.txt")
    for other in (load_tokenizer(tmp_path / "dict.txt"), pickle.loads(pickle.dumps(ours))):
        assert other.symbols == ours.symbols and other.special == ours.special
        assert other.fingerprint() == ours.fingerprint() and other.starts_word == ours.starts_word
        for text in ["a <s> [MASK] b", *TEXTS[::20]]:
            assert other.encode(text) == ours.encode(text)
            assert other.decode(ids_of(ours, text)) == ours.decode(ids_of(ours, text))


def test_texts_come_back(family):
    """As they were from bytes; else as the family normalises them, but for spaces, of which some is lost."""
    ours, theirs, _ = family
    backend = theirs.backend_tokenizer
    kind, exact = json.loads(backend.to_str())["decoder"]["type"], not getattr(theirs, "add_prefix_space", False)
    for text in TEXTS:
        ids = ids_of(ours, text)
        if ours.special.unk in ids:
            continue
        given = backend.normalizer.normalize_str(text) if backend.normalizer else text
        if kind == "ByteLevel" and exact:
            assert ours.decode(ids) == shown(given)
        elif kind in ("WordPiece", "ByteLevel"):  # the second has a space behind each added token
            assert ours.decode(ids)[:1] != " " or text[:1].isspace()
            assert "".join(ours.decode(ids).split()) == "".join(unicodedata.normalize("NFC", shown(given)).split())
        else:
            assert ours.decode(ids).split() == shown(given).replace("\u2581", " ").split()


def test_repeated_words_collapse(family):
    ours, _, _ = family
    ids = ids_of(ours, "a the the Straße Straße cat")
    expected = ours.decode(ids_of(ours, "a the Straße cat"))
    assert ours.decode([ids[position] for position in ours.collapse_repeats(ids)]) == expected


def test_unknown_text_that_looks_like_a_special_token_is_unknown(tmp_path):
    """The library gives the text of unknown characters as their token, several at once."""
    tokenizer = Tokenizer(models.Unigram([(name, 0.0) for name in [*ROBERTAS, "<mask>"]] + [("x", -1.0)], unk_id=3))
    tokenizer.add_special_tokens([*ROBERTAS, "<mask>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    ours = load_tokenizer(tmp_path)
    assert ours.encode("x<mask>x") == [("x", 5), ("<mask>", ours.special.unk), ("x", 5)]


def test_added_tokens_are_the_files(tmp_path):
    modernbert(tmp_path).save_pretrained(tmp_path)
    ours = load_tokenizer(tmp_path)
    assert [text for text, _ in ours.encode("x|||EMAIL|||Häuser    y")] == ["x", "|||EMAIL|||", "Häuser", "    ", "y"]
    assert "Häuser" not in [text for text, _ in ours.encode("xHäusern")]
    assert ours.decode([ours.indices["Häuser"]]) == "Häuser"  # whose letters stand for other bytes in a BPE


def test_settings_beside_it_go_before_the_files(tmp_path):
    bert(tmp_path, True).save_pretrained(tmp_path)
    (tmp_path / "vocab.txt").unlink()
    for change in ({"do_lower_case": False}, {"strip_accents": False}, {"tokenize_chinese_chars": False}):
        config = json.loads((tmp_path / "tokenizer_config.json").read_text()) | change
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        ours, theirs = load_tokenizer(tmp_path), transformers.BertTokenizerFast.from_pretrained(tmp_path)
        assert [ids_of(ours, text) for text in TEXTS[::10]] == expected_ids(theirs, TEXTS[::10])


@pytest.mark.parametrize("name, kind", [("xlm-roberta", "XLMRoberta"), ("camembert", "Camembert")])
@pytest.mark.parametrize("told_by", ["tokenizer_class", "model_type"])
def test_sentencepiece_models_of_others_have_transformers_ids(name, kind, told_by, tmp_path):
    unigram(tmp_path, f"{kind}TokenizerFast")
    # The fast one normalises few characters otherwise (the half-width ｶﾞ); the encoders were trained with SentencePiece.
    theirs = getattr(transformers, f"{kind}Tokenizer")(str(tmp_path / "sentencepiece.bpe.model"))
    told = f"{kind}Tokenizer" if told_by == "tokenizer_class" else name
    (tmp_path / "config.json").write_text(json.dumps({told_by: told}))
    ours = load_tokenizer(tmp_path)
    for special in ("pad", "unk", "cls", "sep", "mask"):
        assert getattr(ours.special, special) == getattr(theirs, f"{special}_token_id")
    assert len(ours.symbols) == len(theirs)
    for text in TEXTS[:: 1 if told_by == "model_type" else 10]:  # the other finds the same
        assert ids_of(ours, text) == theirs(text, add_special_tokens=False)["input_ids"], text
    assert not {ours.special.mask, ours.special.sep} & set(ids_of(ours, "a <mask> </s> b"))
    assert ours.decode([ours.special.cls, ours.indices["\u2581the"], ours.special.mask]) == "the <mask>"
    ours.save(tmp_path / "dict.txt")
    assert load_tokenizer(tmp_path / "dict.txt").encode("a the") == ours.encode("a the")
    (tmp_path / "config.json").write_text('{"model_type": "albert"}')
    with pytest.raises(ValueError, match=r"of albert, whose ids are not .*: give its tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_which_file_of_a_folder_counts(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no vocabulary: expected one of vocab.txt, tokenizer.json"):
        load_tokenizer(tmp_path)
    bert(tmp_path, True, "MPNetTokenizerFast", [*ROBERTAS, *BERTS, "<mask>"]).save_pretrained(tmp_path)
    roberta(tmp_path)
    assert find_vocabulary(tmp_path).name == "tokenizer.json"
    with pytest.raises(ValueError, match=r"vocab\.txt is not BERT's, for it has <mask>: give the tokenizer\.json"):
        load_tokenizer(tmp_path / "vocab.txt")
    bert(tmp_path, True)
    assert find_vocabulary(tmp_path).name == "vocab.txt"
    (tmp_path / "vocab.txt").unlink()
    (tmp_path / "tokenizer.json").unlink()
    assert find_vocabulary(tmp_path).name == "vocab.json"


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model": {"type": "WordPiece"}}, r"tokenizer\.json is not a file of the tokenizers library .KeyError"),
        ({"model": {"type": "Unigram", "vocab": [["a", "b"]]}}, "has no pad token"),
        (WORDS | {"normalizer": {"type": "Nothing"}}, "is not a file that the tokenizers library takes: "),
        ({"model": {"type": "WordLevel", "vocab": {"<s>": 0, "<unk>": 1}, "unk_token": "<unk>"}}, "has no pad token"),
        (
            {"model": {"type": "WordLevel", "vocab": ENDS | {"a": 10**9}, "unk_token": "a"}},
            "is damaged: it has 5 tokens, but 4 ids that may be",
        ),
    ],
)
def test_other_files_are_refused(change, message, tmp_path):
    file = json.loads(modernbert(tmp_path).backend_tokenizer.to_str())
    (tmp_path / "tokenizer.json").write_text(json.dumps(file | {"added_tokens": [], "post_processor": None} | change))
    with pytest.raises(ValueError, match=message):
        load_tokenizer(tmp_path)


def test_a_tokenizer_without_a_mask_is_refused(tmp_path):
    """GPT-2's, which has one token for all ends, too."""
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(LINES, 600, special_tokens=["<|endoftext|>", "<pad>", "<unk>"], show_progress=False)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match="has no cls token such as .CLS. or <s> or <cls>: .* fills masks is needed"):
        load_tokenizer(tmp_path)
    ends = {"bos_token": "<|endoftext|>", "eos_token": {"content": "<|endoftext|>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(ends))
    with pytest.raises(ValueError, match="has no mask token"):
        load_tokenizer(tmp_path)
    (tmp_path / "special_tokens_map.json").write_text('{"mask_token": "a"}')
    with pytest.raises(ValueError, match="one token for several ends: .*'cls': '<|endoftext|>', 'sep': '<|endoft"):
        load_tokenizer(tmp_path)
