import torch
from fairseq.optim.lr_scheduler.polynomial_decay_schedule import (
    PolynomialDecayLRSchedule,
    PolynomialDecayLRScheduleConfig,
)

from mist_fairseq.optim.bert_adamw import BertAdamW, BertAdamWConfig
from mist_fairseq.pretrained.bert import BERT
from mist_fairseq.pretrained.names import export
from tests.helpers import tiny_model
from tests.plain_authors import train


def config(**changes):
    result = BertAdamWConfig()
    for name, value in {"lr": [0.1], **changes}.items():
        setattr(result, name, value)
    return result


def test_updates_equal_the_authors():
    """Clipping, decay of matrices only, warm-up from zero and linear decay."""
    model = tiny_model(untie_head=True)
    schedule = PolynomialDecayLRScheduleConfig(warmup_updates=3, total_num_update=10, lr=[1e-3])
    optimizer = BertAdamW(config(lr=[1e-3]), model.parameters())
    scheduler = PolynomialDecayLRSchedule(schedule, optimizer)
    scheduler.step_update(0)
    names = {**BERT.names, "length_head": "embed_length"}
    weights = {name: value.double() for name, value in export(dict(model.encoder.named_parameters()), names).items()}
    gradients = []
    for step in range(8):
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter) * (0.1 if step % 2 else 0.004)  # clipped and not
        own = {name: parameter.grad.clone() for name, parameter in model.encoder.named_parameters()}
        gradients.append(export(own, names))
        optimizer.clip_grad_norm(1.0)
        optimizer.step()
        scheduler.step_update(step + 1)
    with torch.no_grad():
        train(weights, gradients, 1e-3, 3, 10)
    for name, found in export(dict(model.encoder.named_parameters()), names).items():
        torch.testing.assert_close(found.double(), weights[name], atol=4e-6, rtol=0, msg=name)  # epsilon


def test_learning_rate_reaches_all_groups():
    optimizer = BertAdamW(config(), tiny_model().parameters())
    optimizer.set_lr(0.3)
    assert {group["lr"] for group in optimizer.param_groups} == {0.3} and optimizer.get_lr() == 0.3
