import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mist_fairseq.mist.mixing import mix_source
from tests.helpers import ragged

PAD, CLS, SEP = 0, 1, 2


def plain_mix(pseudo, source, limit):
    """``[CLS] Y_p [SEP] X [SEP]`` of one sentence, X cut so that all fits."""
    mixed = [CLS, *pseudo]
    if pseudo[-1] != SEP:
        mixed.append(SEP)
    mixed += source[1:]
    if len(mixed) > limit:
        mixed = mixed[: limit - 1]
        mixed.append(SEP)
    return mixed


@st.composite
def batches(draw):
    rows = draw(st.lists(st.tuples(st.integers(1, 9), st.integers(2, 12)), min_size=1, max_size=5))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    pseudo = ragged([t for t, _ in rows], 2, 6, PAD, generator)  # [SEP]s anywhere, often in the end
    source = ragged([s for _, s in rows], 2, 9, PAD, generator)
    source[:, 0] = CLS
    for row, (_, length) in enumerate(rows):
        source[row, length - 1] = SEP
    return rows, pseudo, source, draw(st.integers(3, 26))


@settings(max_examples=300, deadline=None)
@given(batches())
def test_equals_a_plain_loop(case):
    rows, pseudo, source, limit = case
    pseudo_lengths, source_lengths = (torch.tensor(lengths) for lengths in zip(*rows))
    source_lengths = source_lengths.clamp(max=limit)  # a source is cut before it is mixed
    mixed, lengths = mix_source(pseudo, pseudo_lengths, source, source_lengths, limit=limit, sep=SEP, pad=PAD)
    for row, (t, _) in enumerate(rows):
        s = int(source_lengths[row])
        expected = plain_mix(pseudo[row, :t].tolist(), source[row, :s].tolist(), limit)
        assert mixed[row, : len(expected)].tolist() == expected
        assert lengths[row] == len(expected)
        assert (mixed[row, len(expected) :] == PAD).all()
    assert mixed.shape[1] <= limit


def test_padding_is_told_by_lengths_not_values():
    """A real token may have the padding's id."""
    pseudo, source = torch.tensor([[5, PAD, 6]]), torch.tensor([[CLS, PAD, 7, SEP]])
    mixed, lengths = mix_source(pseudo, torch.tensor([3]), source, torch.tensor([4]), limit=99, sep=SEP, pad=PAD)
    assert mixed[0, : lengths[0]].tolist() == [CLS, 5, PAD, 6, SEP, PAD, 7, SEP]
