import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mist_fairseq.mist.mixing import mix_source

PAD, CLS, SEP = 0, 1, 2


def plain_mix(pseudo, source, limit, cls=CLS, sep=SEP):
    """``[CLS] Y_p [SEP] X [SEP]`` of one sentence, X cut so that all fits."""
    mixed = [cls, *pseudo]
    if pseudo[-1] != sep:
        mixed.append(sep)
    mixed += source[1:]
    if len(mixed) > limit:
        mixed = mixed[: limit - 1]
        mixed.append(sep)
    return mixed


def padded(rows, width):
    return np.array([row + [PAD] * (width - len(row)) for row in rows])


words = st.integers(0, 6)  # [SEP]s and padding's id anywhere
pairs = st.tuples(st.lists(words, min_size=1, max_size=9), st.lists(words, max_size=10))


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
@settings(max_examples=200)
@given(rows=st.lists(pairs, min_size=1, max_size=5), limit=st.integers(3, 26), padding=st.integers(0, 2))
def test_equals_a_plain_loop(kind, rows, limit, padding):
    outputs = [pseudo for pseudo, _ in rows]
    sources = [[CLS, *text[: limit - 2], SEP] for _, text in rows]  # a source is cut before it is mixed
    given = []
    for side in (outputs, sources):
        lengths = np.array([len(row) for row in side])
        given += [kind(padded(side, lengths.max() + padding)), kind(lengths)]
    mixed, lengths = mix_source(*given, limit=limit, sep=SEP, pad=PAD)
    assert type(mixed) is type(lengths) is type(given[0]) and mixed.dtype == given[0].dtype
    assert mixed.shape == (len(rows), min(given[0].shape[1] + given[2].shape[1] + 1, limit))
    expected = [plain_mix(*pair, limit) for pair in zip(outputs, sources)]
    assert lengths.tolist() == list(map(len, expected))
    assert mixed.tolist() == padded(expected, mixed.shape[1]).tolist()
