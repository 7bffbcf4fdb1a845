"""The loss, its gradients and what is predicted, against torch's cross-entropy over whole logits."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from mist_fairseq.mist import output_layer
from mist_fairseq.mist.heads import likeliest_tokens
from mist_fairseq.mist.output_layer import OutputLayer, logits_of, predicted_tokens, token_loss

NEVER = (0, 2)


def some_layer(rows: int, V=37, D=11, bias=True, seed=0, precision=torch.float32) -> OutputLayer:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(rows, D), (V, D), (V,)]
    made = [torch.randn(shape, generator=generator).to(precision).requires_grad_() for shape in shapes]
    return OutputLayer(*made[:2], made[2] if bias else None)


@settings(max_examples=60)
@given(
    st.integers(1, 150),
    st.sampled_from([0.0, 0.1, 0.3]),
    st.sampled_from([37, 99, 10**6]),
    st.booleans(),
    st.integers(0, 1000),
)
def test_the_loss_equals_torchs(rows, smoothing, at_a_time, bias, seed):
    layer = some_layer(rows, bias=bias, seed=seed)
    target = torch.randint(0, 37, (rows,), generator=torch.Generator().manual_seed(seed))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(output_layer, "LOGITS_AT_A_TIME", at_a_time)
        loss, nll, tokens = token_loss(layer, target, smoothing, NEVER)
        assert torch.equal(predicted_tokens(layer, NEVER), tokens)
        some = torch.randint(0, 37, (rows, 3), generator=torch.Generator().manual_seed(seed))
        torch.testing.assert_close(logits_of(layer, some), F.linear(*layer).gather(1, some).detach())
    inputs = [tensor for tensor in layer if tensor is not None]
    found = torch.autograd.grad(loss * 3, inputs)
    logits = F.linear(*layer)
    expected = F.cross_entropy(logits, target, label_smoothing=smoothing, reduction="sum")
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(nll, F.cross_entropy(logits, target, reduction="sum").detach())
    assert not nll.requires_grad and torch.equal(tokens, likeliest_tokens(logits.detach(), NEVER))
    for one, other in zip(found, torch.autograd.grad(expected * 3, inputs), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


class Largest(TorchDispatchMode):
    """The most elements that a tensor as wide as the vocabulary has, and how many tensors are made."""

    def __init__(self, width: int):
        super().__init__()
        self.width, self.elements, self.operations = width, 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        self.operations += 1
        for tensor in made if isinstance(made, tuple | list) else [made]:
            if isinstance(tensor, torch.Tensor) and tensor.dim() == 2 and tensor.shape[1] == self.width:
                self.elements = max(self.elements, tensor.numel())
        return made


@pytest.mark.parametrize("learn", [True, False])
def test_the_logits_never_exist_whole(monkeypatch, learn):
    monkeypatch.setattr(output_layer, "LOGITS_AT_A_TIME", 10 * 1000)
    layer, target = some_layer(95, V=1000, D=9), torch.arange(95)
    with Largest(1000) as largest, torch.set_grad_enabled(learn):
        loss, _, _ = token_loss(layer, target, 0.1, NEVER)
        predicted_tokens(layer, NEVER)
        if learn:
            loss.backward()
    assert loss.requires_grad == learn and largest.elements == 10 * 1000


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_autocast_casts_the_product_alone(precision):
    """As torch's own: the losses in fp32 over logits in half precision, and gradients in the weights' precision."""
    target = torch.arange(70) % 37
    gradients = []
    for whole in (False, True):
        layer = some_layer(70)
        with torch.autocast("cpu", precision):
            if whole:
                loss = F.cross_entropy(F.linear(*layer).float(), target, label_smoothing=0.1, reduction="sum")
            else:
                loss, _, _ = token_loss(layer, target, 0.1, NEVER)
        loss.backward()
        gradients.append([loss.detach(), *(tensor.grad for tensor in layer)])
    for one, other in zip(*gradients, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, atol=0.02 * float(other.abs().max()), rtol=0)


def test_fp16_keeps_small_probabilities():
    """Of 60,000 tokens each has a probability below fp16's smallest normal number, and the loss is not scaled yet."""
    layer, target = some_layer(4, V=60_000, D=8, precision=torch.float16), torch.arange(4)
    exact = [tensor.detach().double().requires_grad_() for tensor in layer]
    loss, _, _ = token_loss(layer, target, 0.0, NEVER)
    (found,) = torch.autograd.grad(loss * 1024, layer.weight)
    (expected,) = torch.autograd.grad(F.cross_entropy(F.linear(*exact), target, reduction="sum") * 1024, exact[1])
    error = (found.double() - expected).norm(dim=1) / expected.norm(dim=1)
    assert float(error.median()) < 5e-3


EXTREME = {  # what becomes of a bias of zeros
    "large": lambda bias: bias,
    "one far above": lambda bias: bias.index_fill(0, torch.tensor([3]), 1e4),
    "one far below": lambda bias: bias.index_fill(0, torch.tensor([3]), -1e4),
    "all equal": lambda bias: torch.full_like(bias, 7.0),
    "impossible tokens": lambda bias: bias.index_fill(0, torch.tensor([0, 3, 36]), float("-inf")),
    "only one possible": lambda bias: torch.full_like(bias, float("-inf")).index_fill(0, torch.tensor([5]), 2.0),
}


@pytest.mark.parametrize("change", EXTREME)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16, torch.float16])
def test_losses_of_extreme_logits_equal_torchs_in_fp64(change, smoothing, precision):
    rows = 70  # more than one of the parts that fit into a cache
    noise = torch.randn(rows, 37, generator=torch.Generator().manual_seed(0)).to(precision)
    noise = noise * {"large": 1e4, "all equal": 0}.get(change, 1)
    bias = EXTREME[change](torch.zeros(37)).to(precision)
    layer = OutputLayer(noise, torch.eye(37, dtype=precision), bias.requires_grad_())
    target = torch.arange(rows) % 5 + 5 if bias.isfinite().sum() > 1 else torch.full((rows,), 5)
    exact = F.linear(*layer).detach().double().requires_grad_()
    loss, nll, _ = token_loss(layer, target, smoothing, ())
    (gradient,) = torch.autograd.grad(loss, bias)
    expected = F.cross_entropy(exact, target, label_smoothing=smoothing, reduction="sum")
    plain = F.cross_entropy(exact, target, reduction="sum").detach()
    torch.testing.assert_close(loss.detach().double(), expected.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(nll.double(), plain, rtol=1e-5, atol=1e-5)
    assert gradient.dtype == precision and gradient.isfinite().all() and plain.isfinite()
    assert loss.isfinite() or (smoothing and exact.isinf().any())  # what is impossible has no finite share
    if loss.isfinite():
        (of_torch,) = torch.autograd.grad(expected, exact)
        atol = 1e-4 if precision == torch.float32 else 0.5
        torch.testing.assert_close(gradient.double(), of_torch.sum(0), rtol=0, atol=atol)
