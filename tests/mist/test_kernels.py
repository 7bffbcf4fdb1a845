import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mist_fairseq.mist.kernels import Linear, argmax, attend, dropout, smoothed_nll


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_drops_its_share_and_keeps_the_mean(p):
    torch.manual_seed(1)
    x = torch.ones(333, 1001, requires_grad=True)
    dropped = dropout(x, p, training=True)
    kept = dropped != 0
    assert kept.float().mean() == pytest.approx(1 - p, abs=4e-3)
    torch.testing.assert_close(dropped[kept], torch.full_like(dropped[kept], 1 / (1 - p)), rtol=1e-3, atol=0)
    assert kept.float().mean(0).std() < 0.04 and kept.float().mean(1).std() < 0.02, "no pattern"
    dropped.sum().backward()
    assert torch.equal(x.grad, dropped.detach()), "the gradient of what is dropped is zero, of the rest the scale"


def test_dropout_is_decided_by_the_seed_and_off_in_evaluation():
    x = torch.rand(50, 7)
    draws = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        draws.append(dropout(x, 0.3, training=True))
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    assert dropout(x, 0.3, training=False) is x and torch.equal(dropout(x, 0.0, training=True), x)
    assert not dropout(x, 1.0, training=True).any()


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("relative", [False, True])
def test_attention_equals_pytorchs(dtype, tolerance, relative):
    torch.manual_seed(1)
    shapes = (2, 3, 5, 8), (2, 3, 9, 8), (2, 3, 9, 8)
    given = [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]
    again = [tensor.detach().clone().requires_grad_() for tensor in given]
    mask = torch.ones(2, 1, 1, 9, dtype=torch.bool)
    mask[0, ..., 6:] = False
    if relative:
        mask = torch.randn(2, 3, 5, 9).masked_fill(~mask, float("-inf"))
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        found = attend(*given, mask, 0.0, training=True)
    expected = F.scaled_dot_product_attention(*again, attn_mask=mask if mask.dtype == torch.bool else mask.to(dtype))
    torch.testing.assert_close(found.to(dtype), expected, atol=tolerance, rtol=0)
    weights = torch.randn_like(expected)
    for result in (found.to(dtype), expected):
        (result * weights).sum().backward()
    for one, other in zip(given, again):
        torch.testing.assert_close(one.grad, other.grad, atol=5 * tolerance, rtol=0)


def test_linear_equals_pytorchs():
    torch.manual_seed(1)
    layer = Linear(24, 40)
    plain = torch.nn.Linear(24, 40)
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(13, 24)
    results = []
    for each in (layer, plain):
        given = x.clone().requires_grad_()
        result = each(given)
        (result * torch.arange(40)).sum().backward()
        results.append([result.detach(), given.grad, each.weight.grad, each.bias.grad])
    for one, other in zip(*results):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-5)
    assert torch.equal(layer.eval()(x), plain(x)), "evaluation is PyTorch's own"


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 5), st.integers(1, 600), st.sampled_from([1, 7, 128]), st.integers(1, 50), st.integers(0, 10**6))
def test_argmax_equals_torchs(rows, width, block, different, seed):
    """Of equal scores the first, in blocks that do and do not divide the width."""
    generator = torch.Generator().manual_seed(seed)
    random = torch.randn(rows, width, generator=generator)
    tied = torch.randint(different, (rows, width), generator=generator).float()
    for scores in (random, tied, tied.masked_fill(tied > different // 2, float("-inf"))):
        with torch.device("meta"):  # another default, as of torch.set_default_device("cuda")
            found = argmax(scores, block)
        assert torch.equal(found, scores.argmax(1))


@pytest.mark.parametrize("width", [1, 127, 128, 129, 256, 30522])
def test_argmax_in_the_first_and_last_place(width):
    scores = torch.zeros(4, width)
    scores[1, -1] = scores[2, 0] = 1
    scores[3] = float("-inf")
    assert argmax(scores).tolist() == [0, width - 1, 0, 0]


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 150), st.sampled_from([0.0, 0.1, 0.3]), st.integers(0, 1000))
def test_smoothed_nll_equals_torchs(rows, smoothing, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.randn(rows, 37, generator=generator) * 3).requires_grad_()
    target = torch.randint(0, 37, (rows,), generator=generator)
    loss, nll = smoothed_nll(logits, target, smoothing)
    (found,) = torch.autograd.grad(loss * 3, logits)
    expected = F.cross_entropy(logits, target, label_smoothing=smoothing, reduction="sum")
    (gradient,) = torch.autograd.grad(expected * 3, logits)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(found, gradient, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(nll, F.cross_entropy(logits, target, reduction="sum").detach())
