from functools import partial

import torch
from fairseq.dataclass.configs import FairseqConfig
from fairseq.optim.amp_optimizer import AMPOptimizer
from omegaconf import OmegaConf

import mist_fairseq.tasks  # noqa: F401
from mist_fairseq.optim.bert_adamw import BertAdamW
from tests.optim.test_bert_adamw import config


def test_gradients_are_divided_by_the_scale_once(monkeypatch):
    """By fairseq twice, which --clip-norm does not see; AdamW hardly does until they are below its epsilon."""
    monkeypatch.setattr(torch.cuda.amp, "GradScaler", partial(torch.amp.GradScaler, "cpu"))
    weight = torch.nn.Parameter(torch.ones(2, 3))
    cfg = OmegaConf.structured(FairseqConfig)
    optimizer = AMPOptimizer(cfg, [weight], BertAdamW(config(), [weight]))
    for clip_norm, expected in ((0.0, 2.0), (1.0, 1 / 6**0.5)):
        optimizer.zero_grad()
        optimizer.backward(2 * weight.sum())
        torch.testing.assert_close(float(optimizer.clip_grad_norm(clip_norm)), 2 * 6**0.5)
        optimizer.step()
        torch.testing.assert_close(weight.grad, torch.full((2, 3), expected))
    before, scale = weight.detach().clone(), optimizer.scaler.get_scale()
    optimizer.backward(weight.sum() * float("inf"))
    optimizer.clip_grad_norm(1.0)
    optimizer.step()
    assert torch.equal(weight, before) and optimizer.scaler.get_scale() == scale / 2
