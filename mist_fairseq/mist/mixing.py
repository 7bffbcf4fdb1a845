"""Mix source and pseudo target: the "MIST" of the paper, the same in training and in iterative decoding.

Written over the array API: tensors of torch and arrays of numpy will do.
"""

from typing import Any

from array_api_compat import array_namespace, device

# A tensor of torch or an array of numpy.
Array = Any


def mix_source(
    pseudo: Array, pseudo_lengths: Array, source: Array, source_lengths: Array, *, limit: int, sep: int, pad: int
) -> tuple[Array, Array]:
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
    xp = array_namespace(pseudo, source)
    (B, T), S = pseudo.shape, source.shape[1]
    last = xp.take_along_axis(pseudo, pseudo_lengths[:, None] - 1, axis=1)[:, 0]
    inserted = pseudo_lengths + xp.astype(last != sep, pseudo_lengths.dtype)  # (B): Y_p and its [SEP]
    lengths = xp.clip(source_lengths + inserted, max=limit)
    position = xp.arange(min(S + T + 1, limit), device=device(source))[None]  # (1, W)
    everywhere = xp.broadcast_to(position, (B, position.shape[1]))
    from_pseudo = xp.take_along_axis(pseudo, xp.clip(everywhere - 1, min=0, max=T - 1), axis=1)
    from_source = xp.take_along_axis(source, xp.clip(position - inserted[:, None], min=0, max=S - 1), axis=1)
    mixed = xp.where(position <= pseudo_lengths[:, None], from_pseudo, sep)
    mixed = xp.where(position > inserted[:, None], from_source, mixed)
    mixed = xp.where(position == 0, source[:, :1], mixed)
    mixed = xp.where(position == lengths[:, None] - 1, sep, mixed)
    return xp.where(position < lengths[:, None], mixed, pad), lengths
