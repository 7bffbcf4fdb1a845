"""One transformer layer, and what its attention knows of distances.

Dimensions as in ``mist.encoder``.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mist_fairseq.mist.config import EncoderConfig
from mist_fairseq.mist.kernels import Linear, attend, dropout
from mist_fairseq.mist.packing import pack, unpack


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """The function of a name of ``ACTIVATIONS``."""
    tanh = partial(F.gelu, approximate="tanh")
    functions: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu, "silu": F.silu}
    return (functions | {"gelu_new": tanh, "gelu_pytorch_tanh": tanh})[name]


class Layer(nn.Module):
    """One transformer layer, post-LN as BERT's (Devlin et al. 2018) or as *config* says; *number* counts from 0."""

    def __init__(self, config: EncoderConfig, number: int):
        super().__init__()
        size = config.hidden_size
        self.heads = config.heads
        self.dropout = config.dropout
        self.attention_dropout = config.attention_dropout
        self.pre_norm, self.gated = config.pre_norm, config.gated
        self.is_local = config.local_window > 0 and number % config.global_every > 0
        self.activation = activation(config.activation)
        product = partial(Linear, bias=not config.without_biases)
        norm = partial(nn.LayerNorm, size, eps=config.layer_norm_eps, bias=not config.without_biases)
        self.qkv = product(size, 3 * size)
        self.attention_output = product(size, size)
        # What comes before the first layer has its own.
        self.attention_norm = nn.Identity() if config.pre_norm and number == 0 else norm()
        self.ffn_in = product(size, (1 + config.gated) * config.ffn_size)
        self.ffn_out = product(config.ffn_size, size)
        self.ffn_norm = norm()

    def forward(
        self,
        x: Tensor,
        index: Tensor,
        mask: Tensor,
        shape: tuple[int, int],
        turns: tuple[Tensor, Tensor] | None = None,
        source_key: Tensor | None = None,
        source_value: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Attention needs padded rows, all else runs on the packed ones.

        Args:
            x: packed rows, *Shape:* (N, D).
            index: their flat positions in a padded batch, *Shape:* (N).
            mask: of ``added_mask``, broadcastable to (B, H, L, S + L).
            shape: (B, L) of the padded batch.
            turns: of ``rotary_turns``, for rotary positions.
            source_key, source_value: seen beside the layer's own, *Shape:* (B, H, S, d).

        Returns:
            x (N, D) and this layer's own key and value (B, H, L, d).
        """
        B, L = shape
        qkv = self.qkv(self.attention_norm(x) if self.pre_norm else x)
        qkv = unpack(qkv, index, B, L).view(B, L, 3, self.heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (B, H, L, d) each
        if turns is not None:
            query, key = _turn(query, *turns), _turn(key, *turns)
        all_keys, all_values = key, value
        if source_key is not None and source_value is not None:
            all_keys = torch.cat([source_key, key], dim=2)  # (B, H, S + L, d)
            all_values = torch.cat([source_value, value], dim=2)
        attended = attend(query, all_keys, all_values, mask, self.attention_dropout, self.training)
        attended = pack(attended.transpose(1, 2).flatten(2), index)  # (N, D)
        x = x + self._drop(self.attention_output(attended))
        if self.pre_norm:
            return x + self._drop(self._feed_forward(self.ffn_norm(x))), key, value
        x = self.attention_norm(x)
        return self.ffn_norm(x + self._drop(self._feed_forward(x))), key, value

    def _feed_forward(self, x: Tensor) -> Tensor:
        inner = self.ffn_in(x)
        if self.gated:
            inner, gate = inner.chunk(2, dim=-1)
            inner = self.activation(inner) * gate
        else:
            inner = self.activation(inner)
        outer: Tensor = self.ffn_out(inner)
        return outer

    def _drop(self, x: Tensor) -> Tensor:
        return dropout(x, self.dropout, self.training)


def rotary_turns(positions: Tensor, size: int, base: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the angles by which rotary positions turn pairs of a head's values (Su et al. 2021).

    *Shapes:* positions (B or 1, L), *size* d of a head -> (B or 1, 1, L, d / 2) each.
    """
    speeds = base ** -(torch.arange(0, size, 2, device=positions.device).float() / size)
    angles = positions[:, None, :, None] * speeds
    return angles.cos(), angles.sin()


def _turn(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat([first * cosines - second * sines, second * cosines + first * sines], dim=-1).to(x.dtype)


def relative_position_bucket(relative: Tensor, bins: int, max_distance: int) -> Tensor:
    """T5's bidirectional buckets, as UniLM uses them: exact near zero, logarithmic up to *max_distance*.

    Args:
        relative: key position minus query position, any shape.
        bins: number of buckets.
        max_distance: the distance from which on all share the last bucket.
    """
    half = bins // 2
    exact = half // 2
    distance = relative.abs()
    # log of zero is masked out below; the clamp keeps it finite.
    scaled = torch.log(distance.clamp(min=1).float() / exact) / math.log(max_distance / exact)
    far = (exact + (scaled * (half - exact)).long()).clamp(max=half - 1)
    return (relative > 0).long() * half + torch.where(distance < exact, distance, far)


def initialise_as_bert(module: nn.Module) -> None:
    """Draw normal weights and set biases to zero, for ``apply`` (Devlin et al. 2018)."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
