"""``--criterion mist_loss``: options in, the loss of ``mist.objective`` and its logging out."""

import math
from dataclasses import dataclass, fields

from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from fairseq.logging import metrics

from mist_fairseq.generate.decoding import option
from mist_fairseq.mist.objective import MIST_TARGETS, Batch, Objective


@dataclass
class MistLossConfig(FairseqDataclass):
    """The options of ``mist.objective.Objective``."""

    glancing_ratio: float = option(0.5, "reveal this share of the number of wrong tokens (GLAT); 0 turns it off")
    mist_loss_factor: float = option(1.0, "weight of the MIST loss; 0 is the paper's 'no mixing' and skips its pass")
    mist_targets: ChoiceEnum(MIST_TARGETS) = option(  # type: ignore[valid-type]
        "pseudo",
        "what is mixed into the source: the model's own output (the paper's MIST), the reference or random tokens "
        "(ablations)",
    )
    length_loss_factor: float = option(1.0, "weight of the length loss")
    label_smoothing: float = option(0.1, "probability mass spread over the vocabulary")


@register_criterion("mist_loss", dataclass=MistLossConfig)
class MistLoss(FairseqCriterion):
    """The paper's loss, a sum over target tokens; the sample size is their number."""

    def __init__(self, cfg: MistLossConfig, task):
        super().__init__(task)
        self.objective = Objective(**{name.name: getattr(cfg, name.name) for name in fields(Objective)})

    def forward(self, model, sample, reduce=True):
        """Returns loss (a sum), sample size (target tokens) and logging outputs (sums)."""
        predictions = model(**sample["net_input"], objective=self.objective)
        loss, logging = self.objective.losses(predictions, Batch(**sample["net_input"]))
        tokens = sample["ntokens"]
        return loss, tokens, {**logging, "ntokens": tokens, "nsentences": sample["nsentences"], "sample_size": tokens}

    @staticmethod
    def reduce_metrics(logging_outputs) -> None:
        """Log losses in base 2 and a token, as fairseq does, and the shares of revealed and correct tokens."""

        def total(key):
            return sum(float(log.get(key, 0)) for log in logging_outputs)

        tokens, sentences = total("ntokens"), total("nsentences")
        if tokens == 0:
            return
        for key in ("loss", "nat_loss", "mist_loss", "length_loss", "nll_loss"):
            if any(key in log for log in logging_outputs):
                metrics.log_scalar(key, total(key) / tokens / math.log(2), tokens, round=3)
        for name, key in (("revealed", "revealed"), ("accuracy", "correct"), ("mist_accuracy", "mist_correct")):
            if any(key in log for log in logging_outputs):
                metrics.log_scalar(name, total(key) / tokens, tokens, round=3)
        metrics.log_scalar("length_accuracy", total("length_correct") / sentences, sentences, round=3)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        """All logging outputs are sums."""
        return True
