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
    """What each target position may copy: each source position's score, token, and where that token stands first.

    *Shapes:* (N, S) each; scores are in fp32, and -inf at padding.
    """

    scores: Tensor
    tokens: Tensor
    first: Tensor

    def rows(self, rows: slice | Tensor) -> "Copies":
        """Those of some target positions."""
        return Copies(self.scores[rows], self.tokens[rows], self.first[rows])


class CopyHead(Linear):
    """Scores source positions by the product of a target position's query with their last hidden states."""

    def __init__(self, hidden_size: int):
        super().__init__(hidden_size, hidden_size)

    def copies(self, hidden: Tensor, index: Tensor, T: int, source: "SourceState") -> Copies:
        """Score all source positions.

        Args:
            hidden: last hidden states of target positions, *Shape:* (N, D).
            index: their flat positions, *Shape:* (N), into B * *T*.
            T: target positions of a sentence.
            source: the sentences' source state.
        """
        B, S, D = source.hidden.shape
        queries = unpack(self(hidden), index, B, T)
        scores = (queries @ source.hidden.transpose(1, 2)).float() * D**-0.5  # (B, T, S)
        scores = scores.masked_fill(~padding_mask(source.lengths, S)[:, None], float("-inf"))
        first = (source.tokens[:, :, None] == source.tokens[:, None]).int().argmax(2)
        sentence = index // T
        return Copies(pack(scores, index), source.tokens[sentence], first[sentence])


def copies_of(model: Any, hidden: Tensor, index: Tensor, T: int, source: "SourceState") -> Copies | None:
    """What a model's target positions may copy; None without a copy head. Arguments as of ``CopyHead.copies``."""
    head: CopyHead | None = getattr(model, "copy_head", None)
    return None if head is None else head.copies(hidden, index, T, source)


def add_copies_(logits: Tensor, copies: Copies) -> tuple[Tensor, Tensor]:
    """Make the *logits* (N, V) those of choosing or copying.

    Returns:
        How much of each source token's odds is the choice, and how much is each place's copy. *Shapes:* (N, S) each.
    """
    scores, tokens, first = copies
    highest = scores.amax(1, keepdim=True)
    odds = (scores - highest).exp()
    together = torch.zeros_like(odds).scatter_add(1, first, odds).gather(1, first)  # of the same token's places
    chosen = logits.gather(1, tokens).float()
    either = torch.logaddexp(chosen, together.clamp(min=torch.finfo(odds.dtype).tiny).log() + highest)
    logits.scatter_(1, tokens, either.to(logits.dtype))
    return (chosen - either).exp(), (scores - either).exp()
