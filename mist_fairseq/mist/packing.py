"""Ragged batches: padded for attention, packed to their real positions for everything else.

Dimensions: B sentences, L positions, N real positions of a batch.
"""

import torch
from torch import Tensor


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
        packed = packed.new_zeros(B * L, packed.shape[1]).index_copy_(0, index, packed)
    return packed.view(B, L, -1)
