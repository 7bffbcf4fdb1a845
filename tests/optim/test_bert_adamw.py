import pytest
import torch
from fairseq import utils
from torch.utils._python_dispatch import TorchDispatchMode

from mist_fairseq.optim.bert_adamw import BertAdamW, BertAdamWConfig
from tests.helpers import tiny_model


def config(**changes):
    result = BertAdamWConfig()
    for name, value in {"lr": [0.1], **changes}.items():
        setattr(result, name, value)
    return result


def test_only_matrices_decay():
    model = tiny_model()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = BertAdamW(config(weight_decay=0.5), model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        expected = before[name] * (1 - 0.1 * 0.5) if parameter.dim() >= 2 else before[name]
        torch.testing.assert_close(parameter.detach(), expected, msg=name)


def test_equals_torch_adamw():
    ours, theirs = (torch.nn.Parameter(torch.arange(6.0).view(2, 3)) for _ in range(2))
    optimizer = BertAdamW(config(weight_decay=0.01), [ours])
    reference = torch.optim.AdamW([theirs], lr=0.1, weight_decay=0.01)
    for step in range(5):
        for parameter in (ours, theirs):
            parameter.grad = torch.full((2, 3), 1.0 + step)
        optimizer.step()
        reference.step()
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("max_norm", [0.0, 1.0, 1e6])
def test_clips_as_fairseq(monkeypatch, max_norm):
    """In as many operations for many tensors as for one, and on a CPU where there is a GPU."""
    parameters = [torch.nn.Parameter(torch.zeros(3, size)) for size in range(1, 60)]
    optimizer = BertAdamW(config(), parameters)
    assert optimizer.clip_grad_norm(max_norm) == 0  # a worker that ran out of memory
    gradients = [torch.randn_like(parameter) for parameter in parameters]
    for parameter, gradient in zip(parameters, gradients):
        parameter.grad = gradient.clone()
    expected = utils.clip_grad_norm_(parameters, max_norm)
    clipped = [parameter.grad.clone() for parameter in parameters]
    for parameter, gradient in zip(parameters, gradients):
        parameter.grad.copy_(gradient)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with Operations() as operations:
        norm = optimizer.clip_grad_norm(max_norm)
    torch.testing.assert_close(norm, expected)
    assert len(operations.names) <= 8
    torch.testing.assert_close([parameter.grad for parameter in parameters], clipped)
    parameters[0].grad.fill_(float("inf"))
    assert optimizer.clip_grad_norm(max_norm) == float("inf")


class Operations(TorchDispatchMode):
    """Notes the names of what a device would be told to do."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.__name__)
        return function(*args, **kwargs or {})


def test_learning_rate_reaches_all_groups():
    optimizer = BertAdamW(config(), tiny_model().parameters())
    optimizer.set_lr(0.3)
    assert {group["lr"] for group in optimizer.param_groups} == {0.3} and optimizer.get_lr() == 0.3
