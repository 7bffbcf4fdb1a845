"""A target's tokens in the order that the model finds likeliest: order-agnostic cross-entropy (OAXE, Du et al. 2021).

A loss by position counts a word that stands one place too far as much as a wrong word. OAXE learns the likeliest of all
orders, which the Hungarian algorithm finds.
"""

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor


@torch.no_grad()
def likeliest_order(logits: Tensor, target: Tensor, free: Tensor) -> Tensor:
    """Give each free place one of its sentence's free tokens, so that the probability of all is highest.

    Args:
        logits: entry (b, i, j) is that of target token j at place i, *Shape:* (B, T, T). The constant by which
            a place's logits differ from log-probabilities is the same in all orders.
        target: *Shape:* (B, T).
        free: places whose tokens may change places with each other, *Shape:* (B, T).

    Returns:
        The targets in their new order, *Shape:* (B, T).
    """
    ordered = target.clone()
    # NaN would end the search for an order, where it is the trainer that is to say so.
    scores, places = logits.float().nan_to_num().cpu().numpy(), free.cpu().numpy()
    for b, row in enumerate(places):
        (here,) = row.nonzero()
        _, chosen = linear_sum_assignment(scores[b][here][:, here], maximize=True)
        ordered[b, here] = target[b, here[chosen]]
    return ordered
