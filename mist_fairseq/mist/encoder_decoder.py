"""Encoder-decoders that fill [MASK]s in one pass, the paper's non-autoregressive baselines: MASS's and BANG's.

Both are an encoder over the source and a decoder with cross-attention, post-LN, on packed rows as in ``encoder``.
``EncoderDecoder`` has the two calls of ``Encoder``, ``encode_source`` and ``decode_target``; what its source state
keeps of the source is the keys and values of each decoder layer's cross-attention.

Dimensions as in ``mist.encoder``.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mist_fairseq.mist.config import EncoderDecoderConfig
from mist_fairseq.mist.encoder import SourceState, keep_linear_in_
from mist_fairseq.mist.heads import LengthHead
from mist_fairseq.mist.kernels import added_mask, computing_dtype, fused_attention
from mist_fairseq.mist.layers import initialise_as_bert, relative_position_bucket
from mist_fairseq.mist.output_layer import OutputLayer
from mist_fairseq.mist.packing import pack, padding_mask, unpack

# Distances in BANG's self-attention: all from MAX_DISTANCE on share the last of the BUCKETS.
BUCKETS, MAX_DISTANCE = 32, 128
Seen = Sequence[Tensor]  # keys and values of the source, (B, H, S, d) each


class Attention(nn.Module):
    """What self- and cross-attention share: attention over padded rows, then output, residual and LayerNorm."""

    def __init__(self, config: EncoderDecoderConfig):
        super().__init__()
        self.heads = config.heads
        self.dropout = config.dropout
        self.attention_dropout = config.attention_dropout
        self.output = nn.Linear(config.hidden_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size)

    def _split(self, rows: Tensor, index: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        """k projections side by side, (N, k * D), at *index* of the padded batch of *mask* -> k times (B, H, L, d)."""
        B, L = mask.shape[0], mask.shape[-1]
        padded = unpack(rows, index, B, L).view(B, L, -1, self.heads, self.output.in_features // self.heads)
        return padded.permute(2, 0, 3, 1, 4).unbind(0)  # of (B, L, k, H, d)

    def _attend(self, x: Tensor, index: Tensor, mask: Tensor, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """*Shapes:* (N, D), (N), broadcastable to (B, H, L, K), (B, H, L, d), twice (B, H, K, d) -> (N, D)."""
        attended = fused_attention(query, key, value, mask, self.attention_dropout if self.training else 0.0)
        attended = self.output(pack(attended.transpose(1, 2).flatten(2), index))
        normed: Tensor = self.norm(x + F.dropout(attended, self.dropout, self.training))
        return normed


class SelfAttention(Attention):
    """Each position of a sequence sees what its mask shows of the sequence."""

    def __init__(self, config: EncoderDecoderConfig):
        super().__init__(config)
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)

    def forward(self, x: Tensor, index: Tensor, mask: Tensor) -> Tensor:
        """Attention, residual and LayerNorm, for packed rows at *index* of a padded batch. -> (N, D).

        *Shapes:* (N, D), (N), and the mask, of ``added_mask``, (B, 1, 1 or L, L).
        """
        return self._attend(x, index, self._mask(x, index, mask), *self._split(self.qkv(x), index, mask))

    def _mask(self, x: Tensor, index: Tensor, mask: Tensor) -> Tensor:
        """What is added to the scores, -inf where nothing is seen. -> broadcastable to (B, H, L, L)."""
        return mask


class RelativeSelfAttention(SelfAttention):
    """BANG's: to a score comes a number for the bucket of the distance, which the query's input gives for each head.

    From ProphetNet (Qi et al. 2020). What it takes as a mask is ``buckets``'.
    """

    def __init__(self, config: EncoderDecoderConfig):
        super().__init__(config)
        self.relative = nn.Linear(config.hidden_size, BUCKETS * config.heads)

    @staticmethod
    def buckets(real: Tensor) -> Tensor:
        """The bucket of each distance, and ``BUCKETS`` where nothing is seen: behind a position, or at padding.

        *Shapes:* where positions are, padded on either side, (B, T) -> (B, 1, T, T).
        """
        columns = torch.arange(real.shape[1], device=real.device)
        # Distances between columns are those between positions.
        distance = (columns - columns[:, None]).clamp(max=0)
        visible = (columns <= columns[:, None]) & real[:, None]  # (B, T, T)
        return relative_position_bucket(distance, 2 * BUCKETS, MAX_DISTANCE).where(visible, BUCKETS)[:, None]

    def _mask(self, x: Tensor, index: Tensor, mask: Tensor) -> Tensor:
        B, T = mask.shape[0], mask.shape[-1]
        relative = unpack(self.relative(x), index, B, T).view(B, T, BUCKETS, self.heads).permute(0, 3, 1, 2)
        relative = F.pad(relative, (0, 1), value=float("-inf"))  # (B, H, T, BUCKETS + 1)
        return relative.gather(3, mask.expand(-1, self.heads, -1, -1))


class CrossAttention(Attention):
    """Each target position sees the encoded source."""

    def __init__(self, config: EncoderDecoderConfig):
        super().__init__(config)
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key_value = nn.Linear(config.hidden_size, 2 * config.hidden_size)

    def keys_values(self, source: Tensor, index: Tensor, mask: Tensor) -> Seen:
        """Of the encoder's last hidden states, *Shapes:* (N, D), (N), (B, 1, 1, S) -> twice (B, H, S, d)."""
        return self._split(self.key_value(source), index, mask)

    def forward(self, x: Tensor, index: Tensor, mask: Tensor, seen: Seen, source_mask: Tensor) -> Tensor:
        """As in ``SelfAttention``, but *seen*, ``keys_values``, where *source_mask* (B, 1, 1, S) shows it."""
        (query,) = self._split(self.query(x), index, mask)
        return self._attend(x, index, source_mask, query, *seen)


class FeedForward(nn.Module):
    """Feed-forward network, residual and LayerNorm."""

    def __init__(self, config: EncoderDecoderConfig):
        super().__init__()
        self.dropout = config.dropout
        self.activation_dropout = config.activation_dropout
        self.inner = nn.Linear(config.hidden_size, config.ffn_size)
        self.outer = nn.Linear(config.ffn_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """*Shape:* (N, D), in and out."""
        inner = F.dropout(F.gelu(self.inner(x)), self.activation_dropout, self.training)
        normed: Tensor = self.norm(x + F.dropout(self.outer(inner), self.dropout, self.training))
        return normed


class Layer(nn.Module):
    """One post-LN layer, in a decoder with cross-attention."""

    def __init__(self, config: EncoderDecoderConfig, self_attention: type[SelfAttention], decoder: bool):
        super().__init__()
        self.self_attention = self_attention(config)
        self.cross_attention = CrossAttention(config) if decoder else None
        self.ffn = FeedForward(config)


class Stack(nn.Module):
    """Encoder or decoder: positions, the LayerNorm after the embeddings, layers."""

    def __init__(
        self,
        config: EncoderDecoderConfig,
        positions: int,
        layers: int,
        decoder: bool = False,
        self_attention: type[SelfAttention] = SelfAttention,
    ):
        super().__init__()
        self.dropout = config.dropout
        self.positions = nn.Embedding(positions, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size)
        self.layers: Any = nn.ModuleList(Layer(config, self_attention, decoder) for _ in range(layers))

    def embed(self, words: Tensor, positions: Tensor) -> Tensor:
        """Add positions; LayerNorm and dropout. *Shapes:* (N or 1, D), (N) -> (N, D)."""
        return F.dropout(self.norm(words + self.positions(positions)), self.dropout, self.training)

    def see(self, source: Tensor, index: Tensor, mask: Tensor) -> list[Seen]:
        """A decoder's keys and values of the source for each layer, as ``CrossAttention.keys_values`` gives them."""
        return [layer.cross_attention.keys_values(source, index, mask) for layer in self.layers]

    def encode(self, x: Tensor, index: Tensor, mask: Tensor) -> Tensor:
        """Run an encoder's layers; arguments as of ``SelfAttention``. -> (N, D)."""
        for layer in self.layers:
            x = layer.ffn(layer.self_attention(x, index, mask))
        return x

    def decode(self, x: Tensor, index: Tensor, mask: Tensor, seen: Iterable[Seen], source_mask: Tensor) -> Tensor:
        """Run a decoder's layers over what they ``see``, where *source_mask* (B, 1, 1, S) shows it. -> (N, D)."""
        for layer, keys_values in zip(self.layers, seen, strict=True):
            x = layer.self_attention(x, index, mask)
            x = layer.ffn(layer.cross_attention(x, index, mask, keys_values, source_mask))
        return x


class EncoderDecoder(nn.Module):
    """MASS's encoder and decoder, one matrix for all embeddings and the output, and a length classifier.

    As in the authors' ``MASS-NAT`` (kongds/MIST), MASS's decoder (Song et al. 2019) sees the whole target instead of
    its beginning, and the target's length is predicted from the mean of the encoder's last hidden states.
    """

    def __init__(self, config: EncoderDecoderConfig):
        super().__init__()
        self.config = config
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.encoder = Stack(config, config.max_positions, config.encoder_layers)
        self.decoder = Stack(config, config.max_positions, config.decoder_layers, decoder=True)
        self.length_head = LengthHead(config.hidden_size, config.length_classes)
        # Of its own only where the embeddings' precision is not that of matrix products.
        self.output_weight: nn.Parameter | None = None
        self.apply(initialise_as_bert)

    def encode_source(self, tokens: Tensor, lengths: Tensor, index: Tensor) -> SourceState:
        """As ``Encoder.encode_source``; keys and values are those of each decoder layer's cross-attention."""
        mask = self._mask(lengths, tokens.shape[1])
        x = self.encoder.encode(self._embed(tokens, index, self.encoder), index, mask)
        seen, hidden = self.decoder.see(x, index, mask), unpack(x, index, *tokens.shape)
        return SourceState([key for key, _ in seen], [value for _, value in seen], hidden, lengths, tokens)

    def decode_target(self, tokens: Tensor, lengths: Tensor, index: Tensor, source: SourceState) -> Tensor:
        """As ``Encoder.decode_target``, but that target positions count from the first."""
        x, mask = self._embed(tokens, index, self.decoder), self._mask(lengths, tokens.shape[1])
        source_mask = self._mask(source.lengths, source.hidden.shape[1])
        seen = zip(source.keys, source.values, strict=True)
        return self.decoder.decode(x, index, mask, seen, source_mask)

    def keep_in_(self, precision: torch.dtype) -> None:
        """As ``Encoder.keep_in_``."""
        keep_linear_in_(self, precision)
        self.output_weight = nn.Parameter(self.word_embeddings.weight.detach().to(precision))

    def length_logits(self, source: SourceState) -> Tensor:
        """As ``Encoder.length_logits``."""
        scores: Tensor = self.length_head(source.hidden, source.lengths)
        return scores

    def token_logits(self, hidden: Tensor) -> Tensor:
        """As ``Encoder.token_logits``."""
        return F.linear(*self.output_layer(hidden))

    def output_layer(self, hidden: Tensor) -> OutputLayer:
        """As ``Encoder.output_layer``."""
        weight = self.word_embeddings.weight if self.output_weight is None else self.output_weight
        return OutputLayer(hidden, weight, None)

    def _mask(self, lengths: Tensor, size: int) -> Tensor:
        """*Shapes:* lengths (B) -> (B, 1, 1, size)."""
        return added_mask(padding_mask(lengths, size)[:, None, None], computing_dtype(self.word_embeddings.weight))

    def _embed(self, tokens: Tensor, index: Tensor, stack: Stack) -> Tensor:
        """*Shapes:* (B, L), (N) -> packed (N, D)."""
        words = self.word_embeddings(pack(tokens[:, :, None], index)[:, 0])
        return stack.embed(words * self.config.hidden_size**0.5, index % tokens.shape[1])


class MaskDecoder(nn.Module):
    """BANG (Qi et al. 2020) in its non-autoregressive form: an encoder, and a decoder that reads nothing but [MASK]s.

    After microsoft/BANG, ``bang/bang/bang_NAR.py`` and ``ngram_multihead_attention_NAR.py``. A [MASK] is one vector of
    its own (``ngram_input_embed``, not the word embedding) plus a learned position, and sees the source, itself and the
    [MASK]s before it. No length is predicted: the first [SEP] ends the sentence.
    """

    def __init__(self, config: EncoderDecoderConfig):
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.mask_embedding = nn.Parameter(torch.empty(config.hidden_size).normal_(std=0.02))
        # Positions count from 1 in the encoder and from 2 in the decoder.
        self.encoder = Stack(config, config.max_positions + 1, config.encoder_layers)
        self.decoder = Stack(config, config.max_positions + 2, config.decoder_layers, True, RelativeSelfAttention)
        self.apply(initialise_as_bert)

    def decode(self, tokens: Tensor, real_source: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """Run the encoder, and the decoder over [MASK]s.

        Args:
            tokens: ``X [SEP]``, *Shape:* (B, S).
            real_source: where they are no padding, which stands on either side, *Shape:* (B, S).
            real: where the [MASK]s are, padded on either side, *Shape:* (B, T).

        Returns:
            The [MASK]s' last hidden states (N, D) and flat positions (N), into B * T.
        """
        index, positions = self._positions(real_source)
        source_mask = added_mask(real_source[:, None, None], computing_dtype(self.mask_embedding))
        x = self.encoder.embed(self.word_embeddings(tokens.flatten()[index]), positions)
        seen = self.decoder.see(self.encoder.encode(x, index, source_mask), index, source_mask)
        index, positions = self._positions(real)
        x, buckets = self.decoder.embed(self.mask_embedding, positions + 1), RelativeSelfAttention.buckets(real)
        return self.decoder.decode(x, index, buckets, seen, source_mask), index

    def token_logits(self, hidden: Tensor) -> Tensor:
        """Scores of the tokens. *Shapes:* (N, D) -> (N, V)."""
        return F.linear(hidden, self.word_embeddings.weight)

    @staticmethod
    def _positions(real: Tensor) -> tuple[Tensor, Tensor]:
        """Flat indices of what is real, and its positions from 1. *Shapes:* (B, L) -> (N), (N)."""
        index = real.flatten().nonzero()[:, 0]
        return index, real.cumsum(1).flatten()[index]
