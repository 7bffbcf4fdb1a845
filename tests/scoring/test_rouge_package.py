"""The authors' ROUGE for XSum, against the package over whole files and against plain sets."""

import sys

import pytest
from rouge import FilesRouge

from mist_fairseq.scoring.rouge_package import RougePackage
from mist_fairseq.scoring.scores import PROTOCOLS, score
from mist_fairseq.scoring.steps import apply_steps


def test_equals_the_package_over_files(corpus, tmp_path):
    """As the authors call it, on files; it cuts the last character of a last line without an end, so there is one."""
    hypotheses, references = corpus
    outputs, targets = [text or "a" for text in hypotheses], [group[0] for group in references]
    protocol = PROTOCOLS["authors-xsum"]
    actual = score({"mine": outputs}, targets, protocol=protocol)["mine"]
    files = tmp_path / "outputs", tmp_path / "references"
    for file, texts, steps in zip(files, (outputs, targets), (protocol.steps, protocol.reference_steps)):
        file.write_text("".join(f"{text}\n" for text in apply_steps(texts, steps)), encoding="utf-8")
    expected = FilesRouge().get_scores(*map(str, files), avg=True)
    for kind in "12l":
        assert f"{actual.values[f'rouge-package-{kind}']:.10f}" == f"{100 * expected[f'rouge-{kind}']['f']:.10f}"


def test_repeated_words_count_once():
    """Unlike in ROUGE-1.5.5: precision 2 of 2 words, recall 2 of 3."""
    found = RougePackage("rouge-1").corpus_score(["the cat the"], [["the cat sat"]]).score
    assert found == pytest.approx(100 * 2 * 1 * (2 / 3) / (1 + 2 / 3), abs=1e-5)


def test_outputs_without_words_score_nothing():
    metric = RougePackage("rouge-l")
    assert metric.corpus_score(["", " . ", "a cat"], [["a cat", "a cat", "a cat"]]).score == pytest.approx(
        100 / 3, abs=1e-4
    )
    assert metric.corpus_score(["a cat"], [["dogs"], ["a cat"]]).score == pytest.approx(100, abs=1e-4)


def test_the_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "rouge", None)
    with pytest.raises(ImportError, match=r"pip install 'mist-fairseq\[scores\]'"):
        RougePackage("rouge-1")


def test_texts_that_are_too_long_are_refused():
    long = "a b " * 2000
    with pytest.raises(RuntimeError, match="a table of 16,000,000 pairs of words: use rouge155"):
        RougePackage("rouge-l").corpus_score([long], [[long]])
