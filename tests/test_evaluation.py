import pytest

from mist_fairseq.evaluation import bleu, read_generation

PRINTED = """INFO | loading
S-1\tsecond source
T-1\tsecond reference
H-1\t-0.5\tsecond output
D-1\t-0.5\tsecond output
P-1\t-0.5 -0.5
D-1\t-0.9\tanother second output
S-0\t
T-0\tfirst reference
H-0\t-0.1\t
D-0\t-0.1\t
P-0\t
INFO | Translated 2 sentences (5 tokens) in 0.1s (20.50 sentences/s, 50.0 tokens/s)
"""


def test_output_comes_in_the_order_of_the_data():
    result = read_generation(PRINTED)
    assert result.sources == ["", "second source"] and result.outputs == ["", "second output"]
    assert result.references == ["first reference", "second reference"] and result.sentences_per_second == 20.5


def test_references_may_be_absent():
    assert read_generation(PRINTED.replace("T-", "X-")).references == []


@pytest.mark.parametrize("lost", ["S-1\tsecond source\n", "D-0\t-0.1\t\n", "T-0\tfirst reference\n"])
def test_lost_sentences_are_noticed(lost):
    with pytest.raises(ValueError, match="lines"):
        read_generation(PRINTED.replace(lost, ""))


def test_an_unfinished_run_is_noticed():
    with pytest.raises(ValueError, match="did not come to its end"):
        read_generation(PRINTED.split("INFO | Translated")[0])


def test_bleu_does_not_regard_case():
    assert bleu(["How can I learn this?"], ["how can i learn this?"]) == pytest.approx(100)
    with pytest.raises(ValueError, match="1 outputs but 2 references"):
        bleu(["a"], ["a", "b"])
