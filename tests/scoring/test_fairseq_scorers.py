import pytest
from fairseq import scoring

import mist_fairseq.tasks  # noqa: F401 (registers the scorers)
from mist_fairseq.scoring import fairseq_scorers
from mist_fairseq.scoring.rouge155 import rouge155
from tests.scoring.conftest import needs_java, needs_perl

PAIRS = [("What is the best way?", "what's the best way?"), ("Who is it?", "who was it?")]


def scorer_of(name):
    scorer = scoring.build_scorer(name, None)
    for reference, prediction in PAIRS:
        scorer.add_string(reference, prediction)
    return scorer, [prediction for _, prediction in PAIRS], [reference.lower() for reference, _ in PAIRS]


@needs_perl
def test_rouge():
    scorer, predictions, references = scorer_of("rouge")
    expected = rouge155(predictions, [[reference] for reference in references])
    assert scorer.score() == expected["ROUGE-L"].score > 50
    assert scorer.result_string().startswith(f"ROUGE-1 = {expected['ROUGE-1'].score:.2f} (")


@needs_java
def test_meteor15(meteor, monkeypatch):
    monkeypatch.setattr(fairseq_scorers, "Meteor15", lambda: meteor)  # whose Java program reads for seconds
    scorer, predictions, references = scorer_of("meteor15")
    expected = meteor.corpus_score(predictions, [references]).score
    assert scorer.score() == pytest.approx(expected) and scorer.result_string() == f"METEOR 1.5 = {expected:.2f}"
