"""The two passes in PyTorch as it is."""

from collections.abc import Callable
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from mist_fairseq.engines import register
from mist_fairseq.mist.config import SpecialTokens
from mist_fairseq.mist.copying import add_copies_, copies_of
from mist_fairseq.mist.encoder import SourceState
from mist_fairseq.mist.heads import likeliest_with_scores
from mist_fairseq.mist.kernels import row_chunks
from mist_fairseq.mist.packing import real_positions, unpack

_ROWS = 512  # whose logits there are at a time


class PyTorchState:
    """An encoded source.

    Args:
        source: keys, values and hidden states.
        score_lengths: what scores the lengths of a source state, when they are asked for.
    """

    def __init__(self, source: SourceState, score_lengths: Callable[[SourceState], Tensor]):
        self.source, self._score_lengths = source, score_lengths

    @cached_property
    def length_scores(self) -> Tensor:
        """Logits of each target length, *Shape:* (B, classes)."""
        return self._score_lengths(self.source)

    def select(self, rows: Tensor) -> "PyTorchState":
        """The state of the sentences *rows* (repeats allowed), *Shape:* (B')."""
        return PyTorchState(self.source.select(rows), self._score_lengths)


@register("none", ("fp32", "bf16"))
class PyTorchEngine:
    """Runs a model's passes where its weights are.

    Args:
        model: an ``Encoder`` or ``EncoderDecoder`` in evaluation mode.
        special: ids of the special tokens.
        precision: ``fp32`` or ``bf16``.
        convert: with bf16, convert the weights of matrix products once and for all: autocast would read and round all
            of them anew for every batch. The results are the same. Not for a model that is being trained.
    """

    def __init__(self, model: Any, special: SpecialTokens, precision: str, convert: bool = True):
        self.device = next(model.parameters()).device
        self.special = special
        self.bf16 = precision == "bf16"
        if self.bf16 and convert:
            model.keep_in_(torch.bfloat16)
        self.encode_source, self.decode_target = model.encode_source, model.decode_target
        self.length_logits, self.token_logits = model.length_logits, model.token_logits
        self.copies = partial(copies_of, model)
        self.graph = getattr(model.config, "graph", None)
        self.edges: Any = getattr(model, "edges", None)

    def asarray(self, values: Any) -> Tensor:
        """A tensor on the engine's device."""
        tensor = values if isinstance(values, Tensor) else torch.as_tensor(values, device="cpu")
        return tensor.to(self.device, non_blocking=self.device.type == "cuda")  # a copy to a GPU need not wait for it

    @torch.no_grad()
    def encode(self, tokens: Tensor, lengths: Tensor) -> PyTorchState:
        """Encode sources; see ``generate.decoding.Engine``."""
        with self._autocast():
            source = self.encode_source(tokens, lengths, self._positions(lengths, tokens.shape[1]))
        return PyTorchState(source, self._score_lengths)

    @torch.no_grad()
    def fill(
        self,
        tokens: Tensor,
        lengths: Tensor,
        state: PyTorchState,
        second: bool = False,
        allowed: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Predict every [MASK]; see ``generate.decoding.Engine``."""
        index = self._positions(lengths, tokens.shape[1])
        with self._autocast():
            hidden = self.decode_target(tokens, lengths, index, state.source)  # (N, D)
            return self._predict(tokens, index, hidden, state.source, second, allowed)

    @torch.no_grad()
    def fill_graph(self, tokens: Tensor, vertices: Tensor, state: PyTorchState) -> tuple[Tensor, Tensor, Tensor]:
        """Predict every vertex and edge; see ``generate.decoding.Engine``."""
        index = self._positions(vertices, tokens.shape[1])
        with self._autocast():
            hidden = self.decode_target(tokens, vertices, index, state.source)
            edges = self.edges(unpack(hidden, index, *tokens.shape), vertices)
            return *self._predict(tokens, index, hidden, state.source), edges

    def _predict(
        self,
        tokens: Tensor,
        index: Tensor,
        hidden: Tensor,
        source: SourceState,
        second: bool = False,
        allowed: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Tokens and scores of ``fill`` from the last hidden states. *Shapes:* (B, T), (N), (N, D) -> (B, T) each."""
        flat = tokens.flatten()
        masked = flat[index] == self.special.mask
        if not tokens.is_cuda and not masked.all():
            index, hidden, masked = index[masked], hidden[masked], masked[masked]
        copies = self.copies(hidden, index, tokens.shape[1], source)
        found = []
        for rows in row_chunks(hidden, _ROWS):
            logits = self.token_logits(hidden[rows])
            if copies is not None:
                add_copies_(logits, copies.rows(rows))
            found.append(likeliest_with_scores(logits, self.special.never_predicted, second, allowed))
        predicted, scores = map(torch.cat, zip(*found))
        if tokens.is_cuda:
            predicted, scores = torch.where(masked, predicted, flat[index]), scores.masked_fill(~masked, 0.0)
        filled = flat.index_copy(0, index, predicted).view_as(tokens)
        return filled, scores.new_zeros(len(flat)).index_copy(0, index, scores).view_as(tokens)

    @torch.no_grad()
    def _score_lengths(self, source: SourceState) -> Tensor:
        with self._autocast():
            return self.length_logits(source)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16)

    @staticmethod
    def _positions(lengths: Tensor, size: int) -> Tensor:
        """Flat indices of what to compute: the real positions; on a GPU all, as it would wait to learn which are real.

        *Shapes:* (B) -> (N), into B * size.
        """
        if lengths.is_cuda:
            return torch.arange(len(lengths) * size, device=lengths.device)
        return real_positions(lengths, size)
