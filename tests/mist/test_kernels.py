import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mist_fairseq.mist.kernels import Linear, added_mask, argmax, attend, dropout, fused_attention


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
        found = attend(*given, added_mask(mask, dtype), 0.0, training=True)
    expected = F.scaled_dot_product_attention(*again, attn_mask=mask if mask.dtype == torch.bool else mask.to(dtype))
    torch.testing.assert_close(found.to(dtype), expected, atol=tolerance, rtol=0)
    weights = torch.randn_like(expected)
    for result in (found.to(dtype), expected):
        (result * weights).sum().backward()
    for one, other in zip(given, again):
        torch.testing.assert_close(one.grad, other.grad, atol=5 * tolerance, rtol=0)


@pytest.mark.parametrize("dtype, cudnn", [(torch.float32, True), (torch.bfloat16, False), (torch.float16, False)])
def test_half_precision_on_a_gpu_is_not_cudnns(monkeypatch, dtype, cudnn):
    chosen, attention = [], F.scaled_dot_product_attention

    def watched(*given):
        backends = torch.backends.cuda
        chosen.append((backends.cudnn_sdp_enabled(), backends.mem_efficient_sdp_enabled(), backends.math_sdp_enabled()))
        return attention(*given)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda self: True))
    query = torch.randn(2, 3, 5, 8, dtype=dtype)
    fused_attention(query, query, query, torch.zeros(2, 1, 1, 5), 0.0)
    assert chosen == [(cudnn, True, True)]
    assert torch.backends.cuda.cudnn_sdp_enabled() and torch.backends.cuda.flash_sdp_enabled(), "nowhere else"


def test_masks_are_what_a_gpus_attention_wants(monkeypatch):
    """As on a CPU, in the precision of the scores, rows at multiples of 16 elements; what is learnt keeps its own."""
    seen = torch.rand(2, 1, 3, 21) < 0.5
    bias = torch.randn(1, 4, 3, 21, requires_grad=True)
    for mask in (seen, bias.detach(), bias):
        on_cpu = added_mask(mask, torch.bfloat16)
        assert on_cpu.dtype == (torch.float32 if mask is bias else torch.bfloat16)
        with monkeypatch.context() as patch:
            patch.setattr(torch.Tensor, "is_cuda", property(lambda self: True))
            on_gpu = added_mask(mask, torch.bfloat16)
        assert torch.equal(on_gpu, on_cpu) and on_gpu.stride(-1) == 1
        assert all(stride % 16 == 0 for stride in on_gpu.stride()[:-1])
    assert torch.equal(added_mask(seen, torch.float32).isfinite(), seen)


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


@settings(max_examples=200)
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
