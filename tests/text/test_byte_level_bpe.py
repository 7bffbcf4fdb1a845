import json
import re
from argparse import Namespace

import pytest
import torch
from fairseq.data import Dictionary
from fairseq.data.encoders.gpt2_bpe import GPT2BPE
from transformers import RobertaTokenizerFast

from mist_fairseq.text.tokenizer_files import load_tokenizer
from tests.text.helpers import AWKWARD, has_special, ids_of, real_lines


def test_ids_of_bart_are_fairseqs(bart_folder):
    files = Namespace(
        gpt2_encoder_json=str(bart_folder / "encoder.json"), gpt2_vocab_bpe=str(bart_folder / "vocab.bpe")
    )
    bpe, theirs = GPT2BPE(files), Dictionary.load(str(bart_folder / "dict.txt"))
    ours = load_tokenizer(bart_folder / "dict.txt")
    assert ours.symbols == [*theirs.symbols, "<mask>"] and ours.special.mask == len(theirs) == 4 + 500 + 4
    special = (ours.special.cls, ours.special.pad, ours.special.sep, ours.special.unk)
    assert special == (theirs.bos(), theirs.pad(), theirs.eos(), theirs.unk())
    for line in [*real_lines()[:2000], *AWKWARD]:
        if has_special(line):
            continue
        line = line.rstrip()
        expected = theirs.encode_line(bpe.encode(line), append_eos=False, add_if_not_exist=False).tolist()
        assert ids_of(ours, line + "\n") == expected, line
        assert bpe.decode(theirs.string(torch.tensor(expected))) == line
        assert ours.decode(expected) == re.sub("[\x00-\x1f\x7f-\x9f\u2028\u2029]", " ", line)


def test_specials(bart_folder):
    bart = load_tokenizer(bart_folder / "dict.txt")
    special = bart.special
    ids = ids_of(bart, "the text <mask> </s>")
    assert not {special.mask, special.unk, special.sep} & set(ids) and bart.decode(ids) == "the text <mask> </s>"
    words = [special.cls, *ids[:2], special.sep, special.unk]
    assert bart.decode(words) == bart.decode(ids[:2]) + "<unk>"
    assert bart.decode(words, unknown=" \u2603", keep_sep=True) == bart.decode(ids[:2]) + "</s> \u2603"
    assert bart.decode(ids_of(bart, "\u2603")[:1]) == "\ufffd"
    repeated = ids_of(bart, "a the the cat")
    assert bart.decode([repeated[position] for position in bart.collapse_repeats(repeated)]) == "a the cat"


def test_a_number_that_dict_txt_lacks_is_unknown(bart_folder, tmp_path):
    number = load_tokenizer(bart_folder / "dict.txt").symbols[ids_of(load_tokenizer(bart_folder / "dict.txt"), "x")[0]]
    for file in bart_folder.iterdir():
        lines = file.read_text(encoding="utf-8").split("\n")
        kept = [line for line in lines if file.name != "dict.txt" or not line.startswith(f"{number} ")]
        (tmp_path / file.name).write_text("\n".join(kept), encoding="utf-8")
    other = load_tokenizer(tmp_path / "dict.txt")
    assert other.encode("x") == [("x", other.special.unk)]


def test_ids_of_roberta_are_those_of_transformers(bart_folder, tmp_path):
    """Its ``vocab.json`` has tokens where BART's ``dict.txt`` has numbers."""
    encoder = json.loads((bart_folder / "encoder.json").read_text())
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *encoder, "<mask>"]
    (tmp_path / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
    (tmp_path / "merges.txt").write_bytes((bart_folder / "vocab.bpe").read_bytes())
    theirs = RobertaTokenizerFast(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    ours = load_tokenizer(tmp_path / "vocab.json")
    for line in [*real_lines()[:2000], *AWKWARD]:
        if has_special(line):
            continue
        line = line.rstrip()
        assert ids_of(ours, line) == theirs(line, add_special_tokens=False)["input_ids"], line
    ours.save(tmp_path / "dict.txt")
    assert load_tokenizer(tmp_path / "dict.txt").fingerprint() == ours.fingerprint()
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"vocab\.json needs the merges\.txt"):
        load_tokenizer(tmp_path / "vocab.json")
