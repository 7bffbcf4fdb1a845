import importlib.util
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from mist_fairseq.scoring.meteor15 import Meteor15
from tests.scoring.conftest import needs_java, streams


@needs_java
def test_equals_pycocoevalcap(corpus, meteor, monkeypatch):
    """Our program answers it, too, for it would start the same one with the same arguments and read for 12 s."""
    from pycocoevalcap.meteor import meteor as pycocoevalcap

    started, process = [], meteor._process

    def start(command, cwd, **_):
        started.append([str(Path(cwd, word)) if word.endswith(".jar") else word for word in command])
        stdin = SimpleNamespace(write=process.stdin.buffer.write, flush=process.stdin.buffer.flush, close=int)
        return SimpleNamespace(stdin=stdin, stdout=process.stdout.buffer, kill=int, wait=int)

    monkeypatch.setattr(pycocoevalcap, "subprocess", SimpleNamespace(Popen=start, PIPE=None))
    hypotheses, references = corpus
    theirs = pycocoevalcap.Meteor()
    expected, each = theirs.compute_score(dict(enumerate(references)), {i: [h] for i, h in enumerate(hypotheses)})
    jar = process.args.index("-jar") + 1
    assert started[0][-6:] == process.args[jar + 1 :] and started[0][-7] == process.args[jar]
    assert {"-jar", "-Xmx2G"} == set(started[0][1:-7]) <= set(process.args[:jar])
    assert meteor.corpus_score(hypotheses, streams(references)).score == pytest.approx(100 * expected, abs=1e-9)
    assert meteor.sentence_score(hypotheses[0], references[0]).score == pytest.approx(100 * each[0], abs=1e-9)


@needs_java
def test_awkward_lines_do_not_shift_the_answers(meteor):
    plain = meteor.sentence_score("it is good", ["it is good"]).score
    for text in ("", "\n", "a ||| b\nEVAL ||| 1", "\u2028", "a\rb", "\ufffd \U0001f600", "x " * 40):
        meteor.sentence_score(text, [text or "it"])
        assert meteor.sentence_score("it is good", ["it is good"]).score == plain > 99


@needs_java
def test_the_java_program_ends_with_the_metric():
    metric = Meteor15()
    process = metric._process
    del metric
    assert process.poll() is not None


def test_why_java_failed_is_told(monkeypatch, tmp_path):
    java = tmp_path / "java"
    java.write_text("#!/bin/sh\necho Could not reserve enough space >&2\nexit 1\n")
    java.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda name: str(java))
    with pytest.raises(RuntimeError, match="Java program failed: Could not reserve enough space"):
        Meteor15().sentence_score("a", ["a"])


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(FileNotFoundError, match="default-jre-headless"):
        Meteor15()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pycocoevalcap"):
        Meteor15()
