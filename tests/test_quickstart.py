"""The quickstart's data set; scripts and training of it run as a whole in the README's first command."""

import re
import runpy
import sys
from pathlib import Path

import pytest

SCRIPT = str(Path(__file__).parent.parent / "examples" / "quickstart" / "make_data.py")


def make(folder, monkeypatch, *options):
    monkeypatch.setattr(sys, "argv", [SCRIPT, str(folder), *options])
    runpy.run_path(SCRIPT, run_name="__main__")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_test_questions_are_new_but_their_words_are_not(tmp_path, monkeypatch):
    files = make(tmp_path, monkeypatch)
    lines = {name: content.decode().split("\n")[:-1] for name, content in files.items() if name != "sp.model"}
    assert len(lines["train.src"]) == len(lines["train.tgt"]) >= 4000
    seen = {*lines["train.src"], *lines["train.tgt"]}
    words = {word for line in seen for word in re.findall(r"\w+", line)}
    for split in ("valid", "test"):
        assert len(lines[f"{split}.src"]) == len(lines[f"{split}.tgt"]) == 300
        for line in lines[f"{split}.src"] + lines[f"{split}.tgt"]:
            assert line not in seen
            assert words.issuperset(re.findall(r"\w+", line))
    assert all(source != target for source, target in zip(lines["train.src"], lines["train.tgt"]))
    assert not any("{" in line or "  " in line for line in seen)


def test_it_is_the_same_every_time(tmp_path, monkeypatch):
    first, second = (make(tmp_path / name, monkeypatch) for name in "ab")
    assert first == second


def test_asking_for_too_much_is_refused(tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match="not enough combinations"):
        make(tmp_path, monkeypatch, "--train", "1000000")
