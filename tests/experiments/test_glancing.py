"""The figures of scripts/measure_glancing.py against plain loops."""

from fractions import Fraction

import pytest
import torch

from mist_fairseq.mist.glancing import sentence_noise
from tests.generate.plain import plain_fill
from tests.helpers import load_script, tiny_encoder_decoder, tiny_released
from tests.mist.test_mixing import plain_mix
from tests.mist.test_objective import some_batch

measure_glancing = load_script("measure_glancing")


@pytest.mark.parametrize("build", [tiny_released, tiny_encoder_decoder])
def test_accuracy_on_what_is_hidden(dictionary, build):
    model, pairs = build(dictionary), some_batch(dictionary)
    special, limit = model.tokenizer.special, model.limits.source
    # Half of the references are what the model says itself, so that something is right.
    for row in range(0, 6, 2):
        T, source = int(pairs.target_lengths[row]), pairs.src_tokens[row, : pairs.src_lengths[row]].tolist()
        said, _ = plain_fill(model, [special.mask] * T, source)
        pairs.target_tokens[row, :T] = torch.tensor(said)
    with torch.no_grad():
        found = measure_glancing.counts(model.encoder, pairs, special, limit, 0.5)

    expected = dict.fromkeys(measure_glancing.COLUMNS, (0, 0))

    def count(column, right, of):
        expected[column] = tuple(a + b for a, b in zip(expected[column], (right, of)))

    for row in range(6):
        source = pairs.src_tokens[row, : pairs.src_lengths[row]].tolist()
        target = pairs.target_tokens[row, : pairs.target_lengths[row]].tolist()
        T, masks = len(target), [special.mask] * len(target)
        noise = sentence_noise(pairs.ids[row : row + 1], T, seed=1)[0].tolist()
        first, _ = plain_fill(model, masks, source)
        count("revealed", sum(a != b for a, b in zip(first, target)) // 2, T)
        mixed = plain_mix(first, source, limit, special.cls, special.sep)
        for share in (Fraction(0), Fraction(1, 3), Fraction(2, 3)):
            shown = sorted(range(T), key=noise.__getitem__)[: int(share * T)]
            tokens = [target[t] if t in shown else special.mask for t in range(T)]
            for name, given in (("", source), ("mixed ", mixed)):
                filled, _ = plain_fill(model, tokens, given)
                hidden = [t for t in range(T) if t not in shown]
                count(f"{name}{share}", sum(filled[t] == target[t] for t in hidden), len(hidden))
    assert {name: tuple(pair.tolist()) for name, pair in found.items()} == expected
    assert 0 < expected["0"][0] < expected["0"][1]
