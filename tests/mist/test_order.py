"""The likeliest order against all orders."""

import itertools

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from mist_fairseq.mist.order import likeliest_order


@given(st.integers(1, 4), st.integers(1, 6), st.integers(0, 1000))
def test_it_is_the_likeliest_of_all_orders(B, T, seed):
    random = np.random.default_rng(seed)
    logits, target = random.normal(size=(B, T, T)), random.integers(0, 5, (B, T))
    free = random.random((B, T)) < 0.8
    ordered = likeliest_order(*map(torch.from_numpy, (logits, target, free))).numpy()
    for b in range(B):
        here = list(np.flatnonzero(free[b]))
        best = max(itertools.permutations(here), key=lambda order: logits[b, here, order].sum())
        expected = target[b].copy()
        expected[here] = target[b, list(best)]
        assert (ordered[b] == expected).all()


def test_without_free_places_nothing_changes():
    target = torch.tensor([[5, 6, 7]])
    assert torch.equal(likeliest_order(torch.randn(1, 3, 3), target, torch.zeros(1, 3, dtype=torch.bool)), target)


def test_nan_does_not_end_the_search():
    ordered = likeliest_order(
        torch.full((1, 2, 2), torch.nan), torch.tensor([[5, 6]]), torch.ones(1, 2, dtype=torch.bool)
    )
    assert ordered[0].sort().values.tolist() == [5, 6]
