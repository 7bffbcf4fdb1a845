import pytest
import torch
from fairseq import utils
from torch.utils._python_dispatch import TorchDispatchMode

import mist_fairseq.tasks  # noqa: F401


class Operations(TorchDispatchMode):
    """Notes the names of what a device would be told to do."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.__name__)
        return function(*args, **kwargs or {})


@pytest.mark.parametrize("max_norm", [0.0, 1.0, 1e6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_clips_as_fairseq(monkeypatch, max_norm, dtype):
    """In a few operations for all tensors, and on a CPU where there is a GPU."""
    theirs, ours = ([torch.nn.Parameter(torch.zeros(3, size, dtype=dtype)) for size in range(1, 60)] for _ in range(2))
    for one, other in zip(theirs, ours):
        one.grad = torch.rand_like(one) * 6e4  # the norm of all is beyond fp16
        other.grad = one.grad.clone()
    expected = utils.clip_grad_norm_.__wrapped__(theirs, max_norm, lambda norm: 2 * norm)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with Operations() as operations:
        norm = utils.clip_grad_norm_(iter(ours), max_norm, lambda norm: 2 * norm)
    assert len(operations.names) <= 10
    torch.testing.assert_close(norm, expected)
    torch.testing.assert_close([weight.grad for weight in ours], [weight.grad for weight in theirs])
    ours[0].grad.fill_(float("inf"))
    assert utils.clip_grad_norm_(ours, max_norm) == float("inf")


def test_a_worker_that_ran_out_of_memory():
    assert utils.clip_grad_norm_([torch.nn.Parameter(torch.zeros(2))], 1.0) == 0
