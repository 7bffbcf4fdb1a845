"""What makes a device fast and changes no result: dropout, attention, fp32 products and the likeliest tokens.

Each function computes what its docstring says in PyTorch's terms; but for attention it is PyTorch's own on a GPU.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel


class _Dropout(torch.autograd.Function):
    """Elements are dropped where 16 random bits are below a threshold."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, threshold: int) -> Tensor:
        bits = (
            torch.empty(-(-x.numel() // 4), dtype=torch.int64, device=x.device)
            .random_(-(2**63), None)
            .view(torch.int16)
        )
        kept = bits[: x.numel()].ge_(threshold - 2**15).neg_().view(x.shape)  # all bits are set, or none
        ctx.save_for_backward(kept)
        ctx.scale = 2**16 / (2**16 - threshold)
        return _kept(x, kept).mul_(ctx.scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _kept(gradient, *ctx.saved_tensors).mul_(ctx.scale), None


def _kept(x: Tensor, kept: Tensor) -> Tensor:
    """*x* where *kept* is -1, else 0. By their bits: a product with booleans takes five times as long."""
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]
    return (x.view(integer) & kept.to(integer)).view(x.dtype)


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """``F.dropout``, which on a CPU spends ten times as long on its random numbers.

    There *p* is rounded to a multiple of 1 / 65536, and what is kept is scaled accordingly.
    """
    threshold = round(p * 2**16)
    if not training or x.device.type != "cpu" or not 0 < threshold < 2**16:
        return F.dropout(x, p, training)
    dropped: Tensor = _Dropout.apply(x, threshold)  # type: ignore[no-untyped-call]
    return dropped


def computing_dtype(tensor: Tensor) -> torch.dtype:
    """The precision of products with *tensor*: autocast's, or its own."""
    device = tensor.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else tensor.dtype


def added_mask(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask as attention adds it to the scores, -inf where nothing is seen, made once for all layers.

    On a GPU the rows lie at multiples of 16 elements, as its kernels want them: each layer would copy others.

    Args:
        mask: True at what is seen, or a bias, which stays in its precision while it is learnt, *Shape:* (..., K).
        dtype: of the scores.
    """
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, float("-inf"))
    elif not mask.requires_grad:
        mask = mask.to(dtype)
    K = mask.shape[-1]
    return F.pad(mask, (0, -K % 16))[..., :K] if mask.is_cuda else mask


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, p: float, training: bool) -> Tensor:
    """Attention with dropout *p*; *mask* is of ``added_mask``.

    *Shapes:* (B, H, L, d), twice (B, H, K, d), broadcastable to (B, H, L, K) -> (B, H, L, d).
    """
    if training and query.device.type == "cpu":
        scores = query * query.shape[-1] ** -0.5 @ key.transpose(2, 3) + mask
        weights = _at_least_single(scores).softmax(-1).to(scores.dtype)
        return dropout(weights, p, training) @ value
    return fused_attention(query, key, value, mask, p if training else 0.0)


def _at_least_single(x: Tensor) -> Tensor:
    """*x* in fp32 if it is in half precision, in which softmax and the largest element take four times as long."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def fused_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, p: float) -> Tensor:
    """PyTorch's attention; in half precision on a GPU by its memory-efficient kernel. Arguments as of ``attend``.

    PyTorch prefers cuDNN's on newer GPUs, which makes a plan for each shape, in up to a second, and of which NaN in
    gradients with masks are reported; the flash kernel takes no masks.
    """
    with _without_cudnn() if query.is_cuda and query.dtype != torch.float32 else nullcontext():
        return F.scaled_dot_product_attention(query, key, value, mask.to(query.dtype), p)


def _without_cudnn() -> AbstractContextManager[None]:
    """PyTorch's ``sdpa_kernel``, which torch.compile knows, or the same in a twentieth of its time."""
    if torch.compiler.is_compiling():
        return sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])
    return _switched_off()


@contextmanager
def _switched_off() -> Iterator[None]:
    before: bool = torch.backends.cuda.cudnn_sdp_enabled()  # type: ignore[no-untyped-call]
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


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


def row_chunks(rows: Tensor, size: int | None = None) -> list[slice]:
    """Slices over the rows of (N, X), one of them at least.

    By default of a *size* that keeps temporaries as wide as a vocabulary in a CPU's cache; a GPU takes all at once.
    """
    size = size or (64 if rows.device.type == "cpu" else max(1, len(rows)))
    return [slice(start, start + size) for start in range(0, max(1, len(rows)), size)]


def argmax(scores: Tensor, block: int = 128) -> Tensor:
    """``scores.argmax(1)``, several times as fast on a CPU for a vocabulary. *Shapes:* (N, V) -> (N)."""
    if scores.device.type != "cpu":
        return scores.argmax(1)
    V, scores = scores.shape[1], _at_least_single(scores)
    whole = V // block * block
    largest = scores[:, :whole].reshape(len(scores), whole // block, block).amax(2)  # (N, V / block)
    if whole < V:
        largest = torch.cat([largest, scores[:, whole:].amax(1, keepdim=True)], dim=1)
    first = block * largest.argmax(1, keepdim=True)
    columns = (first + torch.arange(block, device=first.device)).clamp(max=V - 1)
    return first[:, 0] + scores.gather(1, columns).argmax(1)
