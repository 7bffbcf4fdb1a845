from hypothesis import given
from hypothesis import strategies as st
from pycocoevalcap.rouge.rouge import Rouge, my_lcs

from mist_fairseq.scoring.rouge_l import RougeL, longest_common_subsequence, rouge_l
from tests.scoring.conftest import streams

tokens = st.lists(st.sampled_from("abcd"), min_size=1, max_size=9)


@given(tokens, tokens)
def test_longest_common_subsequence_equals_coco_captions(first, second):
    assert longest_common_subsequence(first, second) == my_lcs(first, second)


@given(tokens, st.lists(tokens, min_size=1, max_size=3))
def test_rouge_l_equals_coco_captions(hypothesis, references):
    expected = Rouge().calc_score([" ".join(hypothesis)], [" ".join(reference) for reference in references])
    assert abs(rouge_l(hypothesis, references) - expected) < 1e-12


def test_nothing_in_common():
    assert rouge_l([], [["a"]]) == rouge_l(["b"], [["a"], []]) == 0


def test_corpus(corpus):
    hypotheses, references = corpus
    expected, _ = Rouge().compute_score(dict(enumerate(references)), {i: [h] for i, h in enumerate(hypotheses)})
    assert f"{RougeL().corpus_score(hypotheses, streams(references)).score:.5f}" == f"{100 * expected:.5f}"
