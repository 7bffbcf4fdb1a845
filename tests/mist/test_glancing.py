import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mist_fairseq.mist.glancing import glance, sentence_noise
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


@settings(max_examples=300)
@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=6),
    st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]),
    st.integers(0, 10**6),
)
def test_equals_a_plain_loop(lengths, ratio, seed):
    generator = torch.Generator().manual_seed(seed)
    target, first_look = ragged(lengths, 1, 4, 0, generator), ragged(lengths, 1, 4, 0, generator)
    noise = torch.randint(-(2**63), 2**63 - 1, target.shape, generator=generator)
    real = torch.arange(target.shape[1]) < torch.tensor(lengths)[:, None]
    masked, revealed = glance(target, first_look, real, noise, ratio, MASK)
    for row, length in enumerate(lengths):
        tokens, positions = plain_glance(
            target[row, :length].tolist(), first_look[row, :length].tolist(), noise[row].tolist(), ratio
        )
        assert masked[row, :length].tolist() == tokens
        assert set(revealed[row].nonzero()[:, 0].tolist()) == positions
        assert (masked[row, length:] == 0).all()


def plain_noise(sentence, position, seed):
    """SplitMix64's finaliser (Steele et al. 2014) on unbounded integers, cut to 64 bits."""

    def scramble(x):
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
        return x ^ (x >> 31)

    x = scramble((scramble((sentence + seed * 0x1000003) % 2**64) + position) % 2**64)
    return x - 2**64 if x >= 2**63 else x


@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=5), st.integers(1, 9), st.integers(-(2**64), 2**64))
def test_noise_equals_splitmix(ids, size, seed):
    noise = sentence_noise(torch.tensor(ids), size, seed)
    assert noise.tolist() == [[plain_noise(sentence, t, seed) for t in range(size)] for sentence in ids]


def test_noise_belongs_to_the_sentence():
    """Not to its batch or rank; and each update and each sentence has its own."""
    noise = sentence_noise(torch.arange(1000), 20, seed=5)
    assert torch.equal(sentence_noise(torch.tensor([77, 3]), 10, seed=5), noise[[77, 3], :10])
    assert len(noise.unique()) == 20000
    assert not (noise == sentence_noise(torch.arange(1000), 20, seed=6)).any()


def test_every_position_is_revealed_equally_often():
    target = torch.ones(20000, 4, dtype=torch.long)
    first_look = target.clone()
    first_look[:, :2] = 2  # two of four wrong: one is revealed, right or wrong alike
    noise = sentence_noise(torch.arange(20000), 4, seed=1)
    _, revealed = glance(target, first_look, torch.ones_like(target, dtype=torch.bool), noise, 0.5, MASK)
    assert (revealed.float().mean(0) - 0.25).abs().max() < 0.02
