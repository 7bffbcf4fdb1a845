"""Where hints come from against plain loops, and that they are half an embedding."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from mist_fairseq.mist.hints import NONE, uniform_copy
from tests.helpers import flat, sources, targets, tiny_dictionary, tiny_released

SOURCES, TARGETS = [9, 4, 2, 13, 7], [5, 12, 1, 13, 2]


def plain_copy(source: list[int], T: int) -> list[int]:
    """[SEP] goes to [SEP], the first token to the first, and what lies between to the nearest."""
    inner = source[1:]
    copied = []
    for t in range(T):
        place = Fraction(t * (len(inner) - 1), max(1, T - 1))
        copied.append(inner[int(place + Fraction(1, 2))])
    return copied


@pytest.mark.parametrize("array", [torch.as_tensor, np.asarray])
def test_uniform_copy(array):
    tokens, lengths = sources(SOURCES, tiny_dictionary())
    actual = uniform_copy(array(tokens), array(lengths), array(torch.tensor(TARGETS)), max(TARGETS))
    for row, T in enumerate(TARGETS):
        expected = plain_copy(tokens[row, : lengths[row]].tolist(), T)
        assert actual[row, :T].tolist() == expected


def test_a_hint_is_half_an_embedding():
    model = tiny_released(token_types=2)
    encoder, dictionary = model.encoder, tiny_dictionary()
    src, src_lengths = sources(SOURCES, dictionary)
    tokens, lengths = targets(TARGETS, dictionary)
    state = encoder.encode_source(src, src_lengths, flat(src_lengths.tolist()))
    index = flat(TARGETS)
    plain = encoder.decode_target(tokens, lengths, index, state)
    none = torch.full_like(tokens, NONE)
    assert torch.equal(encoder.decode_target(tokens, lengths, index, state, none), plain)
    hint, at = 30, 3
    hints = none.clone()
    hints.view(-1)[index[at]] = hint
    changed = tokens.clone()
    changed.view(-1)[index[at]] = 0
    with torch.no_grad():
        half = encoder.word_embeddings.weight[tokens.flatten()[index[at]]] + 0.5 * encoder.word_embeddings.weight[hint]
        actual = encoder.decode_target(tokens, lengths, index, state, hints)
        encoder.word_embeddings.weight[0] = half
        torch.testing.assert_close(actual, encoder.decode_target(changed, lengths, index, state))
