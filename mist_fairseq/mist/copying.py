"""Copying source tokens, beside choosing from the vocabulary.

A target position scores each source position, too. The odds of a token are those of choosing it and of copying it from
each of its places together, as in CopyNet (Gu et al. 2016, equations 4 to 6):

    p(v)  proportional to  exp(logit of v) + sum over source positions s that hold v of exp(score of s)

Dimensions as in ``mist.encoder``.
"""

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from mist_fairseq.mist.kernels import Linear
from mist_fairseq.mist.packing import pack, padding_mask, unpack

if TYPE_CHECKING:
    from mist_fairseq.mist.encoder import SourceState


class Copies(NamedTuple):
    """What each target position may copy.

    Attributes:
        scores: of each source position, in fp32, -inf at padding, *Shape:* (N, S).
        tokens: there, *Shape:* (N, S).
        together: log of the sum of exp(score) over all positions that hold the same token, *Shape:* (N, S).
    """

    scores: Tensor
    tokens: Tensor
    together: Tensor

    def rows(self, rows: slice) -> "Copies":
        """Those of some target positions."""
        return Copies(*(part[rows] for part in self))


class CopyHead(Linear):
    """Scores source positions by the product of a target position's query with their last hidden states."""

    def __init__(self, hidden_size: int, bias: bool = True):
        super().__init__(hidden_size, hidden_size, bias)

    def copies(self, hidden: Tensor, index: Tensor, T: int, source: "SourceState") -> Copies:
        """Score all source positions.

        Args:
            hidden: last hidden states of target positions, *Shape:* (N, D).
            index: their flat positions, *Shape:* (N), into B * *T*.
            T: target positions of a sentence.
            source: the sentences' source state.
        """
        B, S, D = source.hidden.shape
        queries = unpack(self(hidden) * D**-0.5, index, B, T)
        scores = (queries @ source.hidden.transpose(1, 2)).float()  # (B, T, S)
        scores = scores.masked_fill(~padding_mask(source.lengths, S)[:, None], float("-inf"))
        with torch.no_grad(), torch.autocast(scores.device.type, enabled=False):
            highest = scores.amax(2, keepdim=True)
            same = (source.tokens[:, :, None] == source.tokens[:, None]).to(scores.dtype)  # (B, S, S)
            odds = (scores - highest).exp() @ same
            together = odds.clamp(min=torch.finfo(odds.dtype).tiny).log() + highest
        return Copies(pack(scores, index), source.tokens[index // T], pack(together, index))


def copies_of(model: Any, hidden: Tensor, index: Tensor, T: int, source: "SourceState") -> Copies | None:
    """What a model's target positions may copy; None without a copy head. Arguments as of ``CopyHead.copies``."""
    head: CopyHead | None = getattr(model, "copy_head", None)
    return None if head is None else head.copies(hidden, index, T, source)


def add_copies_(logits: Tensor, copies: Copies) -> tuple[Tensor, Tensor]:
    """Make the *logits* (N, V) those of choosing or copying.

    Returns:
        Those of the source's tokens before and after, in fp32. *Shapes:* (N, S) each.
    """
    chosen = logits.gather(1, copies.tokens).float()
    either = torch.logaddexp(chosen, copies.together)
    logits.scatter_(1, copies.tokens, either.to(logits.dtype))
    return chosen, either
