import pytest
from fairseq import scoring
from sacrebleu.metrics import CHRF

import mist_fairseq.tasks  # noqa: F401 (registers the scorers)
from mist_fairseq.scoring import fairseq_scorers
from mist_fairseq.scoring.rouge155 import rouge155
from tests.scoring.conftest import needs_perl

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


def test_meteor15(monkeypatch):
    """Another metric stands for it, whose Java program would read for seconds; ``test_meteor15.py`` tests it."""
    monkeypatch.setattr(fairseq_scorers, "Meteor15", CHRF)
    scorer, predictions, references = scorer_of("meteor15")
    expected = CHRF().corpus_score(predictions, [references]).score
    assert scorer.score() == pytest.approx(expected) and scorer.result_string() == f"METEOR 1.5 = {expected:.2f}"
