import torch

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


def test_learning_rate_reaches_all_groups():
    optimizer = BertAdamW(config(), tiny_model().parameters())
    optimizer.set_lr(0.3)
    assert {group["lr"] for group in optimizer.param_groups} == {0.3} and optimizer.get_lr() == 0.3
