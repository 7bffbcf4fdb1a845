import subprocess
import sys

import pytest
import sacrebleu
from pycocoevalcap.bleu.bleu import Bleu

from mist_fairseq.scoring import scores as module
from mist_fairseq.scoring.scores import PROTOCOLS, Protocol, group_by_source, score
from tests.scoring.conftest import needs_perl

AS_IS = Protocol([], [], ["bleu-1", "bleu-2", "bleu-3", "bleu-4"], True)


def flat(corpus):
    """A line a reference: equal sources for the references of one hypothesis."""
    hypotheses, references = corpus
    rows = [(f"source {i}", hypotheses[i], text) for i, group in enumerate(references) for text in group]
    return [list(column) for column in zip(*rows)]


def test_bleu_equals_the_question_generation_scripts(corpus):
    hypotheses, references = corpus
    sources, outputs, targets = flat(corpus)
    actual = score({"mine": outputs}, targets, sources, protocol=AS_IS)["mine"]
    outputs_by_number = {i: [text] for i, text in enumerate(hypotheses)}
    expected, _ = Bleu(4).compute_score(dict(enumerate(references)), outputs_by_number, verbose=0)
    assert actual.segments == len(hypotheses) < len(targets)
    assert [f"{actual.values[f'bleu-{n}']:.5f}" for n in (1, 2, 3, 4)] == [f"{100 * value:.5f}" for value in expected]


def test_the_last_output_of_equal_sources_counts():
    """As in the script, which overwrites the others."""
    actual = score({"a": ["x y", "a b"]}, ["a b", "c d"], ["S ", "s"], protocol=AS_IS, metrics=["bleu-1"])["a"]
    assert actual.values == {"bleu-1": pytest.approx(100)} and actual.segments == 1
    assert group_by_source(["b", "a", "B ", "b c"]) == [[0, 2], [1], [3]]


def test_sacrebleu_equals_its_command_line(corpus, tmp_path):
    sources, outputs, targets = flat(corpus)
    outputs = [text.title() for text in outputs]
    (tmp_path / "reference").write_text("\n".join(targets) + "\n")
    (tmp_path / "output").write_text("\n".join(outputs) + "\n")
    command = [sys.executable, "-m", "sacrebleu", tmp_path / "reference", "-i", tmp_path / "output", "-lc"]
    printed = subprocess.run([*command, "-f", "text", "-w", "4"], capture_output=True, text=True, check=True).stdout
    actual = score({"mine": outputs}, targets, sources, protocol=PROTOCOLS["quora"], metrics=["sacrebleu"])["mine"]
    assert f"BLEU|{actual.signatures['sacrebleu']} = {actual.values['sacrebleu']:.4f} " in printed


def test_steps_are_applied_to_each_side():
    protocol = Protocol(["collapse-repeats", "words", "rejoin-quora"], ["words", "rejoin-quora"], ["bleu-4"], False)
    actual = score({"a": ["how how do you don't it?"]}, ["how do you do n't it ?"], protocol=protocol)["a"]
    assert actual.values["bleu-4"] == pytest.approx(100)
    assert score({"a": ["a b c d"]}, ["a a b c d"], protocol=protocol)["a"].values["bleu-4"] < 90


def test_confidence_and_significance(corpus):
    sources, outputs, targets = flat(corpus)
    worse = ["why " + text for text in outputs]
    systems = {"base": outputs, "same": outputs, "worse": worse}
    actual = score(systems, targets, sources, protocol=AS_IS, metrics=["bleu-2", "rouge-l"], confidence=True)
    for metric in ("bleu-2", "rouge-l"):
        assert metric not in actual["base"].p_values
        assert actual["same"].p_values[metric] == 1 and actual["worse"].p_values[metric] < 0.01
        low, high = actual["base"].intervals[metric]
        assert low < actual["base"].values[metric] < high and 0.5 < high - low < 30
        assert actual["base"].intervals[metric] == actual["same"].intervals[metric]
    plain = score(systems, targets, sources, protocol=AS_IS, metrics=["bleu-2"])["worse"]
    assert plain.values["bleu-2"] == actual["worse"].values["bleu-2"] and not plain.intervals
    assert set(plain.as_dict()) == {"segments", "values", "signatures"}


def test_confidence_equals_sacrebleus(corpus):
    _, outputs, targets = flat(corpus)
    actual = score({"a": outputs}, targets, metrics=["sacrebleu"], confidence=True)["a"].intervals["sacrebleu"]
    expected = sacrebleu.BLEU(lowercase=True).corpus_score(outputs, [targets], n_bootstrap=1000)
    assert actual == pytest.approx((expected._mean - expected._ci, expected._mean + expected._ci), abs=1e-3)


@needs_perl
def test_rouge155_gives_the_scripts_average_and_interval(corpus):
    hypotheses, references = corpus
    targets = [group[0] for group in references]
    actual = score({"a": hypotheses, "b": targets}, targets, protocol=PROTOCOLS["xsum"], confidence=True)
    rouge = module.rouge155(module.apply_steps(hypotheses, PROTOCOLS["xsum"].steps), [[text] for text in targets])
    assert actual["a"].values["rouge155-2"] == rouge["ROUGE-2"].score
    assert actual["a"].intervals["rouge155-l"] == (rouge["ROUGE-L"].low, rouge["ROUGE-L"].high)
    assert actual["b"].p_values["rouge155-1"] < 0.01 and actual["b"].values["rouge155-1"] > 95


def test_what_cannot_be_computed_does_not_stop_the_rest(monkeypatch):
    def missing():
        raise FileNotFoundError("apt-get install default-jre-headless")

    monkeypatch.setitem(module.METRICS, "meteor15", missing)
    actual = score({"a": ["it is"]}, ["it is"], metrics=["meteor15", "rouge-l"])["a"]
    assert actual.values == {"rouge-l": 100} and "default-jre-headless" in actual.failed["meteor15"]


@pytest.mark.parametrize(
    "systems, references, options, message",
    [
        ({"a": ["x"]}, ["x", "y"], {}, "a has 1 lines but there are 2 references"),
        ({"a": ["x"]}, ["x"], {"sources": ["s", "t"]}, "source file has 2 lines but there are 1 references"),
        ({"a": ["x"]}, ["x"], {"metrics": ["blue"]}, "no metric 'blue': there are sacrebleu, bleu-1"),
        ({"a": ["x"]}, ["x"], {"protocol": AS_IS}, "the sources are needed"),
        ({"a": []}, [], {}, "nothing to score"),
    ],
)
def test_errors(systems, references, options, message):
    with pytest.raises(ValueError, match=message):
        score(systems, references, **{"protocol": PROTOCOLS["plain"], **options})


def test_what_a_perfect_output_scores_with_the_authors_protocols():
    """References raw or tokenized; BERT's words are not the Penn Treebank's tokens, and some of Quora's stay apart."""
    raw, tokenized = ["What's the best way to learn it?"], ["what 's the best way to learn it ?"]
    apart = ["I've been told that we're late, why is it so?"]
    for name, all_joined in (("quora", True), ("authors-quora", False), ("squad_qg", True)):
        found = [
            score({"a": texts}, references, raw, protocol=PROTOCOLS[name], metrics=["bleu-4"])["a"].values["bleu-4"]
            for texts, references in ((raw, raw), (raw, tokenized), (tokenized, raw), (apart, apart))
        ]
        assert found[:3] == [pytest.approx(100)] * 3
        assert (found[3] > 99.9) == all_joined, name
    words = score({"a": raw}, raw, raw, protocol=PROTOCOLS["authors-squad_qg"], metrics=["bleu-4"])["a"]
    assert 50 < words.values["bleu-4"] < 90
