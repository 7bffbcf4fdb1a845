import torch
from hypothesis import given
from hypothesis import strategies as st

from mist_fairseq.mist.packing import pack, padding_mask, real_positions, unpack
from tests.helpers import flat


@given(st.lists(st.integers(0, 5), min_size=1, max_size=4), st.integers(0, 2))
def test_rows_go_and_come_back(lengths, padding):
    B, L = len(lengths), max(lengths + [1]) + padding
    padded = torch.arange(B * L * 3.0).view(B, L, 3) + 1
    sizes = torch.tensor(lengths)
    assert padding_mask(sizes, L).tolist() == [[t < length for t in range(L)] for length in lengths]
    index = real_positions(sizes, L)
    assert index.tolist() == flat(lengths, L).tolist()
    rows = [padded[row, t].tolist() for row, length in enumerate(lengths) for t in range(length)]
    assert pack(padded, index).tolist() == rows
    back = unpack(pack(padded, index), index, B, L)
    assert torch.equal(back, padded * padding_mask(sizes, L)[:, :, None])
