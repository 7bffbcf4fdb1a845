"""ROUGE of the PyPI package ``rouge``, which the authors' evaluation calls for XSum: no stemming, sets of n-grams."""

from sacrebleu.metrics.base import Score

from mist_fairseq.extras import install_line
from mist_fairseq.scoring.summed import SummedMetric

MOST = 2**22  # pairs of words; some 100 bytes each


class RougePackage(SummedMetric):
    """Mean F-measure of the sentences in percent, with sacrebleu's interface. Tokens stand between spaces.

    ROUGE-L is the package's own, over what stands between periods. An output without a word scores 0, where the package
    raises an error; of several references the best counts.

    Args:
        kind: ``rouge-1``, ``rouge-2`` or ``rouge-l``.

    Raises:
        ImportError: the package is not installed; says how to install it.
        RuntimeError: texts are so long that its table of words by words would not fit.
    """

    def __init__(self, kind: str):
        super().__init__()
        try:
            from rouge import Rouge
        except ModuleNotFoundError as error:
            raise ImportError(f"{kind} of the package rouge needs it: {install_line('scores')}") from error
        self.kind, self._rouge = kind, Rouge(metrics=[kind])

    def _extract_reference_info(self, refs):
        return {"references": refs}

    def _compute_segment_statistics(self, hypothesis, ref_kwargs):
        references = [text for text in ref_kwargs["references"] if text.replace(".", "").split()]
        if not references or not hypothesis.replace(".", "").split():
            return [0.0, 1]
        largest = len(hypothesis.split()) * max(len(text.split()) for text in references)
        if largest > MOST:
            raise RuntimeError(f"the package rouge would need a table of {largest:,} pairs of words: use rouge155")
        return [max(self._rouge.get_scores(hypothesis, text)[0][self.kind]["f"] for text in references), 1]

    def _compute_score_from_stats(self, stats):
        total, sentences = stats
        return Score(self.kind.upper(), 100 * float(total) / float(sentences))
