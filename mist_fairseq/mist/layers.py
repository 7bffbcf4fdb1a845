"""One transformer layer, and what its attention knows of distances.

Dimensions as in ``mist.encoder``.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mist_fairseq.mist.config import EncoderConfig
from mist_fairseq.mist.kernels import Linear, attend, dropout
from mist_fairseq.mist.packing import pack, unpack


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
        self.attention_norm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.ffn_in = Linear(size, config.ffn_size)
        self.ffn_out = Linear(config.ffn_size, size)
        self.ffn_norm = nn.LayerNorm(size, eps=config.layer_norm_eps)

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
