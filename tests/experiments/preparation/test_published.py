import gzip
import json

import pytest

from mist_fairseq.experiments.preparation.pair_files import one_line
from tests.awkward import texts
from tests.experiments.preparation import lines, pairs, run_script


def record(src, tgt, **more) -> str:
    return json.dumps({"src": src, "tgt": tgt, **more}) + "\n"


def write(folder, texts: dict[str, str]) -> list:
    """Write the files, and return the paths of train, dev and test, without .src and .tgt."""
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    return [folder / name for name in dict.fromkeys(name.removesuffix(".src").removesuffix(".tgt") for name in texts)]


def run(monkeypatch, paths, out, *options):
    return run_script(monkeypatch, "prepare_published.py", *paths, "--out", out, *options)


def test_json_lines_of_the_authors(tmp_path, monkeypatch):
    """The three tasks, texts or tokens; whatever is no pair is counted."""
    odd = [record(" ", "t"), record("s", None), record("a [SEP] ", "t"), record(["a", 1], "t"), record([], "t")]
    squad = [record("a b [SEP] the a b\nhas\u2028it .", "who [SEP] is it ?", tgt_kd="who ?")]
    pieces = ["may", "[SEP]", "the", "guitar", "##s", "don", "'", "t", "[UNK]"]
    inputs = {
        "train.json": "".join([*squad, *odd, "{\n", "\n", "[1]\n", record(pieces, ["star", "##ling", "##s", "."])]),
        "dev.json": record("A B [SEP] c ##d", "v"),
        "test.json": record("v", "what [UNK] ?").strip(),
    }
    paths = write(tmp_path, inputs)
    paths[1] = tmp_path / "dev.json.gz"
    paths[1].write_bytes(gzip.compress(inputs["dev.json"].encode()))
    assert run(monkeypatch, paths, tmp_path / "out") is None
    assert pairs(tmp_path / "out", "train") == [
        ("a b [SEP] the a b has it .", "who [ SEP ] is it ?"),
        ("may [SEP] the guitars don't [UNK]", "starlings."),
    ]
    assert pairs(tmp_path / "out", "valid") == [("A B [SEP] c ##d", "v")]
    assert pairs(tmp_path / "out", "test") == [("v", "what [UNK] ?")]
    counts = json.loads((tmp_path / "out" / "counts.json").read_text())
    assert counts["skipped"] == {
        "empty src": 3,
        "src missing or not a text": 1,
        "tgt missing or not a text": 1,
        "invalid JSON line": 2,
    }
    assert counts["remarks"]["pairs with [UNK], here plain text"] == 2
    assert counts["remarks"]["pairs with ##, which --pieces would join"] == 1


@pytest.mark.parametrize("form", ["lists", "texts"])
def test_pieces_come_back(tmp_path, monkeypatch, dictionary, form):
    """DA-Transformer's files, and lists in the authors': what is made of the pieces has the ids of the text."""
    awkward = [*map(one_line, texts(400)), "how are the starlings (c. 1,000) of N.Y.?", "5 km ' s answer [SEP] a b"]
    tokenizer = dictionary.tokenizer
    ids = [dictionary.encode_line(text, append_eos=False).tolist() for text in awkward]
    ids = [line for line in ids if line and tokenizer.special.unk not in line]
    assert len(ids) > 30
    found = [[dictionary.symbols[index] for index in line] for line in ids]
    if form == "lists":
        paths = write(
            tmp_path, {f"{s}.json": "".join(record(x, ["b"]) for x in found) for s in ("train", "dev", "test")}
        )
        options = []
    else:
        sides = {"src": "".join(" ".join(x) + "\r\n" for x in found), "tgt": "b\n" * len(found)}
        paths = write(tmp_path, {f"tok_{s}.{side}": sides[side] for s in ("train", "dev", "test") for side in sides})
        options = ["--pieces"]
    assert run(monkeypatch, paths, tmp_path / "out", *options) is None
    for split in ("train", "valid", "test"):
        back = [
            dictionary.encode_line(text, append_eos=False).tolist() for text in lines(tmp_path / "out" / f"{split}.src")
        ]
        assert back == ids


def test_plain_texts_stay_and_overlap_is_counted(tmp_path, monkeypatch):
    inputs = {"train.src": "a .\nB  c\nd", "train.tgt": "b\nC\ne\n", "valid.src": "x\nC\n", "valid.tgt": "a .\nb\n"}
    inputs |= {"test.src": "A .\nB c\nx\n", "test.tgt": "E\nx\na .\n"}
    assert run(monkeypatch, write(tmp_path, inputs), tmp_path / "out") is None
    assert pairs(tmp_path / "out", "train") == [("a .", "b"), ("B c", "C"), ("d", "e")]
    assert json.loads((tmp_path / "out" / "counts.json").read_text())["remarks"] == {
        "valid sources that training has": 1,
        "valid targets that training has": 2,
        "valid pairs of which training has both": 1,
        "valid pairs that training has": 0,
        "test sources that training has": 2,
        "test targets that training has": 2,
        "test pairs of which training has both": 1,
        "test pairs that training has": 0,
    }


def test_errors_are_one_line(tmp_path, monkeypatch):
    texts = {f"{split}.{side}": "a\nb\n" for split in ("train", "dev", "test") for side in ("src", "tgt")}
    paths = write(tmp_path, texts)

    def error(*given):
        message = run(monkeypatch, given, tmp_path / "out")
        assert not (tmp_path / "out").exists()
        return message

    nowhere = tmp_path / "train.json"
    expected = f"error: there is neither {nowhere}, a file of JSON lines, nor {nowhere}.src beside {nowhere}.tgt"
    assert error(nowhere, *paths[1:]) == expected
    assert error(f"{paths[0]}.src", *paths[1:]) == (
        f"error: {paths[0]}.src is one side of the pairs: give {paths[0]}, and both are read"
    )
    (tmp_path / "dev.tgt").write_text("a\nb\nc\n")
    ends = "ends after 2 lines, expected as many as of the other side"
    assert error(*paths) == f"error: {paths[1]}.src {ends}"
    (tmp_path / "dev.src").write_text("a\nb\nc\nd\n")
    assert error(*paths) == f"error: {paths[1]}.tgt {ends.replace('2', '3')}"
    (tmp_path / "dev.tgt").unlink()
    assert error(*paths) == f"error: {paths[1]}.tgt is not a file"
