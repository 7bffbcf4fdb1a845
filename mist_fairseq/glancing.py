"""Glancing (GLAT, Qian et al. 2020; the paper's "mask ratio" of 0.5): how much of the target training reveals."""

import torch
from torch import Tensor


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
        noise: one number a position; the lowest are revealed first, *Shape:* (B, T).
        ratio: the paper's f_ratio.
        mask_id: id of [MASK].

    Returns:
        Y_M (B, T), padding as in *target*, and which positions it reveals (B, T).
    """
    wrong = ((first_look != target) & real).sum(1)  # (B)
    budget = (wrong * ratio).floor()
    noise = noise.masked_fill(~real, float("inf"))
    rank = noise.argsort(dim=1, stable=True).argsort(dim=1)
    revealed = (rank < budget[:, None]) & real
    return torch.where(revealed | ~real, target, mask_id), revealed
