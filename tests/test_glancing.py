import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mist_fairseq.glancing import glance
from tests.helpers import ragged

MASK = 99


def plain_glance(target, first_look, noise, ratio):
    """One sentence: which positions are revealed."""
    wrong = 0
    for gold, predicted in zip(target, first_look):
        if gold != predicted:
            wrong += 1
    budget = int(ratio * wrong)
    order = sorted(range(len(target)), key=lambda position: noise[position])
    revealed = set(order[:budget])
    return [gold if position in revealed else MASK for position, gold in enumerate(target)], revealed


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=6),
    st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]),
    st.integers(0, 10**6),
)
def test_equals_a_plain_loop(lengths, ratio, seed):
    generator = torch.Generator().manual_seed(seed)
    target, first_look = ragged(lengths, 1, 4, 0, generator), ragged(lengths, 1, 4, 0, generator)
    noise = torch.rand(target.shape, generator=generator)
    real = torch.arange(target.shape[1]) < torch.tensor(lengths)[:, None]
    masked, revealed = glance(target, first_look, real, noise, ratio, MASK)
    for row, length in enumerate(lengths):
        tokens, positions = plain_glance(
            target[row, :length].tolist(), first_look[row, :length].tolist(), noise[row].tolist(), ratio
        )
        assert masked[row, :length].tolist() == tokens
        assert set(revealed[row].nonzero()[:, 0].tolist()) == positions
        assert (masked[row, length:] == 0).all()


def test_every_position_is_revealed_equally_often():
    generator = torch.Generator().manual_seed(0)
    target = torch.ones(20000, 4, dtype=torch.long)
    first_look = target.clone()
    first_look[:, :2] = 2  # two of four wrong: one is revealed, right or wrong alike
    noise = torch.rand(target.shape, generator=generator)
    _, revealed = glance(target, first_look, torch.ones_like(target, dtype=torch.bool), noise, 0.5, MASK)
    assert (revealed.float().mean(0) - 0.25).abs().max() < 0.02
