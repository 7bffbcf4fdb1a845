"""The BERT encoder as a source pass and a target pass.

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

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mist_fairseq.mist.kernels import Linear, attend, dropout, linear


@dataclass
class EncoderConfig:
    """Sizes of the encoder, with BERT's names for what BERT has."""

    vocab_size: int
    hidden_size: int = 768
    layers: int = 12
    heads: int = 12
    ffn_size: int = 3072
    max_positions: int = 512
    token_types: int = 2
    source_type: int = 0
    target_type: int = 1
    length_classes: int = 512
    rel_pos_bins: int = 0
    max_rel_pos: int = 0
    untie_head: bool = False
    dropout: float = 0.1
    attention_dropout: float = 0.1

    def __post_init__(self):
        if self.heads < 1 or self.hidden_size % self.heads:
            raise ValueError(f"hidden size {self.hidden_size} is not a multiple of the {self.heads} attention heads")
        # The first buckets are of one distance each, the others of more and more up to the largest distance.
        if self.rel_pos_bins and not 1 <= self.rel_pos_bins // 4 < self.max_rel_pos:
            raise ValueError(
                f"{self.rel_pos_bins} buckets of relative positions up to {self.max_rel_pos}: expected at least 4, and "
                "positions beyond a quarter of their number"
            )
        for name, token_type in (("source", self.source_type), ("target", self.target_type)):
            if not 0 <= token_type < self.token_types:
                raise ValueError(f"{name} token type {token_type} is not one of the {self.token_types} token types")


@dataclass
class SourceState:
    """What the target pass needs of an encoded source (the paper's cached keys and values).

    Attributes:
        keys, values: one per layer, *Shape:* (B, H, S, d).
        hidden: last layer, *Shape:* (B, S, D).
        lengths: real tokens, *Shape:* (B).
    """

    keys: list[Tensor]
    values: list[Tensor]
    hidden: Tensor
    lengths: Tensor

    def select(self, index: Tensor) -> "SourceState":
        """The state of the sentences *index* (repeats allowed), *Shape:* (B')."""
        return SourceState(
            [key.index_select(0, index) for key in self.keys],
            [value.index_select(0, index) for value in self.values],
            self.hidden.index_select(0, index),
            self.lengths.index_select(0, index),
        )


def padding_mask(lengths: Tensor, size: int) -> Tensor:
    """True at real positions. *Shapes:* lengths (B) -> (B, size)."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]


def real_positions(lengths: Tensor, size: int) -> Tensor:
    """Flat indices of the real positions of a padded batch. *Shapes:* lengths (B) -> (N), into B * size."""
    return padding_mask(lengths, size).flatten().nonzero()[:, 0]


def pack(padded: Tensor, index: Tensor) -> Tensor:
    """Rows at *index*. *Shapes:* (B, L, X), (N) -> (N, X)."""
    rows = padded.flatten(0, 1)
    return rows if len(index) == len(rows) else rows.index_select(0, index)


def unpack(packed: Tensor, index: Tensor, B: int, L: int) -> Tensor:
    """Zero where *index* has no row. *Shapes:* (N, X), (N) -> (B, L, X)."""
    if len(index) < B * L:
        packed = packed.new_zeros(B * L, packed.shape[1]).index_copy(0, index, packed)
    return packed.view(B, L, -1)


def keep_linear_in_(module: nn.Module, precision: torch.dtype):
    """Convert the weights of all ``nn.Linear`` to what autocast to *precision* would make of them at every use."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            part.to(precision)


def row_chunks(logits: Tensor) -> list[slice]:
    """Slices over the rows of (N, V) that keep temporaries in a CPU's cache; a GPU takes all rows at once."""
    size = 64 if logits.device.type == "cpu" else max(1, len(logits))
    return [slice(start, start + size) for start in range(0, len(logits), size)]


def argmax(scores: Tensor, block: int = 128) -> Tensor:
    """``scores.argmax(1)``, of a vocabulary's size several times as fast on a CPU. *Shapes:* (N, V) -> (N)."""
    if scores.device.type != "cpu":
        return scores.argmax(1)
    V = scores.shape[1]
    whole = V // block * block
    largest = scores[:, :whole].unflatten(1, (-1, block)).amax(2)  # (N, V / block)
    if whole < V:
        largest = torch.cat([largest, scores[:, whole:].amax(1, keepdim=True)], dim=1)
    first = block * largest.argmax(1, keepdim=True)
    columns = (first + torch.arange(block)).clamp(max=V - 1)
    return first[:, 0] + scores.gather(1, columns).argmax(1)


def relative_position_bucket(relative: Tensor, bins: int, max_distance: int) -> Tensor:
    """T5's bidirectional buckets, as UniLM uses them: exact near zero, logarithmic up to *max_distance*.

    Args:
        relative: key position minus query position, any shape.
    """
    half = bins // 2
    exact = half // 2
    distance = relative.abs()
    # log of zero is masked out below; the clamp keeps it finite.
    scaled = torch.log(distance.clamp(min=1).float() / exact) / math.log(max_distance / exact)
    far = (exact + (scaled * (half - exact)).long()).clamp(max=half - 1)
    return (relative > 0).long() * half + torch.where(distance < exact, distance, far)


class Layer(nn.Module):
    """One post-LN transformer layer (Devlin et al. 2018)."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        size = config.hidden_size
        self.heads = config.heads
        self.dropout = config.dropout
        self.attention_dropout = config.attention_dropout
        self.qkv = Linear(size, 3 * size)
        self.attention_output = Linear(size, size)
        self.attention_norm = nn.LayerNorm(size, eps=1e-12)
        self.ffn_in = Linear(size, config.ffn_size)
        self.ffn_out = Linear(config.ffn_size, size)
        self.ffn_norm = nn.LayerNorm(size, eps=1e-12)

    def forward(
        self,
        x: Tensor,
        index: Tensor,
        mask: Tensor,
        shape: tuple[int, int],
        source_key: Tensor | None = None,
        source_value: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Attention needs padded rows, all else runs on the packed ones.

        Args:
            x: packed rows, *Shape:* (N, D).
            index: their flat positions in a padded batch, *Shape:* (N).
            mask: what attention may see, broadcastable to (B, H, L, S + L).
            shape: (B, L) of the padded batch.
            source_key, source_value: seen beside the layer's own, *Shape:* (B, H, S, d).

        Returns:
            x (N, D) and this layer's own key and value (B, H, L, d).
        """
        B, L = shape
        qkv = unpack(self.qkv(x), index, B, L).view(B, L, 3, self.heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (B, H, L, d) each
        all_keys, all_values = key, value
        if source_key is not None and source_value is not None:
            all_keys = torch.cat([source_key, key], dim=2)  # (B, H, S + L, d)
            all_values = torch.cat([source_value, value], dim=2)
        attended = attend(query, all_keys, all_values, mask, self.attention_dropout, self.training)
        attended = pack(attended.transpose(1, 2).flatten(2), index)  # (N, D)
        x = self.attention_norm(x + self._drop(self.attention_output(attended)))
        x = self.ffn_norm(x + self._drop(self.ffn_out(F.gelu(self.ffn_in(x)))))
        return x, key, value

    def _drop(self, x: Tensor) -> Tensor:
        return dropout(x, self.dropout, self.training)


class LengthHead(nn.Linear):
    """Target length, the final [SEP] counted, from the mean over the encoded source; a layer without bias."""

    def __init__(self, hidden_size: int, classes: int):
        super().__init__(hidden_size, classes, bias=False)

    def forward(self, source: SourceState) -> Tensor:  # type: ignore[override]
        """Scores of each length. -> (B, classes)."""
        real = padding_mask(source.lengths, source.hidden.shape[1])[:, :, None]
        mean = source.hidden.masked_fill(~real, 0.0).sum(1) / source.lengths.clamp(min=1)[:, None]
        return super().forward(mean).float()


def initialise_as_bert(module: nn.Module):
    """For ``apply``: normal weights, biases zero (Devlin et al. 2018)."""
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


class MaskedLMHead(nn.Module):
    """BERT's masked-LM head; ``weight`` is None while the decoder is tied to the word embeddings."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.transform = Linear(config.hidden_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=1e-12)
        self.weight = nn.Parameter(torch.empty(config.vocab_size, config.hidden_size)) if config.untie_head else None
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, hidden: Tensor, embeddings: Tensor) -> Tensor:
        """*Shapes:* hidden (N, D), embeddings (V, D) -> logits (N, V)."""
        hidden = self.norm(F.gelu(self.transform(hidden)))
        return linear(hidden, embeddings if self.weight is None else self.weight, self.bias, self.training)


class TokenHead:
    """What becomes of last hidden states in generation."""

    token_logits: Callable[[Tensor], Tensor]

    def likeliest_tokens(self, hidden: Tensor, never: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens and their log-probabilities in fp32, over all tokens but *never*. *Shape:* (N, D) -> (N), (N)."""
        logits = self.token_logits(hidden).float().index_fill_(-1, never, float("-inf"))
        tokens = argmax(logits)
        return tokens, logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0]


class Passes(TokenHead):
    """What a target is generated with: passes over source rows, target rows or both, made of one ``_run``.

    ``Encoder`` runs them in PyTorch, the engines of ``mist_fairseq.engines`` elsewhere.

    Attributes:
        config: the sizes.
        relative_bias: UniLM's, or None.
    """

    config: EncoderConfig
    relative_bias: nn.Linear | None

    def _run(
        self, tokens: Tensor, positions: Tensor, types: Tensor, mask: Tensor, index: Tensor, source: SourceState | None
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Embeddings and layers.

        Args:
            tokens, positions, types: *Shape:* (B, L), the last two also (1, L).
            mask: of ``_mask``, broadcastable to (B, H, L, K); K is L, after the source's S if there is one.
            index: flat positions to compute, *Shape:* (N), into B * L.
            source: seen beside the rows themselves.

        Returns:
            Last hidden states at *index* (N, D), and each layer's own keys and values, (B, H, L, d).
        """
        raise NotImplementedError

    def encode_source(self, tokens: Tensor, lengths: Tensor, index: Tensor) -> SourceState:
        """Run the source rows, which see only the source.

        Args:
            tokens: ``[CLS] X [SEP]``, right-padded, *Shape:* (B, S).
            lengths: real tokens of each, *Shape:* (B).
            index: flat positions to compute, at least the real ones, *Shape:* (N), into B * S.
        """
        B, S = tokens.shape
        positions = torch.arange(S, device=tokens.device)[None]  # (1, S)
        mask = self._mask(padding_mask(lengths, S)[:, None], positions, positions)
        types = torch.full_like(positions, self.config.source_type)
        x, keys, values = self._run(tokens, positions, types, mask, index, None)
        return SourceState(keys, values, unpack(x, index, B, S), lengths)

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
        positions = self._target_positions(source.lengths, T)
        real = torch.cat([padding_mask(source.lengths, S), padding_mask(lengths, T)], dim=1)  # (B, S + T)
        source_positions = torch.arange(S, device=tokens.device).expand(len(tokens), S)
        mask = self._mask(real[:, None], positions, torch.cat([source_positions, positions], dim=1))
        types = torch.full_like(positions, self.config.target_type)
        x, _, _ = self._run(tokens, positions, types, mask, index, source)
        return x

    def encode_and_guess(
        self, tokens: Tensor, lengths: Tensor, guesses: Tensor, mask_token: int
    ) -> tuple[SourceState, Tensor]:
        """``encode_source``, and in the same pass ``decode_target`` of [MASK]s of several lengths.

        Source rows see the source, those of a guess the source and their own guess, as if each ran alone. So weights
        are read once, not twice, where one of the guesses turns out to be the length.

        Args:
            tokens: ``[CLS] X [SEP]``, right-padded, *Shape:* (B, S).
            lengths: real tokens of each, *Shape:* (B).
            guesses: lengths of targets, *Shape:* (B, K).
            mask_token: id of [MASK].

        Returns:
            The source state, and last hidden states of the guesses, *Shape:* (B, K, T, D).
        """
        (B, S), K, T = tokens.shape, guesses.shape[1], int(guesses.max())
        source_positions = torch.arange(S, device=tokens.device).expand(B, S)
        target_positions = self._target_positions(lengths, T)
        positions = torch.cat([source_positions, target_positions.repeat(1, K)], dim=1)  # (B, L)
        tokens = torch.cat([tokens, tokens.new_full((B, K * T), mask_token)], dim=1)
        part = torch.arange(K + 1, device=tokens.device).repeat_interleave(torch.tensor([S] + K * [T]))  # (L)
        types = torch.where(part == 0, self.config.source_type, self.config.target_type)[None]
        real = torch.cat([padding_mask(lengths, S), padding_mask(guesses.flatten(), T).view(B, K * T)], dim=1)
        visible = (part == 0) | (part == part[:, None])  # (L, L)
        index = real.flatten().nonzero()[:, 0]
        mask = self._mask(real[:, None] & visible, positions, positions)
        x, keys, values = self._run(tokens, positions, types, mask, index, None)
        hidden = unpack(x, index, B, S + K * T)
        state = SourceState([k[:, :, :S] for k in keys], [v[:, :, :S] for v in values], hidden[:, :S], lengths)
        return state, hidden[:, S:].view(B, K, T, -1)

    def _target_positions(self, source_lengths: Tensor, T: int) -> Tensor:
        """*Shape:* (B) -> (B, T)."""
        positions = source_lengths[:, None] + torch.arange(T, device=source_lengths.device)
        return positions.clamp(max=self.config.max_positions - 1)  # only padding can run over the last one

    def _mask(self, visible: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
        """Attention mask: boolean, or UniLM's relative position bias with what is not *visible* at -inf.

        *Shapes:* visible (B, 1 or L, K), queries (B or 1, L) and keys (B or 1, K) positions -> (B, 1 or H, 1 or L, K).
        """
        visible = visible[:, None]
        if self.relative_bias is None:
            return visible
        relative = keys[:, None, :] - queries[:, :, None]  # (B or 1, L, K)
        bucket = relative_position_bucket(relative, self.config.rel_pos_bins, self.config.max_rel_pos)
        bias = F.embedding(bucket, self.relative_bias.weight.t()).permute(0, 3, 1, 2)  # (B or 1, H, L, K)
        return bias.masked_fill(~visible, float("-inf"))


class Encoder(Passes, nn.Module):
    """Embeddings, layers, length classifier and masked-LM head, initialised as BERT is."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.config = config
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embeddings = nn.Embedding(config.max_positions, config.hidden_size)
        self.type_embeddings = nn.Embedding(config.token_types, config.hidden_size)
        self.embedding_norm = nn.LayerNorm(config.hidden_size, eps=1e-12)
        self.relative_bias = (
            nn.Linear(config.rel_pos_bins, config.heads, bias=False) if config.rel_pos_bins > 0 else None
        )
        self.layers: Any = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.length_head = LengthHead(config.hidden_size, config.length_classes)
        self.head = MaskedLMHead(config)
        self.apply(initialise_as_bert)
        if self.head.weight is not None:
            self.head.weight.data.copy_(self.word_embeddings.weight.data)

    def _run(self, tokens, positions, types, mask, index, source):
        shape = tokens.shape
        tokens, positions, types = (
            pack(part.expand(shape)[:, :, None], index)[:, 0] for part in (tokens, positions, types)
        )
        x = self.word_embeddings(tokens) + self.position_embeddings(positions) + self.type_embeddings(types)
        x = dropout(self.embedding_norm(x), self.config.dropout, self.training)
        keys, values = [], []
        for i, layer in enumerate(self.layers):
            seen = () if source is None else (source.keys[i], source.values[i])
            x, key, value = layer(x, index, mask, shape, *seen)
            keys.append(key)
            values.append(value)
        return x, keys, values

    def keep_in_(self, precision: torch.dtype):
        """Convert the weights of matrix products, for inference under autocast to *precision*."""
        keep_linear_in_(self, precision)
        head = self.head
        weight = self.word_embeddings.weight if head.weight is None else head.weight
        head.weight, head.bias = (nn.Parameter(data.detach().to(precision)) for data in (weight, head.bias))

    def length_logits(self, source: SourceState) -> Tensor:
        """Scores of each target length, the final [SEP] counted, from the mean over the source. -> (B, classes)."""
        return self.length_head(source)

    def token_logits(self, hidden: Tensor) -> Tensor:
        """Masked-LM scores. *Shapes:* (N, D) -> (N, V), in the precision of the computation."""
        return self.head(hidden, self.word_embeddings.weight)
