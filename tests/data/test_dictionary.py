import pickle
import shutil
import sys
from types import SimpleNamespace

import pytest
import torch
from fairseq.binarizer import BinarizeSummary, VocabularyDatasetBinarizer

from mist_fairseq.data.dictionary import load_dictionary


@pytest.fixture(scope="module")
def bert(minilm):
    return load_dictionary(minilm + "/vocab.txt")


def test_fairseqs_interface(bert, dictionary, tmp_path):
    assert (bert.pad(), bert.unk(), bert.bos(), bert.eos(), bert.mask()) == (0, 100, 101, 102, 103)
    assert (bert.pad_word, bert.unk_word, bert.bos_word, bert.eos_word) == ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
    assert len(bert) == len(bert.symbols) == len(bert.count) == 30522 and bert.nspecial == 0
    assert bert.index("hello") == 7592 and bert[7592] == "hello" and "hello" in bert
    assert bert.index("no such token") == bert.unk()
    bert.save(str(tmp_path / "dict.src.txt"))
    for other in (load_dictionary(str(tmp_path / "dict.src.txt")), pickle.loads(pickle.dumps(bert))):
        assert other == bert
    assert bert != dictionary


def test_folders_and_names_on_the_hub_are_taken(bert, minilm, tmp_path, monkeypatch):
    asked = []

    def local_folder(name, files):
        assert {"config.json", "vocab.txt"} <= set(files)
        asked.append(name)
        return minilm

    hub = SimpleNamespace(local_folder=local_folder, may_be_name=lambda text: text[0] != "/", TOKENIZER=("vocab.txt",))
    monkeypatch.setitem(sys.modules, "mist_fairseq.pretrained.hub", hub)
    monkeypatch.setattr("mist_fairseq.pretrained.hub", hub, raising=False)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(minilm, "org/here", ignore=shutil.ignore_patterns("model.*"))
    for name in ("org/name.v2", "org/name@main", minilm, "org/here"):
        assert load_dictionary(name) == bert
    for name in ("bin/dict.src.txt", "/no/such"):
        with pytest.raises(FileNotFoundError, match="no dictionary at .*: give a folder or file of a tokenizer"):
            load_dictionary(name)
    assert asked == ["org/name.v2", "org/name@main"]


def test_only_a_literal_sep_is_special(bert):
    ids = bert.encode_line("the answer [SEP] a [MASK] and [CLS][PAD] [sep]").tolist()
    assert ids.count(bert.eos()) == 2
    assert not {bert.mask(), bert.bos(), bert.pad()} & set(ids)
    assert ids[:3] == [bert.index("the"), bert.index("answer"), bert.eos()]


def test_encode_line_honours_its_arguments(bert):
    plain = bert.encode_line("hello world", append_eos=False).tolist()
    assert plain == [bert.index("hello"), bert.index("world")]
    reverse = bert.encode_line("hello world", reverse_order=True).tolist()
    assert reverse == [*reversed(plain), bert.eos()]
    assert bert.encode_line("").tolist() == [bert.eos()]
    size = len(bert)
    bert.encode_line("zzzqqq ☃☃☃", add_if_not_exist=True)
    assert len(bert) == size
    with pytest.raises(ValueError, match="does not grow"):
        bert.add_symbol("zzzqqq")


def test_preprocess_counts_unknown_words_by_their_text(bert):
    summary = BinarizeSummary()
    VocabularyDatasetBinarizer(bert).binarize_line("a ☃ snowman and \U00012000 cuneiform", summary)
    assert set(summary.replaced) == {"☃", "\U00012000"}


def test_string_honours_its_arguments(bert):
    ids = torch.tensor([bert.bos(), bert.index("hello"), bert.unk(), bert.eos(), bert.index("you"), bert.pad()])
    assert bert.string(ids) == "hello [UNK] you"
    assert bert.string(ids, escape_unk=True) == "hello <[UNK]> you"
    assert bert.string(ids, unk_string="?!") == "hello ?! you"
    assert bert.string(ids, extra_symbols_to_ignore={bert.unk()}) == "hello you"
    assert bert.string(ids, include_eos=True) == "hello [UNK] [SEP] you"
    assert bert.string(ids, separator="_") == "hello_[UNK]_you"
    assert bert.string(torch.stack([ids, ids]), escape_unk=True) == "hello <[UNK]> you\nhello <[UNK]> you"
    assert bert.string(ids.tolist()) == bert.string(list(ids)) == bert.string(ids)
    for symbol in ("sentencepiece", "wordpiece", "@@ ", "subword_nmt"):
        assert bert.string(ids, symbol) == bert.string(ids)
    with pytest.raises(NotImplementedError, match="no-such-thing"):
        bert.string(ids, "no-such-thing")
