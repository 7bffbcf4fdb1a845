"""``--store-ema``; tests/end_to_end/test_resume.py trains with it."""

from types import SimpleNamespace

import pytest
import torch
from fairseq.models.ema.ema import EMA
from torch import nn

import mist_fairseq.tasks  # noqa: F401
from tests.helpers import tiny_model


class Shares(nn.Module):
    """One matrix under two names, as the embeddings of most models, a number that counts, and a name of fairseq's."""

    def __init__(self):
        super().__init__()
        self.embeddings, self.output = nn.Linear(3, 4, bias=False), nn.Linear(3, 4, bias=False)
        self.output.weight = self.embeddings.weight
        self.conversion = nn.Linear(2, 2)
        self.register_buffer("updates", torch.tensor([0]))


def config(**changes):
    plain = dict(ema_decay=0.75, ema_start_update=0, ema_seed_model=None, ema_update_freq=1, ema_fp32=False)
    return SimpleNamespace(**{**plain, **changes})


def trained(model, ema, updates, first=1):
    """Move all weights, one update after the other; their values after each, and the means by plain sums."""
    values = []
    for update in range(first, first + updates):
        for parameter in model.parameters():
            parameter.data.add_(update)
        for buffer in model.buffers():
            buffer.add_(1)
        ema.step(model, update)
        values.append({name: value.clone() for name, value in model.state_dict().items()})
    return values


@pytest.mark.parametrize("in_fp32", [False, True])
def test_every_weight_moves_once_and_whole_numbers_are_copied(in_fp32):
    model = Shares().half() if in_fp32 else Shares()
    mean = {name: value.double() for name, value in model.state_dict().items()}
    ema = EMA(model, config(ema_fp32=in_fp32))
    for values in trained(model, ema, 4):
        mean = {name: 0.75 * mean[name] + 0.25 * value for name, value in values.items()}
    found = ema.get_model().state_dict()
    assert found["updates"].tolist() == [4]
    for name in found.keys() - {"updates"}:
        torch.testing.assert_close(found[name].double(), mean[name], atol=0.01 if in_fp32 else 1e-5, rtol=0)


def test_our_model_has_a_mean():
    model = tiny_model()
    limits, fingerprint = model.trained_limits.clone(), model.fingerprint.clone()
    ema = EMA(model, config())
    for parameter in model.parameters():
        parameter.data.add_(1)
    expected = {name: value.data - 0.75 for name, value in model.named_parameters()}
    ema.step(model, 1)
    found = ema.get_model().state_dict()
    assert torch.equal(found.pop("trained_limits"), limits)
    assert torch.equal(found.pop("fingerprint"), fingerprint)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


def test_updates_between_means_are_counted_on_where_a_training_goes_on():
    torch.manual_seed(0)
    model = Shares()
    whole = EMA(model, config(ema_update_freq=3))
    trained(model, whole, 5)
    resumed = EMA(model, config(ema_update_freq=3))
    resumed.restore(whole.get_model().state_dict())
    for update in range(6, 8):
        for ema in (whole, resumed):
            ema.step(model, update)
        model.conversion.weight.data.add_(1)
    for name, value in whole.get_model().state_dict().items():
        assert torch.equal(value, resumed.get_model().state_dict()[name])
