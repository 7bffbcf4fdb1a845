"""Glancing (GLAT, Qian et al. 2020; the paper's "mask ratio" of 0.5): how much of the target training reveals."""

import torch
from torch import Tensor


def sentence_noise(ids: Tensor, size: int, seed: int) -> Tensor:
    """Pseudo-random numbers of a sentence, not of its batch, rank or place in either.

    So the workers of a distributed training, which all start from the same seed, reveal different tokens, and a
    batch glances like its halves (``--update-freq``). A counter-based generator (the finaliser of SplitMix64) needs no
    state and, on a GPU, no transfer.

    Args:
        ids: of the sentences, *Shape:* (B).
        size: T.
        seed: changes from update to update; any whole number.

    Returns:
        Integers, *Shape:* (B, T).
    """
    position = torch.arange(size, device=ids.device)
    step = (seed * 0x1000003 + 2**63) % 2**64 - 2**63  # as sums of tensors do, it wraps around at 64 bits
    return _scramble(_scramble(ids + step)[:, None] + position)


def _scramble(x: Tensor) -> Tensor:
    """A bijection of 64-bit integers in which each input bit changes half of the output bits."""
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        x = (x ^ _shift(x, shift)) * factor
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical shift to the right; torch's own copies the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def glance(
    target: Tensor, first_look: Tensor, real: Tensor, noise: Tensor, ratio: float, mask_id: int
) -> tuple[Tensor, Tensor]:
    """Y_M of the paper: the target with all but a few randomly chosen tokens masked.

    The more tokens of a sentence the model's first look got wrong, the more are revealed:
    floor(ratio * wrong), chosen uniformly among all real positions.

    Args:
        target: gold tokens, *Shape:* (B, T).
        first_look: predictions from all [MASK], *Shape:* (B, T).
        real: True at real target positions, *Shape:* (B, T).
        noise: one integer a position; the lowest are revealed first, *Shape:* (B, T).
        ratio: the paper's f_ratio.
        mask_id: id of [MASK].

    Returns:
        Y_M (B, T), padding as in *target*, and which positions it reveals (B, T).
    """
    wrong = ((first_look != target) & real).sum(1)  # (B)
    budget = (wrong * ratio).floor()
    noise = noise.masked_fill(~real, torch.iinfo(noise.dtype).max)
    rank = noise.argsort(dim=1, stable=True).argsort(dim=1)
    revealed = (rank < budget[:, None]) & real
    return torch.where(revealed | ~real, target, mask_id), revealed
