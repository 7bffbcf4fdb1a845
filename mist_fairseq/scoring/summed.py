"""What our metrics share beside sacrebleu's interface."""

from sacrebleu.metrics.base import Metric


class SummedMetric(Metric):
    """A metric whose statistics of a corpus are the sums of its sentences'; it takes texts as they are."""

    def _preprocess_segment(self, sent):
        return sent

    def _aggregate_and_compute(self, stats):
        return self._compute_score_from_stats([sum(column) for column in zip(*stats)])
