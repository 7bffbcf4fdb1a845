"""What makes a CPU fast and changes no result: dropout, attention, fp32 products, the loss and the likeliest tokens.

Each function computes what its docstring says in PyTorch's terms. On other devices it is PyTorch's own.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _Dropout(torch.autograd.Function):
    """Elements are dropped where 16 random bits are below a threshold."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, threshold: int) -> Tensor:
        bits = (
            torch.empty(-(-x.numel() // 4), dtype=torch.int64, device=x.device)
            .random_(-(2**63), None)
            .view(torch.int16)
        )
        kept = (bits[: x.numel()] >= threshold - 2**15).view(x.shape)
        ctx.save_for_backward(kept)
        ctx.scale = 2**16 / (2**16 - threshold)
        return (x * kept).mul_(ctx.scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (kept,) = ctx.saved_tensors
        return (gradient * kept).mul_(ctx.scale), None


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """``F.dropout``, which on a CPU spends ten times as long on its random numbers.

    There *p* is rounded to a multiple of 1 / 65536, and what is kept is scaled accordingly.
    """
    threshold = round(p * 2**16)
    if not training or x.device.type != "cpu" or not 0 < threshold < 2**16:
        return F.dropout(x, p, training)
    dropped: Tensor = _Dropout.apply(x, threshold)  # type: ignore[no-untyped-call]
    return dropped


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
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        x, weight = ctx.saved_tensors
        bias = gradient.sum(0) if ctx.has_bias else None
        return _product(gradient, weight.t(), None), gradient.t() @ x, bias


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product


def _onednn() -> bool:
    """Whether fp32 is what is asked for, and this torch has the kernel, which is not part of its public interface."""
    return not torch.is_autocast_enabled("cpu") and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, training: bool) -> Tensor:
    """``F.linear``; in fp32 on a CPU by oneDNN's kernels instead of MKL's, which are slow on some CPUs."""
    if training and x.device.type == "cpu" and x.dtype == torch.float32 and _onednn():
        product: Tensor = _Product.apply(x, weight, bias)  # type: ignore[no-untyped-call]
        return product
    return F.linear(x, weight, bias)


class Linear(nn.Linear):
    """With ``linear``."""

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output, *Shapes:* (..., in) -> (..., out)."""
        return linear(x, self.weight, self.bias, self.training)


def row_chunks(logits: Tensor) -> list[slice]:
    """Slices over the rows of (N, V) that keep temporaries in a CPU's cache; a GPU takes all rows at once."""
    size = 64 if logits.device.type == "cpu" else max(1, len(logits))
    return [slice(start, start + size) for start in range(0, len(logits), size)]


def argmax(scores: Tensor, block: int = 128) -> Tensor:
    """``scores.argmax(1)``, several times as fast on a CPU for a vocabulary. *Shapes:* (N, V) -> (N)."""
    if scores.device.type != "cpu":
        return scores.argmax(1)
    V = scores.shape[1]
    whole = V // block * block
    largest = scores[:, :whole].reshape(len(scores), whole // block, block).amax(2)  # (N, V / block)
    if whole < V:
        largest = torch.cat([largest, scores[:, whole:].amax(1, keepdim=True)], dim=1)
    first = block * largest.argmax(1, keepdim=True)
    columns = (first + torch.arange(block, device=first.device)).clamp(max=V - 1)
    return first[:, 0] + scores.gather(1, columns).argmax(1)


class _SmoothedNLL(torch.autograd.Function):
    """Takes the rows a few at a time, so that no fp32 copy of all logits exists: several times as fast on a CPU."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
        nll = logits.new_empty(len(logits), dtype=torch.float32)
        uniform = torch.empty_like(nll)
        for rows in row_chunks(logits):
            log_p = logits[rows].float().log_softmax(-1)
            nll[rows] = -log_p.gather(1, target[rows, None])[:, 0]
            uniform[rows] = -log_p.mean(-1)
        ctx.save_for_backward(logits, target)
        ctx.smoothing = smoothing
        plain = nll.sum()
        ctx.mark_non_differentiable(plain)
        # Not 0 * uniform without smoothing: that is infinite where a token is impossible.
        return ((1 - smoothing) * nll + smoothing * uniform if smoothing else nll).sum(), plain

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
        logits, target = ctx.saved_tensors
        gradient = torch.empty_like(logits)
        for rows in row_chunks(logits):
            # d/dx of -(1 - e) log p(y) - e mean log p = p - (1 - e) [x is y] - e / V
            part = logits[rows].float().softmax(-1)
            part -= ctx.smoothing / logits.shape[1]
            part.scatter_add_(1, target[rows, None], part.new_full((len(part), 1), ctx.smoothing - 1))
            gradient[rows] = part.mul_(grad_loss)
        return gradient, None, None


def smoothed_nll(logits: Tensor, target: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """Label-smoothed and plain negative log-likelihood, each summed over the rows, computed in fp32.

    (1 - e) * nll + e * (the mean over the vocabulary of -log p), for a smoothing of e.

    Args:
        logits: *Shape:* (N, V), any precision; their gradient has the same.
        target: *Shape:* (N).
        smoothing: mass spread evenly over all V tokens.

    Returns:
        The loss, and the plain negative log-likelihood without a gradient.
    """
    loss, plain = _SmoothedNLL.apply(logits, target, smoothing)  # type: ignore[no-untyped-call]
    return loss, plain
