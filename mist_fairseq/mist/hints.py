"""What the [MASK]s of a target start from: beside [MASK] itself a hint, half the embedding of a token.

In the pass over the bare source it is the source token at the same relative place, as in NAT's uniform copy (Gu et al.
2018), in passes over a mixed source that of the pseudo target at the same place. Written over the array API.
"""

from array_api_compat import array_namespace, device

from mist_fairseq.mist.mixing import Array

TARGET_STARTS = ("mask", "output", "source")
NONE = -1  # no hint


def uniform_copy(source: Array, source_lengths: Array, lengths: Array, size: int) -> Array:
    """The source token at the same relative place, from the first of X to the first of Y, from [SEP] to [SEP].

    Args:
        source: ``[CLS] X [SEP]``, right-padded, *Shape:* (B, S).
        source_lengths: real tokens of each, at least 2, *Shape:* (B).
        lengths: of the targets, the final [SEP] counted, *Shape:* (B).
        size: T, the width of the result.

    Returns:
        Tokens, some of them of the source past the end of a target, *Shape:* (B, T).
    """
    xp = array_namespace(source)
    place = xp.arange(size, device=device(source))[None]  # (1, T)
    steps = xp.clip(lengths - 1, min=1)[:, None]
    # Rounded to the nearest, in whole numbers.
    index = 1 + (2 * place * (source_lengths - 2)[:, None] + steps) // (2 * steps)
    index = xp.minimum(index, source_lengths[:, None] - 1)
    return xp.take_along_axis(source, index, axis=1)
