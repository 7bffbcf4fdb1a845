"""What training on a CPU spends its time on besides large products, and those in fp32, by faster means.

Each is what it says in PyTorch's terms, on every other device and in evaluation it is PyTorch's own.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _Dropout(torch.autograd.Function):
    """Elements are dropped where 16 random bits are below a threshold."""

    @staticmethod
    def forward(ctx, x, threshold):
        bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
        kept = (bits[: x.numel()] >= threshold - 2**15).view(x.shape)
        ctx.save_for_backward(kept)
        ctx.scale = 2**16 / (2**16 - threshold)
        return (x * kept).mul_(ctx.scale)

    @staticmethod
    def backward(ctx, gradient):
        (kept,) = ctx.saved_tensors
        return (gradient * kept).mul_(ctx.scale), None


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """``F.dropout``, which on a CPU spends ten times as long on its random numbers.

    There *p* is rounded to a multiple of 1 / 65536, and what is kept is scaled accordingly.
    """
    threshold = round(p * 2**16)
    if not training or x.device.type != "cpu" or not 0 < threshold < 2**16:
        return F.dropout(x, p, training)
    return _Dropout.apply(x, threshold)


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, p: float, training: bool) -> Tensor:
    """Attention with dropout *p*. *Shapes:* (B, H, L, d), twice (B, H, K, d) -> (B, H, L, d)."""
    if not training or query.device.type != "cpu":
        if mask.dtype != torch.bool:
            mask = mask.to(query.dtype)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=p if training else 0.0)
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, float("-inf"))
    scores = query * query.shape[-1] ** -0.5 @ key.transpose(2, 3) + mask
    return dropout(scores.softmax(-1), p, training) @ value


class _Product(torch.autograd.Function):
    """``F.linear`` by oneDNN."""

    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        return _product(gradient, weight.t(), None), gradient.t() @ x, gradient.sum(0)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def _onednn() -> bool:
    """Whether fp32 is what is asked for, and this torch has the kernel, which is not part of its public interface."""
    return not torch.is_autocast_enabled("cpu") and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def linear(x: Tensor, weight: Tensor, bias: Tensor, training: bool) -> Tensor:
    """``F.linear``; in fp32 on a CPU by oneDNN's kernels instead of MKL's, which are slow on some CPUs."""
    if training and x.device.type == "cpu" and x.dtype == torch.float32 and _onednn():
        return _Product.apply(x, weight, bias)
    return F.linear(x, weight, bias)


class Linear(nn.Linear):
    """With ``linear``."""

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output, *Shapes:* (..., in) -> (..., out)."""
        return linear(x, self.weight, self.bias, self.training)
