"""What training asks of a target, and the paper's answer: a fixed length, each token at its own position.

The other answer is ``mist.dag``'s. Dimensions as in ``mist.encoder``.
"""

from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from mist_fairseq.mist.batch import Batch, Guess
from mist_fairseq.mist.config import SpecialTokens
from mist_fairseq.mist.copying import Copies, copies_of
from mist_fairseq.mist.order import likeliest_order
from mist_fairseq.mist.output_layer import OutputLayer, TokenLoss, logits_of, predicted_tokens, token_loss
from mist_fairseq.mist.packing import padding_mask, unpack

if TYPE_CHECKING:
    from mist_fairseq.mist.encoder import SourceState, TwoPasses


class Targets(Protocol):
    """How a batch's targets stand in the target pass."""

    masks: Tensor  #: what the target pass gets where nothing is revealed, *Shape:* (B, its positions)

    def learn(self, tokens: Tensor, source: "SourceState", smoothing: float) -> tuple[TokenLoss, Guess]:
        """The loss of a target pass over *tokens*, shaped as ``masks``, and what it predicts."""

    def guess(self, tokens: Tensor, source: "SourceState") -> Guess:
        """What it predicts, without a gradient."""

    def place(self, target: Tensor, guess: Guess) -> Tensor:
        """Where a guess puts a target's tokens, some of them [MASK]. *Shapes:* (B, T) -> as ``masks``."""

    def mixed_index(self, lengths: Tensor, size: int) -> Tensor:
        """Flat positions to compute in mixed sources of some lengths. *Shapes:* (B) -> (N_M), into B * *size*."""


class FixedLength:
    """A target's tokens at as many positions (the paper's equation 1), masked ones in *any_order* (``mist.order``)."""

    def __init__(self, model: "TwoPasses", batch: Batch, special: SpecialTokens, any_order: bool):
        self.model, self.batch, self.special, self.any_order = model, batch, special, any_order
        self.gold, T = batch.targets(), batch.target_tokens.shape[1]
        self.masks = batch.target_tokens.masked_fill(padding_mask(batch.target_lengths, T), special.mask)

    def learn(self, tokens: Tensor, source: "SourceState", smoothing: float) -> tuple[TokenLoss, Guess]:
        """See ``Targets.learn``."""
        layer, copies = self._look(tokens, source)
        gold = self._ordered(tokens, layer, copies) if self.any_order else self.gold
        loss = token_loss(layer, gold, smoothing, self.special.never_predicted, copies)
        return loss, self._in_place(loss.tokens)

    def guess(self, tokens: Tensor, source: "SourceState") -> Guess:
        """See ``Targets.guess``."""
        layer, copies = self._look(tokens, source)
        return self._in_place(predicted_tokens(layer, self.special.never_predicted, copies))

    def place(self, target: Tensor, guess: Guess) -> Tensor:
        """See ``Targets.place``."""
        return target

    def mixed_index(self, lengths: Tensor, size: int) -> Tensor:
        """See ``Targets.mixed_index``; a GPU would wait for the lengths, the collater knows what is enough."""
        return self.batch.mixed_index

    def _look(self, tokens: Tensor, source: "SourceState") -> tuple[OutputLayer, Copies | None]:
        index = self.batch.target_index
        hidden = self.model.decode_target(tokens, self.batch.target_lengths, index, source)
        return self.model.output_layer(hidden), copies_of(self.model, hidden, index, tokens.shape[1], source)

    def _ordered(self, tokens: Tensor, layer: OutputLayer, copies: Copies | None) -> Tensor:
        """What to learn of each position: the final [SEP] and what is revealed stay in place. -> (N)."""
        target, index = self.batch.target_tokens, self.batch.target_index
        B, T = target.shape
        logits = unpack(logits_of(layer, target[index // T], copies), index, B, T)
        free = (tokens == self.special.mask) & (target != self.special.sep)
        return likeliest_order(logits, target, free).flatten().index_select(0, index)

    def _in_place(self, tokens: Tensor) -> Guess:
        """*Shape:* (N)."""
        target = self.batch.target_tokens
        filled = torch.full_like(target, self.special.pad)
        filled.view(-1)[self.batch.target_index] = tokens
        return Guess(filled, self.batch.target_lengths, filled, torch.arange(target.shape[1], device=target.device))
