"""fairseq's ``--clip-norm``."""

import torch
from fairseq import utils

from mist_fairseq.patches import replaces


@replaces(utils, "clip_grad_norm_")
@torch.no_grad()
def _clip_grad_norm(clip, params, max_norm, aggregate_norm_fn=None):
    params = list(params)
    gradients = [parameter.grad for parameter in params if parameter.grad is not None]
    if not gradients or any(hasattr(parameter, "expert") for parameter in params):
        return clip(params, max_norm, aggregate_norm_fn)
    norm = torch.stack(torch._foreach_norm(gradients, dtype=torch.float32)).norm()
    if aggregate_norm_fn is not None:
        norm = aggregate_norm_fn(norm)
    if max_norm > 0:
        torch._foreach_mul_(gradients, (max_norm / (norm + 1e-6)).clamp(max=1))
    return norm
