"""L = L_NAT + L_MIST + length loss (equations 2-4 and the paper's footnote 1), as sums over target tokens."""

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from fairseq.logging import metrics
from torch import Tensor

from mist_fairseq.mist.encoder import row_chunks

MIST_TARGETS = ["pseudo", "reference", "random"]


@dataclass
class MistLossConfig(FairseqDataclass):
    """The paper's training objective."""

    glancing_ratio: float = field(
        default=0.5, metadata={"help": "reveal this share of the number of wrong tokens (GLAT); 0 turns it off"}
    )
    mist_loss_factor: float = field(
        default=1.0, metadata={"help": "weight of the MIST loss; 0 is the paper's 'no mixing' and skips its pass"}
    )
    mist_targets: ChoiceEnum(MIST_TARGETS) = field(  # type: ignore[valid-type]
        default="pseudo",
        metadata={
            "help": "what is mixed into the source: the model's own output (the paper's MIST), the reference or random "
            "tokens (ablations)"
        },
    )
    length_loss_factor: float = field(default=1.0, metadata={"help": "weight of the length loss"})
    label_smoothing: float = field(default=0.1, metadata={"help": "probability mass spread over the vocabulary"})


class _SmoothedNLL(torch.autograd.Function):
    """Sum over rows of (1 - e) * nll + e * mean over the vocabulary of -log p, and of nll alone.

    Rows are taken a few at a time, so that no fp32 copy of the logits exists: on a CPU that is several times faster
    than separate operations over all of them.
    """

    @staticmethod
    def forward(ctx, logits, target, smoothing):
        nll = logits.new_empty(len(logits), dtype=torch.float32)
        uniform = torch.empty_like(nll)
        for rows in row_chunks(logits):
            log_p = logits[rows].float().log_softmax(-1)
            nll[rows] = -log_p.gather(1, target[rows, None])[:, 0]
            uniform[rows] = -log_p.mean(-1)
        ctx.save_for_backward(logits, target)
        ctx.smoothing = smoothing
        plain = nll.sum()
        ctx.mark_non_differentiable(plain)
        # Not 0 * uniform without smoothing: that is infinite where a token is impossible.
        return ((1 - smoothing) * nll + smoothing * uniform if smoothing else nll).sum(), plain

    @staticmethod
    def backward(ctx, grad_loss, _):
        logits, target = ctx.saved_tensors
        gradient = torch.empty_like(logits)
        for rows in row_chunks(logits):
            # d/dx of -(1 - e) log p(y) - e mean log p = p - (1 - e) [x is y] - e / V
            part = logits[rows].float().softmax(-1)
            part -= ctx.smoothing / logits.shape[1]
            part.scatter_add_(1, target[rows, None], part.new_full((len(part), 1), ctx.smoothing - 1))
            gradient[rows] = part.mul_(grad_loss)
        return gradient, None, None


def smoothed_nll(logits: Tensor, target: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """Label-smoothed and plain negative log-likelihood, each summed, computed in fp32.

    Args:
        logits: *Shape:* (N, V), any precision; their gradient has the same.
        target: *Shape:* (N).
        smoothing: mass spread evenly over all V tokens.

    Returns:
        The loss, and the plain negative log-likelihood without a gradient.
    """
    return _SmoothedNLL.apply(logits, target, smoothing)


@register_criterion("mist_loss", dataclass=MistLossConfig)
class MistLoss(FairseqCriterion):
    """Everything is a sum over target tokens and the sample size is their number.

    fairseq divides the summed gradient by ONE sum of sample sizes. A sentence's length loss therefore counts once
    for each of its tokens, and a batch gives the gradients of its parts, however it is split.
    """

    def __init__(
        self, task, glancing_ratio, mist_loss_factor, length_loss_factor, label_smoothing, mist_targets="pseudo"
    ):
        super().__init__(task)
        if not 0 <= glancing_ratio <= 1:
            raise ValueError(f"--glancing-ratio is {glancing_ratio}, expected a number from 0 to 1")
        if not 0 <= label_smoothing < 1:
            raise ValueError(
                f"--label-smoothing is {label_smoothing}, expected a number from 0 up to, not including, 1"
            )
        if min(mist_loss_factor, length_loss_factor) < 0:
            raise ValueError("--mist-loss-factor and --length-loss-factor must not be negative")
        self.glancing_ratio = glancing_ratio
        self.mist_loss_factor = mist_loss_factor
        self.length_loss_factor = length_loss_factor
        self.label_smoothing = label_smoothing
        self.mist_targets = str(mist_targets)
        if self.mist_targets not in MIST_TARGETS:
            raise ValueError(f"--mist-targets is {mist_targets}, expected one of {', '.join(MIST_TARGETS)}")

    def forward(self, model, sample, reduce=True):
        """Returns loss (a sum), sample size (target tokens) and logging outputs (sums)."""
        inputs = sample["net_input"]
        mixing = self.mist_loss_factor > 0
        output = model(**inputs, glancing_ratio=self.glancing_ratio, mixing=mixing, mist_targets=self.mist_targets)
        target = inputs["target_tokens"].flatten().index_select(0, inputs["target_index"])
        lengths = inputs["target_lengths"]

        loss, nll = smoothed_nll(output["nat_logits"], target, self.label_smoothing)
        logging = {
            "nat_loss": loss.detach(),
            "nll_loss": nll,
            "correct": (output["nat_tokens"] == target).sum(),
        }
        if mixing:
            mist_loss, _ = smoothed_nll(output["mist_logits"], target, self.label_smoothing)
            loss = loss + self.mist_loss_factor * mist_loss
            logging["mist_loss"] = mist_loss.detach()
            logging["mist_correct"] = (output["mist_tokens"] == target).sum()
        length_logits = output["length_logits"]
        length_loss = (F.cross_entropy(length_logits, lengths, reduction="none") * lengths).sum()
        loss = loss + self.length_loss_factor * length_loss
        logging.update(
            loss=loss.detach(),
            length_loss=length_loss.detach(),
            length_correct=(length_logits.detach().argmax(-1) == lengths).sum(),
            revealed=output["revealed"],
            ntokens=sample["ntokens"],
            nsentences=sample["nsentences"],
            sample_size=sample["ntokens"],
        )
        return loss, sample["ntokens"], logging

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
        metrics.log_scalar("revealed", total("revealed") / tokens, tokens, round=3)
        metrics.log_scalar("accuracy", total("correct") / tokens, tokens, round=3)
        if any("mist_correct" in log for log in logging_outputs):
            metrics.log_scalar("mist_accuracy", total("mist_correct") / tokens, tokens, round=3)
        metrics.log_scalar("length_accuracy", total("length_correct") / sentences, sentences, round=3)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        """All logging outputs are sums."""
        return True
