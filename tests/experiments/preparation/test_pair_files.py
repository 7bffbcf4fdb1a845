import gzip
import json
import os
import signal
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mist_fairseq.experiments.preparation import pair_files
from mist_fairseq.experiments.preparation.pair_files import Skipped, data_folder, one_line, read_lines, run, text_of
from tests.experiments.preparation import pairs

ANY_TEXT = st.text(st.characters(exclude_categories=()))


@given(ANY_TEXT | st.text("[SEP] \x00\t\x1c\x85\u2028\ud800"))
def test_texts_take_one_line(text):
    line = one_line(text)
    assert len(line.splitlines()) <= 1 and line == one_line(line)
    assert "[SEP]" not in line
    assert line.encode("utf-8").decode("utf-8") == line
    kept = ["\ufffd" if unicodedata.category(c) == "Cs" else c for c in text]
    blank = [" " if c.isspace() or unicodedata.category(c) == "Cc" else c for c in kept]
    assert line.replace("[ SEP ]", "[SEP]") == " ".join("".join(blank).split()).replace("[ SEP ]", "[SEP]")


def test_a_literal_separator_stays_text(dictionary):
    line = one_line("a [SEP] b[SEP][sep]")
    assert line == "a [ SEP ] b[ SEP ][sep]"
    assert dictionary.encode_line("a [SEP] b").tolist().count(dictionary.eos()) == 2
    assert dictionary.encode_line(line).tolist().count(dictionary.eos()) == 1


def test_values_that_are_no_text_are_skipped():
    assert text_of(" a\x00b ", "question") == "a b"
    with pytest.raises(Skipped, match="^empty question$"):
        text_of("\t\x00\u2028", "question")
    for value in (None, 3, ["a"]):
        with pytest.raises(Skipped, match="question missing or not a text"):
            text_of(value, "question")


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_lines_end_at_newlines_only(tmp_path, name, monkeypatch):
    monkeypatch.setattr(pair_files, "LINE_LIMIT", 8)
    raw = b"\xef\xbb\xbfone\r\ntw\xc2\x85o\x0c\rx\nthr\xffee\n" + b"long" * 4
    (tmp_path / name).write_bytes(gzip.compress(raw) if name.endswith("gz") else raw)
    expected = ["one\r\n", "tw\x85o\x0c\rx\n", "thr\ufffdee\n", "longlong", "longlong"]
    assert list(read_lines(str(tmp_path / name))) == expected


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_utf16_is_called_so(tmp_path, name):
    raw = "\ufeffone".encode("utf-16-be")
    (tmp_path / name).write_bytes(gzip.compress(raw) if name.endswith("gz") else raw)
    with pytest.raises(ValueError, match=f"{name} is UTF-16, expected UTF-8: "):
        list(read_lines(str(tmp_path / name)))


@pytest.mark.parametrize("damage", [lambda raw: raw[:-12], lambda raw: b"plain", lambda raw: raw[:20] + b"x" * 20])
def test_damaged_gzip_files_are_named(tmp_path, damage):
    path = tmp_path / "a.gz"
    path.write_bytes(damage(gzip.compress(os.urandom(1000).hex().encode())))
    with pytest.raises(ValueError, match=r"a\.gz is truncated or not a gzip file"):
        list(read_lines(str(path)))
    with pytest.raises(FileNotFoundError, match="missing is not a file"):
        list(read_lines(str(tmp_path / "missing")))


def fill(out, overwrite=False, source="s", error=None):
    with data_folder(str(out), overwrite) as folder:
        for split in ("train", "valid", "test", "train"):
            folder.add(split, source, "t é")
        folder.skipped["too odd"] += 2
        folder.remarks["odd"] += 1
        if error:
            raise error
    return folder


def contents(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def test_a_folder_is_made(tmp_path):
    out = tmp_path / "new" / "data"
    table = fill(out).table()
    assert contents(tmp_path / "new").keys() == {"data/counts.json"} | {
        f"data/{split}.{side}" for split in ("train", "valid", "test") for side in ("src", "tgt")
    }
    assert (out / "train.tgt").read_bytes() == b"t \xc3\xa9\n" * 2
    assert pairs(out, "test") == [("s", "t é")]
    counts = {"kept": {"train": 2, "valid": 1, "test": 1}, "skipped": {"too odd": 2}, "remarks": {"odd": 1}}
    assert json.loads((out / "counts.json").read_text()) == counts
    assert [row.split() for row in table.splitlines()] == [
        [*(group + " " + name).split(), str(count)] for group in counts for name, count in counts[group].items()
    ]
    umask = os.umask(0)
    os.umask(umask)
    assert out.stat().st_mode & 0o777 == 0o777 & ~umask


def test_nothing_is_overwritten_unasked(tmp_path):
    out = tmp_path / "data"
    out.mkdir()
    fill(out)  # an empty folder is not in the way
    before = contents(tmp_path)
    with pytest.raises(FileExistsError, match="data is not empty: give another --out, or --overwrite"):
        fill(out, error=AssertionError("work was started"))
    with pytest.raises(FileExistsError, match="counts.json is a file, expected a folder"):
        fill(out / "counts.json", overwrite=True)
    (out / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="holds notes.txt, which --overwrite would remove"):
        fill(out, overwrite=True, error=AssertionError("work was started"))
    assert contents(tmp_path) == before | {"data/notes.txt": b"mine"}
    (out / "notes.txt").unlink()
    fill(out, overwrite=True, source="other")
    assert pairs(out, "valid") == [("other", "t é")] and os.listdir(tmp_path) == ["data"]


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt()])
def test_an_interrupted_run_changes_nothing(tmp_path, error, monkeypatch):
    with pytest.raises(type(error)):
        fill(tmp_path / "deep" / "data", error=error)
    assert os.listdir(tmp_path) == []
    fill(tmp_path / "data")
    before = contents(tmp_path)
    with pytest.raises(type(error)):
        fill(tmp_path / "data", overwrite=True, source="other", error=error)
    assert contents(tmp_path) == before and os.listdir(tmp_path) == ["data"]
    rename = Path.rename

    def interrupted(self, target):
        if self.name == "new":
            raise error
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(type(error)):
        fill(tmp_path / "data", overwrite=True, source="other")
    assert contents(tmp_path) == before and os.listdir(tmp_path) == ["data"]


def test_a_folder_that_came_meanwhile_is_kept(tmp_path):
    out = tmp_path / "data"
    with pytest.raises(FileExistsError, match="not empty"), data_folder(str(out)) as folder:
        folder.add("train", "s", "t")
        fill(out, source="other")
    assert pairs(out, "test") == [("other", "t é")] and os.listdir(tmp_path) == ["data"]


def test_nothing_usable_is_an_error(tmp_path):
    match = r"nothing usable in the input; skipped: empty question \(1,200\), no answer \(3\)"
    with pytest.raises(ValueError, match=match), data_folder(str(tmp_path / "data")) as folder:
        folder.skipped.update({"no answer": 3, "empty question": 1200})
    assert os.listdir(tmp_path) == []


def test_termination_cleans_up(tmp_path):
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit, match="error: interrupted, nothing was written"):
            run(lambda folder: os.kill(os.getpid(), signal.SIGTERM), str(tmp_path / "data"), False)
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert os.listdir(tmp_path) == []
