"""How near outputs are to their sources, against sacrebleu's own BLEU and counting by hand."""

import pytest
from sacrebleu.metrics import BLEU

from mist_fairseq.scoring.scores import AGAINST_SOURCE, NEEDS_ENCODER, PROTOCOLS, Protocol, score

SOURCES = ["how do i learn the guitar fast ?", "what is the best phone ?", "why is the sky blue ?"]
OUTPUTS = ["how do i learn the guitar ?", "what is the best phone ?", "what makes the sky so blue today ?"]
REFERENCES = [
    "what is a fast way to learn the guitar ?",
    "which phone is the best ?",
    "what makes the sky blue today ?",
]
COUNTED = [metric for metric in AGAINST_SOURCE if metric not in NEEDS_ENCODER]
AS_IS = Protocol([], [], COUNTED, group=False)


def bleu(outputs, references):
    return BLEU(tokenize="none", smooth_method="none", force=True).corpus_score(outputs, [references]).score


def test_figures_equal_counting_by_hand():
    found = score({"a": OUTPUTS}, REFERENCES, SOURCES, protocol=AS_IS)["a"].values
    expected = {
        "ibleu": 0.8 * bleu(OUTPUTS, REFERENCES) - 0.2 * bleu(OUTPUTS, SOURCES),
        "source-bleu": bleu(OUTPUTS, SOURCES),
        "copies": 100 / 3,
        "novel-1": 100 * 4 / 21,  # what, makes, so, today
        "novel-2": 100 * (1 + 0 + 6) / 18,
        "distinct-1": 100 * 16 / 21,
        "distinct-2": 100,
    }
    assert found == pytest.approx(expected) and set(found) == set(COUNTED)


def test_several_references_and_equal_sources(corpus):
    """Grouped as BLEU-4 is; a copy has no novel word and iBLEU only loses by it."""
    sources, outputs, references = ["a b c d e", "a b c d e"], ["x", "a b c d e"], ["a b c d e", "a b c d f"]
    grouped = Protocol([], [], ["bleu-4", *COUNTED], group=True)
    found = score({"a": outputs}, references, sources, protocol=grouped)["a"]
    assert found.segments == 1 and found.values["ibleu"] == pytest.approx(0.8 * 100 - 0.2 * 100)
    assert found.values["copies"] == 100 and found.values["novel-1"] == 0 == found.values["novel-2"]


def test_intervals_where_statistics_add_up():
    found = score({"a": OUTPUTS, "b": SOURCES}, REFERENCES, SOURCES, protocol=AS_IS, confidence=True)
    for name in COUNTED:
        assert (name in found["a"].intervals) == (name in found["b"].p_values) == (not name.startswith("distinct"))
    assert found["b"].values["copies"] == 100


def test_sources_are_needed_where_they_are_asked_for():
    with pytest.raises(ValueError, match="ibleu compares with the sources: they are needed"):
        score({"a": OUTPUTS}, REFERENCES, metrics=["ibleu"])
    without = score({"a": OUTPUTS}, REFERENCES, protocol=PROTOCOLS["xsum"], metrics=None)["a"]
    assert "copies" not in without.values | without.failed


def test_a_copy_equals_its_source_whatever_is_done_to_texts():
    raw = ["What's the best way (if any)?", "I can't say: 3,000."]
    for name in ("quora", "authors-quora", "authors-xsum"):
        found = score({"copy": raw}, raw, raw, protocol=PROTOCOLS[name], metrics=["copies"])
        assert found["copy"].values == {"copies": 100}
