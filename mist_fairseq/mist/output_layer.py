"""The product with the vocabulary, and what training reads off it: the loss and the likeliest tokens.

Both take a few rows at a time: a batch's logits (N, V) never exist whole, and neither does their gradient.
Dimensions as in ``mist.encoder``.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mist_fairseq.mist.copying import Copies, add_copies_
from mist_fairseq.mist.heads import likeliest_tokens
from mist_fairseq.mist.kernels import computing_dtype, linear, row_chunks

LOGITS_AT_A_TIME = 2**24


class OutputLayer(NamedTuple):
    """The logits are x @ weight^T + bias. *Shapes:* x (N, D), weight (V, D), bias (V) or None."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None


class TokenLoss(NamedTuple):
    """Sums over the rows, in fp32, and the likeliest token of each row (N); only *loss* has a gradient.

    *loss* is (1 - e) * nll + e * (the mean over the vocabulary of -log p), for a label smoothing of e; *nll* the plain
    negative log-likelihood.
    """

    loss: Tensor
    nll: Tensor
    tokens: Tensor


def token_loss(
    layer: OutputLayer, target: Tensor, smoothing: float, never: tuple[int, ...], copies: Copies | None = None
) -> TokenLoss:
    """The loss of predicting *target* (N), and what is predicted of all but the tokens of *never*.

    With *copies* the rows' tokens may also be copied.
    """
    inputs = *layer, *(copies or (None, None, None))
    learn = torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in inputs)
    return TokenLoss(*_TokenLoss.apply(*inputs, target, smoothing, never, learn))  # type: ignore[no-untyped-call]


@torch.no_grad()
def predicted_tokens(layer: OutputLayer, never: tuple[int, ...], copies: Copies | None = None) -> Tensor:
    """The likeliest token of each row, which may be one of *copies*, but none of *never*. -> (N)."""
    return torch.cat([likeliest_tokens(logits, never) for _, logits in _logits(layer, copies)])


@torch.no_grad()
def logits_of(layer: OutputLayer, tokens: Tensor, copies: Copies | None = None) -> Tensor:
    """The logits of some tokens of each row, which may be copied, too. *Shape:* (N, T), as of *tokens*."""
    return torch.cat([logits.gather(1, tokens[rows]) for rows, logits in _logits(layer, copies)])


def _logits(layer: OutputLayer, copies: Copies | None) -> Iterator[tuple[slice, Tensor]]:
    """Some rows at a time, and their logits."""
    for rows in row_chunks(layer.x, rows_at_a_time(layer.weight)):
        logits = linear(layer.x[rows], layer.weight, layer.bias, True)
        if copies is not None:
            add_copies_(logits, copies.rows(rows))
        yield rows, logits


def rows_at_a_time(weight: Tensor) -> int:
    """How many rows of logits there may be. *Shape:* (V, D)."""
    return max(1, LOGITS_AT_A_TIME // len(weight))


class _TokenLoss(torch.autograd.Function):
    """The gradients are made along with the loss, while the logits are there; ``backward`` scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        scores: Tensor | None,
        source_tokens: Tensor,
        together: Tensor,
        target: Tensor,
        smoothing: float,
        never: tuple[int, ...],
        learn: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        dtype, V = computing_dtype(x), len(weight)
        # fp16 has no numbers as small as most probabilities; the scale of the loss is known only in ``backward``.
        of_gradients = torch.float32 if dtype == torch.float16 else dtype
        cast_weight, cast_bias = weight.to(dtype), None if bias is None else bias.to(dtype)
        losses, tokens = x.new_zeros(2, len(x), dtype=torch.float32), torch.empty_like(target)
        of_x, of_weight, of_bias = torch.empty_like(x), None, None
        of_scores = None if scores is None else torch.empty_like(scores)
        with torch.autocast(x.device.type, enabled=False):
            for chunk in row_chunks(x, rows_at_a_time(weight)):
                rows, golds = x[chunk].to(dtype), target[chunk, None]
                logits = linear(rows, cast_weight, cast_bias, True)
                if scores is not None:
                    copies = Copies(scores, source_tokens, together).rows(chunk)
                    chosen, either = add_copies_(logits, copies)
                gradient = logits.to(of_gradients)  # in place of the logits, but in fp16
                for part in row_chunks(logits):
                    wide, gold = logits[part].float(), golds[part]
                    p = wide.softmax(-1)
                    total = wide.amax(-1) - p.amax(-1).log()  # logsumexp: the largest p is no underflow
                    losses[0, chunk][part] = total - wide.gather(1, gold)[:, 0]
                    losses[1, chunk][part] = total - wide.mean(-1)
                    tokens[chunk][part] = likeliest_tokens(wide, never)
                    if learn:
                        # d/dx of -(1 - e) log p(y) - e mean log p = p - (1 - e) [x is y] - e / V
                        p.sub_(smoothing / V)
                        gradient[part] = p.scatter_add_(1, gold, p.new_full(gold.shape, smoothing - 1))
                if learn and of_scores is not None:
                    # Choosing and copying have their shares of a token's odds.
                    of_both = gradient.gather(1, copies.tokens).float()
                    gradient.scatter_(1, copies.tokens, (of_both * (chosen - either).exp()).to(gradient.dtype))
                    of_scores[chunk] = of_both * (copies.scores - either).exp()
                if learn:
                    of_x[chunk] = linear(gradient, cast_weight.to(of_gradients).t(), None, True)
                    of_weight = _added(of_weight, gradient.t() @ rows.to(of_gradients))
                    of_bias = _added(of_bias, gradient.sum(0))
        if learn and of_weight is not None and of_bias is not None:
            ctx.save_for_backward(of_x, of_weight.to(of_gradients), of_bias, of_scores)
        ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in (x, weight, bias, scores)]
        nll, uniform = losses.sum(1)
        ctx.mark_non_differentiable(nll, tokens)
        # Not 0 * uniform without smoothing: that is infinite where a token is impossible.
        return (1 - smoothing) * nll + smoothing * uniform if smoothing else nll.clone(), nll, tokens

    @staticmethod
    def backward(ctx: Any, of_loss: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        scaled = [
            None if dtype is None else (gradient * of_loss).to(dtype)
            for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return *scaled, *[None] * 6


def _added(total: Tensor | None, part: Tensor) -> Tensor:
    """Sums of several parts are in fp32."""
    return part if total is None else total.float().add_(part)
