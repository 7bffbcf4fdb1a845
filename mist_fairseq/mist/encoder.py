"""The encoder as a source pass and a target pass.

In the paper's attention mask ("Model Architecture", Figure 1) target positions see source and target, source
positions see only the source. One masked pass over ``[CLS] X [SEP] Y_M`` therefore equals two: ``encode_source``
computes the source and keeps each layer's keys and values (the *source state*), ``decode_target`` runs the target
rows over ``[source; target]``. Nothing masked is computed, and every use in training and decoding is made of these
two calls.

Batches are ragged. Everything but the attention itself runs on packed rows, the real positions only, so padding costs
next to nothing and batches need not be sorted by target length.

Dimensions: B sentences, S source and T target positions, D hidden size, H heads, d = D / H, V vocabulary, N real
positions of a batch.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mist_fairseq.mist.config import EncoderConfig
from mist_fairseq.mist.copying import CopyHead
from mist_fairseq.mist.dag import TransitionHead
from mist_fairseq.mist.heads import LengthHead, MaskedLMHead
from mist_fairseq.mist.kernels import added_mask, computing_dtype, dropout
from mist_fairseq.mist.layers import Layer, initialise_as_bert, relative_position_bucket, rotary_turns
from mist_fairseq.mist.output_layer import OutputLayer
from mist_fairseq.mist.packing import pack, padding_mask, unpack


@dataclass
class SourceState:
    """What the target pass needs of an encoded source (the paper's cached keys and values).

    Attributes:
        keys, values: one per layer, *Shape:* (B, H, S, d).
        hidden: last layer, *Shape:* (B, S, D).
        lengths: real tokens, *Shape:* (B).
        tokens: *Shape:* (B, S).
    """

    keys: list[Tensor]
    values: list[Tensor]
    hidden: Tensor
    lengths: Tensor
    tokens: Tensor

    def select(self, index: Tensor) -> "SourceState":
        """The state of the sentences *index* (repeats allowed), *Shape:* (B')."""
        return SourceState(
            [key.index_select(0, index) for key in self.keys],
            [value.index_select(0, index) for value in self.values],
            self.hidden.index_select(0, index),
            self.lengths.index_select(0, index),
            self.tokens.index_select(0, index),
        )


class TwoPasses(Protocol):
    """What training and generation ask of a model: ``Encoder`` has it, and ``EncoderDecoder``."""

    training: bool
    config: Any  #: with ``vocab_size``

    def encode_source(self, tokens: Tensor, lengths: Tensor, index: Tensor) -> SourceState:
        """Run the source rows; see ``Encoder.encode_source``."""

    def decode_target(self, tokens: Tensor, lengths: Tensor, index: Tensor, source: SourceState) -> Tensor:
        """Run the target rows; see ``Encoder.decode_target``."""

    def length_logits(self, source: SourceState) -> Tensor:
        """Score each target length. -> (B, classes)."""

    def token_logits(self, hidden: Tensor) -> Tensor:
        """Score each token. *Shapes:* (N, D) -> (N, V)."""

    def output_layer(self, hidden: Tensor) -> OutputLayer:
        """What gives ``token_logits``, for training. *Shape:* (N, D)."""


class Encoder(nn.Module):
    """Embeddings, layers, length classifier, masked-LM head, maybe a copy head or paths, initialised as BERT is."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.config = config
        self.checkpoint_activations = False  # in training, compute the layers again for the backward pass
        size = config.embedding_size or config.hidden_size
        norm = partial(nn.LayerNorm, eps=config.layer_norm_eps, bias=not config.without_biases)
        self.word_embeddings = nn.Embedding(config.vocab_size, size)
        self.position_embeddings = None if config.rotary_base else nn.Embedding(config.max_positions, size)
        self.type_embeddings = nn.Embedding(config.token_types, size)
        self.embedding_norm = norm(size)
        self.embedding_projection = nn.Linear(size, config.hidden_size) if config.embedding_size else None
        self.relative_bias = (
            nn.Linear(config.rel_pos_bins, config.heads, bias=False) if config.rel_pos_bins > 0 else None
        )
        self.layers: Any = nn.ModuleList(Layer(config, i) for i in range(1 if config.shared_layers else config.layers))
        self.final_norm = norm(config.hidden_size) if config.pre_norm else None
        self.length_head = LengthHead(config.hidden_size, config.length_classes)
        self.head = MaskedLMHead(config)
        self.copy_head = CopyHead(config.hidden_size, not config.without_biases) if config.copy_head else None
        self.transition_head = TransitionHead(config) if config.head == "dag" else None
        self.apply(initialise_as_bert)
        if self.head.weight is not None:
            self.head.weight.data.copy_(self.word_embeddings.weight.data)

    def encode_source(self, tokens: Tensor, lengths: Tensor, index: Tensor) -> SourceState:
        """Run the source rows, which see only the source.

        Args:
            tokens: ``[CLS] X [SEP]``, right-padded, *Shape:* (B, S).
            lengths: real tokens of each, *Shape:* (B).
            index: flat positions to compute, at least the real ones, *Shape:* (N), into B * S.
        """
        B, S = tokens.shape
        positions = torch.arange(S, device=tokens.device)[None]  # (1, S)
        masks = self._masks(padding_mask(lengths, S), positions, positions)
        x, keys, values = self._run(tokens, positions, self.config.source_type, masks, index, None)
        return SourceState(keys, values, unpack(x, index, B, S), lengths, tokens)

    def decode_target(self, tokens: Tensor, lengths: Tensor, index: Tensor, source: SourceState) -> Tensor:
        """Run the target rows, which see source and target. Positions go on after each source's real length.

        Args:
            tokens: the target, partly or wholly [MASK], right-padded, *Shape:* (B, T).
            lengths: real tokens of each, *Shape:* (B).
            index: flat positions of the real tokens, *Shape:* (N), into B * T.
            source: the same sentences' source state.

        Returns:
            Last hidden states at *index*, *Shape:* (N, D).
        """
        T, S = tokens.shape[1], source.hidden.shape[1]
        positions = source.lengths[:, None] + torch.arange(T, device=tokens.device)
        positions = positions.clamp(max=self.config.max_positions - 1)  # only padding can run over the last one
        real = torch.cat([padding_mask(source.lengths, S), padding_mask(lengths, T)], dim=1)  # (B, S + T)
        source_positions = torch.arange(S, device=tokens.device).expand(len(tokens), S)
        masks = self._masks(real, positions, torch.cat([source_positions, positions], dim=1))
        x, _, _ = self._run(tokens, positions, self.config.target_type, masks, index, source)
        return x

    def length_logits(self, source: SourceState) -> Tensor:
        """Score each target length, the final [SEP] counted, from the mean over the source. -> (B, classes)."""
        scores: Tensor = self.length_head(source.hidden, source.lengths)
        return scores

    def edges(self, hidden: Tensor, vertices: Tensor) -> Tensor:
        """Log-probabilities of a graph's edges; see ``mist.dag.TransitionHead``. ValueError: it has no paths."""
        if self.transition_head is None:
            raise ValueError("the model has no paths: it was trained without --head dag")
        log_p: Tensor = self.transition_head(hidden, vertices)
        return log_p

    def token_logits(self, hidden: Tensor) -> Tensor:
        """Score each token. *Shapes:* (N, D) -> (N, V), in the precision of the computation."""
        return F.linear(*self.output_layer(hidden))

    def output_layer(self, hidden: Tensor) -> OutputLayer:
        """The head's last product. *Shape:* (N, D)."""
        weight = self.word_embeddings.weight if self.head.weight is None else self.head.weight
        return OutputLayer(self.head(hidden), weight, self.head.bias)

    def keep_in_(self, precision: torch.dtype) -> None:
        """Convert the weights of matrix products, for inference under autocast to *precision*."""
        keep_linear_in_(self, precision)
        head = self.head
        weight = self.word_embeddings.weight if head.weight is None else head.weight
        head.weight, head.bias = (nn.Parameter(data.detach().to(precision)) for data in (weight, head.bias))

    def _run(
        self,
        tokens: Tensor,
        positions: Tensor,
        token_type: int,
        masks: tuple[Tensor, Tensor],
        index: Tensor,
        source: SourceState | None,
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Embeddings and layers.

        Args:
            tokens: *Shape:* (B, L).
            positions: *Shape:* (B or 1, L).
            token_type: of all of them.
            masks: of ``_masks``.
            index: flat positions to compute, *Shape:* (N), into B * L.
            source: seen beside the rows themselves.

        Returns:
            Last hidden states at *index* (N, D), and without *source* each layer's keys and values, (B, H, L, d).
        """
        shape = B, L = tokens.shape
        packed_tokens, packed_positions = (
            pack(part.expand(B, L)[:, :, None], index)[:, 0] for part in (tokens, positions)
        )
        x = self.word_embeddings(packed_tokens)  # (N, D)
        if self.position_embeddings is not None:
            x = x + self.position_embeddings(packed_positions)
        x = x + self.type_embeddings(torch.full_like(packed_tokens, token_type))
        x = dropout(self.embedding_norm(x), self.config.dropout, self.training)
        if self.embedding_projection is not None:
            x = self.embedding_projection(x)
        bases = (self.config.rotary_base, self.config.local_rotary_base)
        size = self.config.hidden_size // self.config.heads
        turns = [rotary_turns(positions, size, base) if base else None for base in bases]
        again = self.checkpoint_activations and torch.is_grad_enabled()
        keys, values = [], []
        for i in range(self.config.layers):
            layer = self.layers[0 if self.config.shared_layers else i]
            seen = () if source is None else (source.keys[i], source.values[i])
            run = partial(checkpoint, layer, use_reentrant=False) if again else layer
            local = int(layer.is_local)  # torch.compile indexes by no bool
            x, key, value = run(x, index, masks[local], shape, turns[local], *seen)
            if source is None:
                if again or not torch.is_grad_enabled():  # a copy: they are parts of a tensor with queries
                    key, value = torch.stack([key, value])
                keys.append(key)
                values.append(value)
        return x if self.final_norm is None else self.final_norm(x), keys, values

    def _masks(self, real: Tensor, queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Attention masks of layers that see all and of local ones, for ``attend``.

        They hide what is not *real*, and have UniLM's and MPNet's relative position bias.

        *Shapes:* real (B, K), queries (B or 1, L) and keys (B or 1, K) positions -> (B, 1 or H, 1 or L, K).
        """
        visible, dtype = real[:, None, None], computing_dtype(self.word_embeddings.weight)
        if self.relative_bias is None and not self.config.local_window:
            everywhere = added_mask(visible, dtype)
            return everywhere, everywhere
        relative = keys[:, None, :] - queries[:, :, None]  # (B or 1, L, K)
        if self.relative_bias is None:
            near = visible & (relative.abs() <= self.config.local_window)[:, None]
            near = near | ~near.any(-1, keepdim=True)  # padding that sees nothing would give NaN
            return added_mask(visible, dtype), added_mask(near, dtype)
        bucket = relative_position_bucket(relative, self.config.rel_pos_bins, self.config.max_rel_pos)
        bias = F.embedding(bucket, self.relative_bias.weight.t()).permute(0, 3, 1, 2)  # (B or 1, H, L, K)
        biased = added_mask(bias.masked_fill(~visible, float("-inf")), dtype)
        return biased, biased


def keep_linear_in_(module: nn.Module, precision: torch.dtype) -> None:
    """Convert the weights of all ``nn.Linear`` to what autocast to *precision* would make of them at every use."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            part.to(precision)
