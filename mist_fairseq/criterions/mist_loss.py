"""``--criterion mist_loss``: options in, the loss of ``mist.objective`` and its logging out."""

import math
from dataclasses import dataclass, fields

import torch
from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from fairseq.logging import metrics
from torch import Tensor

from mist_fairseq.generate.decoding import option
from mist_fairseq.mist.batch import Batch
from mist_fairseq.mist.objective import GLANCING_BY, LENGTH_LOSS_PER, MIST_TARGETS, Objective

_LOSSES = ["loss", "nat_loss", "mist_loss", "length_loss", "nll_loss"]
_SHARES = {"revealed": "revealed", "correct": "accuracy", "mist_correct": "mist_accuracy"}  # of tokens: as logged


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
    glancing_by: ChoiceEnum(GLANCING_BY) = option(  # type: ignore[valid-type]
        "first-look", "whose wrong tokens glancing counts; mist, that of the MIST pass, is the authors' code's"
    )
    length_loss_per: ChoiceEnum(LENGTH_LOSS_PER) = option(  # type: ignore[valid-type]
        "token",
        "what a length loss counts for: each token of its sentence, or a sentence, as in the authors' code, whose "
        "gradients depend on how a batch is split",
    )
    order_agnostic_from: int = option(
        0,
        "after so many updates learn masked tokens in the order that the model finds likeliest (OAXE): for the last "
        "tenth of a training; 0: never",
    )
    label_smoothing: float = option(0.1, "probability mass spread over the vocabulary")


@register_criterion("mist_loss", dataclass=MistLossConfig)
class MistLoss(FairseqCriterion):
    """The paper's loss, a sum over target tokens; the sample size is their number."""

    def __init__(self, cfg: MistLossConfig, task):
        super().__init__(task)
        # An option that is newer than a checkpoint has its default.
        said = {name.name: getattr(cfg, name.name) for name in fields(Objective) if hasattr(cfg, name.name)}
        self.objective = Objective(**said)

    def forward(self, model, sample, reduce=True):
        """Returns loss (a sum), sample size (target tokens) and logging outputs (sums)."""
        predictions = model(**sample["net_input"], objective=self.objective)
        loss, logging = self.objective.losses(predictions, Batch(**sample["net_input"]))
        tokens = sample["ntokens"]
        return loss, tokens, {**logging, "ntokens": tokens, "nsentences": sample["nsentences"], "sample_size": tokens}

    @staticmethod
    def reduce_metrics(logging_outputs) -> None:
        """Log losses in base 2 and a token, as fairseq does, and the shares of revealed and correct tokens."""
        sums = _sums(logging_outputs, ["ntokens", "nsentences", "length_correct", *_LOSSES, *_SHARES])
        tokens, sentences = sums.get("ntokens", 0), sums.get("nsentences", 0)
        if tokens == 0:
            return
        for key in _LOSSES:
            if key in sums:
                metrics.log_scalar(key, sums[key] / tokens / math.log(2), tokens, round=3)
        for key, name in _SHARES.items():
            if key in sums:
                metrics.log_scalar(name, sums[key] / tokens, tokens, round=3)
        metrics.log_scalar("length_accuracy", sums["length_correct"] / sentences, sentences, round=3)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        """All logging outputs are sums."""
        return True


def _sums(logging_outputs: list[dict], names: list[str]) -> dict[str, float]:
    """The sum of each number that is there; those on a GPU come in one copy."""
    sums: dict[str, Tensor] = {}
    for log in logging_outputs:
        for name in log.keys() & set(names):
            sums[name] = sums.get(name, 0) + torch.as_tensor(log[name]).double()
    remote = {name: value for name, value in sums.items() if value.is_cuda}
    values = torch.stack(list(remote.values())).tolist() if remote else []
    return {name: float(value) for name, value in (sums | dict(zip(remote, values))).items()}
