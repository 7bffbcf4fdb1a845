"""Mix source and pseudo target: the "MIST" of the paper, the same in training and in iterative decoding."""

import torch
from torch import Tensor


def mix_source(
    pseudo: Tensor,
    pseudo_lengths: Tensor,
    source: Tensor,
    source_lengths: Tensor,
    *,
    limit: int,
    sep: int,
    pad: int,
) -> tuple[Tensor, Tensor]:
    """``[CLS] Y_p [SEP] X [SEP]`` (paper, section "MIST") from ``Y_p`` and ``[CLS] X [SEP]``.

    A pseudo target that ends in [SEP] already gets no second one. What exceeds *limit* is cut from the end of X,
    so that the result still ends in [SEP].

    Args:
        pseudo: predicted tokens, right-padded, *Shape:* (B, T).
        pseudo_lengths: real tokens of each, at least 1, *Shape:* (B).
        source: ``[CLS] X [SEP]``, right-padded, *Shape:* (B, S).
        source_lengths: real tokens of each, *Shape:* (B).
        limit: most tokens of a source, the special ones counted (``--max-source-positions``).
        sep, pad: ids of [SEP] and [PAD].

    Returns:
        Mixed sources, *Shape:* (B, min(S + T + 1, limit)), and their lengths, *Shape:* (B).
    """
    (B, T), S = pseudo.shape, source.shape[1]
    last = pseudo.gather(1, pseudo_lengths[:, None] - 1)[:, 0]
    inserted = pseudo_lengths + (last != sep)  # (B): Y_p and its [SEP]
    lengths = (source_lengths + inserted).clamp(max=limit)
    position = torch.arange(min(S + T + 1, limit), device=source.device).expand(B, -1)  # (B, W)
    from_pseudo = pseudo.gather(1, (position - 1).clamp(0, T - 1))
    from_source = source.gather(1, (position - inserted[:, None]).clamp(0, S - 1))
    mixed = torch.where(position <= pseudo_lengths[:, None], from_pseudo, sep)
    mixed = torch.where(position > inserted[:, None], from_source, mixed)
    mixed[:, 0] = source[:, 0]
    mixed = torch.where(position == lengths[:, None] - 1, sep, mixed)
    return torch.where(position < lengths[:, None], mixed, pad), lengths
