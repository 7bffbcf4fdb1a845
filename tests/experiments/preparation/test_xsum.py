import gzip
import json
import tracemalloc

from mist_fairseq.experiments.preparation.pair_files import data_folder
from mist_fairseq.experiments.preparation.xsum import prepare_json_lines
from tests.experiments.preparation import pairs, run_script

ARTICLE = """[SN]URL[SN]
http://example.org/{0}

[SN]TITLE[SN]
Title {0}

[SN]FIRST-SENTENCE[SN]
Summary {0}.

[SN]RESTBODY[SN]
Share this with
Email
These are external links and will open in a new window
Line one of {0}, with [SN] in it.
Email is mentioned.\u2028Line [SEP] two.
"""


def released(folder, split):
    (folder / "split.json").write_text(json.dumps(split))
    (folder / "bbc").mkdir()
    for ids in split.values():
        for identifier in ids:
            (folder / "bbc" / f"{identifier}.summary").write_text(ARTICLE.format(identifier), encoding="utf-8")
    return ["--documents", folder / "bbc", "--split", folder / "split.json", "--out", folder / "out"]


def pair(identifier):
    article = f"Line one of {identifier}, with [SN] in it. Email is mentioned. Line [ SEP ] two."
    return article, f"Summary {identifier}."


def test_the_authors_release(tmp_path, monkeypatch):
    options = released(tmp_path, {"train": ["1", "2"], "validation": ["3", "4", "5"], "test": ["6", "7"]})
    bbc = tmp_path / "bbc"
    (bbc / "2.summary").write_bytes(ARTICLE.format(2).replace("\n", "\r\n").encode())
    (bbc / "3.summary").unlink()
    (bbc / "4.summary").write_text(ARTICLE.format(4).replace("[SN]RESTBODY[SN]", "RESTBODY"))
    (bbc / "5.summary").write_text(ARTICLE.format(5).split("Line one")[0])
    (bbc / "6.summary").write_text(ARTICLE.format(6).replace("Summary 6.", ""))
    (bbc / "7.summary").write_bytes(ARTICLE.format(7).encode().replace(b"Summary", b"Summ\xffary"))
    assert run_script(monkeypatch, "prepare_xsum.py", *options) is None
    out = tmp_path / "out"
    assert pairs(out, "train") == [pair(1), pair(2)] and pairs(out, "valid") == []
    assert pairs(out, "test") == [(pair(7)[0], "Summ\ufffdary 7.")]
    assert json.loads((out / "counts.json").read_text())["skipped"] == {
        "no file for the id": 1,
        "malformed sections": 1,
        "empty document": 1,
        "empty summary": 1,
    }


def test_json_lines(tmp_path, monkeypatch):
    def record(**more):
        return json.dumps({"document": "a\nb\u2028c \ud800", "summary": "s [SEP]", "id": "1", **more}) + "\n"

    odd = [record(document=" "), record(summary=None), "{\n", "\n", "[1]\n", "[" * 100_000 + "\n", '"\xe9']
    (tmp_path / "train.json").write_text(record() + "".join(odd) + "\n" + record(summary="last"), encoding="latin-1")
    with gzip.open(tmp_path / "valid.json.gz", "wt") as file:
        file.write(record(summary="v"))
    (tmp_path / "test.json").write_text(record(summary="t").strip())
    out = tmp_path / "out"
    inputs = [tmp_path / name for name in ("train.json", "valid.json.gz", "test.json")]
    options = ["--out", out, "--json-lines", *inputs]
    assert run_script(monkeypatch, "prepare_xsum.py", *options) is None
    assert pairs(out, "train") == [("a b c \ufffd", "s [ SEP ]"), ("a b c \ufffd", "last")]
    assert pairs(out, "valid") == [("a b c \ufffd", "v")] and pairs(out, "test") == [("a b c \ufffd", "t")]
    skipped = json.loads((out / "counts.json").read_text())["skipped"]
    assert skipped == {"empty document": 1, "summary missing or not a text": 1, "invalid JSON line": 4}


def test_errors_are_one_line(tmp_path, monkeypatch, capsys):
    options = released(tmp_path, {"train": ["1"], "validation": ["2"], "test": ["3"]})

    def error(*arguments):
        message = run_script(monkeypatch, "prepare_xsum.py", *arguments)
        assert not (tmp_path / "out").exists()
        return message

    split = tmp_path / "split.json"
    whole = split.read_text()
    split.write_text(whole[:-5])
    assert error(*options).startswith(f"error: {split} is truncated or not JSON: ")
    split.write_text('{"train": [], "dev": [], "test": []}')
    assert 'split.json is something else, expected {"train": [ids]' in error(*options)
    split.write_text(whole.replace('"', '"x', 1).replace("[", "[4").replace("4", '"4",'))
    assert "split.json is" in error(*options)
    split.write_text(json.dumps({"train": [None], "validation": ["../x", "9" * 300], "test": [7]}))
    assert error(*options) == "error: nothing usable in the input; skipped: no file for the id (4)"
    assert "nowhere is not a folder" in error("--documents", tmp_path / "nowhere", *options[2:])
    paths = [tmp_path / name for name in ("a", "b", "c")]
    assert f"{paths[0]} is not a file" in error("--json-lines", *paths, "--out", tmp_path / "out")
    assert error(*options[:2], *options[4:]) == 2
    assert "--documents and --split belong together" in capsys.readouterr().err


def test_memory_does_not_grow_with_the_file(tmp_path):
    path = tmp_path / "train.json"
    path.write_text((json.dumps({"document": f"{'word' * 25} " * 100, "summary": "s"}) + "\n") * 2000)
    assert path.stat().st_size > 20e6
    tracemalloc.start()
    with data_folder(str(tmp_path / "out")) as files:
        prepare_json_lines(files, [str(path)])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert files.kept["train"] == 2000 and peak < 2e6
