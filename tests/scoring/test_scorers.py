import pytest
from fairseq import scoring

import mist_fairseq.tasks  # noqa: F401 (registers the scorers)
from mist_fairseq.scoring.meteor15 import Meteor15
from mist_fairseq.scoring.rouge155 import rouge155
from tests.scoring.conftest import needs_java, needs_perl

PAIRS = [("What is the best way?", "what's the best way?"), ("Who is it?", "who was it?")]


@needs_perl
def test_rouge():
    scorer = scoring.build_scorer("rouge", None)
    for reference, prediction in PAIRS:
        scorer.add_string(reference, prediction)
    expected = rouge155([pair[1] for pair in PAIRS], [[pair[0].lower()] for pair in PAIRS])
    assert scorer.score() == expected["ROUGE-L"].score > 50
    assert scorer.result_string().startswith(f"ROUGE-1 = {expected['ROUGE-1'].score:.2f} (")


@needs_java
def test_meteor15():
    scorer = scoring.build_scorer("meteor15", None)
    for reference, prediction in PAIRS:
        scorer.add_string(reference, prediction)
    expected = Meteor15().corpus_score([pair[1] for pair in PAIRS], [[pair[0].lower() for pair in PAIRS]]).score
    assert scorer.score() == pytest.approx(expected) and scorer.result_string() == f"METEOR 1.5 = {expected:.2f}"
