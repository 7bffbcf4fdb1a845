"""``--scoring rouge`` and ``--scoring meteor15`` for fairseq's own commands.

fairseq's ``--scoring meteor`` is NLTK's, which gives other numbers. Both score lower-cased text as it is printed;
``scripts/score.py`` scores against the raw target file and with the paper's post-processing.
"""

from fairseq.dataclass import FairseqDataclass
from fairseq.scoring import BaseScorer, register_scorer

from mist_fairseq.scoring.meteor15 import Meteor15
from mist_fairseq.scoring.rouge155 import find_script, rouge155
from mist_fairseq.scoring.steps import lower


@register_scorer("rouge", dataclass=FairseqDataclass)
class RougeScorer(BaseScorer):
    """ROUGE-1, -2 and -L of ROUGE-1.5.5; ``score`` is ROUGE-L."""

    def __init__(self, cfg):
        super().__init__(cfg)
        find_script()  # now, not after hours of decoding, it turns out that there is no Perl

    def _all(self):
        return rouge155([lower(text) for text in self.pred], [[lower(text)] for text in self.ref])

    def score(self):
        """Return ROUGE-L, in percent."""
        return self._all()["ROUGE-L"].score

    def result_string(self):
        """Return all three with the script's confidence intervals."""
        scores = self._all().items()
        return ", ".join(f"{kind} = {rouge.score:.2f} ({rouge.low:.2f} - {rouge.high:.2f})" for kind, rouge in scores)


@register_scorer("meteor15", dataclass=FairseqDataclass)
class Meteor15Scorer(BaseScorer):
    """METEOR 1.5."""

    def __init__(self, cfg):
        super().__init__(cfg)
        self._metric = Meteor15()

    def score(self):
        """Return METEOR, in percent."""
        hypotheses, references = ([lower(text) for text in texts] for texts in (self.pred, self.ref))
        return self._metric.corpus_score(hypotheses, [references]).score

    def result_string(self):
        """Return METEOR with its version."""
        return f"METEOR 1.5 = {self.score():.2f}"
