import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mist_fairseq.engines.length_guesser import LengthGuesser

SOURCE, TARGET = 12, 9


def plain_count(learned, source, target):
    """What speaks for a target length: sources of about this length, twice those of this one, and a little a priori."""
    count = 1e-3 / (1 + abs(target + 1 - source))
    for other_source, other_target in learned:
        if other_target == target:
            count += (abs(other_source - source) <= 2) + (other_source == source)
    return count


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(2, SOURCE), st.integers(3, TARGET)), max_size=30),
    st.integers(1, 12),
    st.lists(st.integers(2, SOURCE), min_size=1, max_size=4),
)
def test_equals_a_plain_loop(learned, number, asked):
    """Whatever the batches in which it learned; of lengths that are equally likely it may take any."""
    guesser = LengthGuesser(number, (SOURCE, TARGET), shortest=3)
    rest = list(learned)
    rng = random.Random(len(rest))
    while rest:
        size = rng.randint(1, 4)
        guesser.learn(*(torch.tensor(column) for column in zip(*rest[:size])))
        rest = rest[size:]
    guesses = guesser.guess(torch.tensor(asked))
    assert guesses.shape == (len(asked), min(number, TARGET - 3 + 1))
    for source, row in zip(asked, guesses.tolist()):
        assert len(set(row)) == len(row) and all(3 <= length <= TARGET for length in row)
        counts = [plain_count(learned, source, length) for length in row]
        best = sorted((plain_count(learned, source, length) for length in range(3, TARGET + 1)), reverse=True)
        assert counts == pytest.approx(best[: len(row)], abs=1e-5)


def test_before_anything_is_seen_a_target_is_as_long_as_its_source():
    """[CLS] is the source's alone."""
    guesser = LengthGuesser(1, (SOURCE, TARGET))
    sources = torch.arange(3, TARGET + 2)
    assert guesser.guess(sources)[:, 0].tolist() == [length - 1 for length in sources.tolist()]


def test_never_below_the_shortest():
    for shortest in range(2, TARGET + 1):
        guesser = LengthGuesser(TARGET, (SOURCE, TARGET), shortest)
        guesses = guesser.guess(torch.tensor([2, SOURCE]))
        assert [sorted(row) for row in guesses.tolist()] == [list(range(shortest, TARGET + 1))] * 2


def test_a_sentence_seen_once_is_guessed_before_its_neighbours():
    guesser = LengthGuesser(2, (SOURCE, TARGET))
    guesser.learn(torch.tensor([6, 8]), torch.tensor([9, 2]))
    assert guesser.guess(torch.tensor([6, 8])).tolist() == [[9, 2], [2, 9]]
    assert guesser.guess(torch.tensor([4])).tolist()[0][0] == 9  # two away from the first, four from the second
    assert guesser.guess(torch.tensor([11])).tolist()[0][0] == 9  # three away: neither counts


def test_sources_at_the_ends():
    guesser = LengthGuesser(1, (SOURCE, TARGET))
    guesser.learn(torch.tensor([0, 1, SOURCE]), torch.tensor([5, 5, 2]))
    assert guesser.guess(torch.tensor([0, SOURCE])).tolist() == [[5], [2]]
    assert guesser.counts.shape == (SOURCE + 1, TARGET + 1)


def test_hits_are_left_to_the_caller():
    guesser = LengthGuesser(2, (SOURCE, TARGET))
    guesser.guess(torch.tensor([6]))
    guesser.learn(torch.tensor([6]), torch.tensor([5]))
    assert (guesser.hits, guesser.total) == (0, 0)
