"""What BLEU hides: how near outputs are to their sources. Metrics with sacrebleu's interface.

The source stands before the references. Copying it scores BLEU-4 32.6 on Quora's test set, above most models.
"""

from functools import partial
from typing import Any

from sacrebleu.metrics import BLEU
from sacrebleu.metrics.base import Metric, Score

from mist_fairseq.scoring.summed import SummedMetric

# As in the question-generation script: tokens stand between spaces, no smoothing.
_WORDS: dict[str, Any] = {"tokenize": "none", "smooth_method": "none", "force": True}
WORD_BLEU = partial(BLEU, **_WORDS)
ALPHA = 0.8


class SourceBleu(BLEU):
    """BLEU-4 against the source, "self-BLEU" in papers on paraphrases: the lower, the less is copied."""

    def __init__(self):
        super().__init__(**_WORDS)

    def _extract_reference_info(self, refs):
        return super()._extract_reference_info(refs[:1])


class IBleu(SummedMetric):
    """α BLEU-4 against the references - (1 - α) BLEU-4 against the source, α = 0.8 (Sun and Zhou 2012)."""

    def __init__(self):
        super().__init__()
        self._bleu = WORD_BLEU()

    def _extract_reference_info(self, refs):
        source, *references = refs
        return {"both": [self._bleu._extract_reference_info(texts) for texts in (references, [source])]}

    def _compute_segment_statistics(self, hypothesis, ref_kwargs):
        given = ref_kwargs["both"]
        return [number for each in given for number in self._bleu._compute_segment_statistics(hypothesis, each)]

    def _compute_score_from_stats(self, stats):
        half = len(stats) // 2
        right, copied = (self._bleu._compute_score_from_stats(part).score for part in (stats[:half], stats[half:]))
        return Score("iBLEU", ALPHA * right - (1 - ALPHA) * copied)


class Copies(SummedMetric):
    """The share of outputs that equal their sources, in percent."""

    def _extract_reference_info(self, refs):
        return {"source": refs[0].split()}

    def _compute_segment_statistics(self, hypothesis, ref_kwargs):
        return [hypothesis.split() == ref_kwargs["source"], 1]

    def _compute_score_from_stats(self, stats):
        found, all_of_them = map(float, stats)
        return Score(type(self).__name__, 100 * found / all_of_them if all_of_them else 0.0)


class Novel(Copies):
    """The share of the outputs' n-grams that their sources do not have (See et al. 2017), in percent."""

    def __init__(self, n: int):
        super().__init__()
        self._n = n

    def _compute_segment_statistics(self, hypothesis, ref_kwargs):
        made, known = ngrams(hypothesis.split(), self._n), set(ngrams(ref_kwargs["source"], self._n))
        return [sum(gram not in known for gram in made), len(made)]


class Distinct(Metric):
    """Different n-grams of all outputs over all n-grams (Li et al. 2016), in percent. It has no bootstrap interval."""

    def __init__(self, n: int):
        super().__init__()
        self._n = n

    def _preprocess_segment(self, sent):
        return sent

    def _extract_reference_info(self, refs):
        return {}

    def _compute_segment_statistics(self, hypothesis, ref_kwargs):
        return ngrams(hypothesis.split(), self._n)

    def _aggregate_and_compute(self, stats):
        made = [gram for sentence in stats for gram in sentence]
        return Score("Distinct", 100 * len(set(made)) / len(made) if made else 0.0)

    def _compute_score_from_stats(self, stats):
        raise NotImplementedError("numbers of different n-grams do not add up")


def ngrams(words: list[str], n: int) -> list[tuple[str, ...]]:
    """All runs of *n* words."""
    return list(zip(*(words[i:] for i in range(n))))
