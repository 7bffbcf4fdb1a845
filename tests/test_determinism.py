"""An output is its sentence's own: whatever else is in the batch, in which order, and however it is padded.

Bit for bit only where the same batch is repeated: for other shapes libraries add up in other orders, which changes the
last digits of a score. A word can change only where two choices are as good as equal.
"""

from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mist_fairseq.generate import decoding as loops
from mist_fairseq.generate.decoding import Decoding
from tests.generate.plain import DECODINGS, Runner
from tests.helpers import tiny_dictionary, tiny_encoder_decoder, tiny_released

ROUNDING = 1e-4  # of scores, and of what may tip a choice; about ten times what was seen
DICTIONARY = tiny_dictionary()
SPECIAL = DICTIONARY.tokenizer.special

SYSTEMS = {
    "pytorch": lambda: Runner(tiny_released(DICTIONARY)),
    "relative positions": lambda: Runner(tiny_released(DICTIONARY, rel_pos_bins=8)),
    "onnxruntime": lambda: Runner(tiny_released(DICTIONARY), "onnxruntime"),
    "encoder-decoder": lambda: Runner(tiny_encoder_decoder(DICTIONARY)),
}


@pytest.fixture(scope="module", params=SYSTEMS)
def system(request) -> Runner:
    return SYSTEMS[request.param]()


def narrowest_choice(model, source: list[int], decoding: Decoding) -> float:
    """How much better the best is than the next, at the tightest choice on the way to a sentence's output.

    Choices are those of the lengths, of a word at each position in each pass, of what Mask-Predict masks again, and
    the order of the candidates; by PyTorch alone.
    """
    gaps = [float("inf")]

    def note(scores, number):
        """The *number* best of each row, and the next."""
        best = torch.as_tensor(scores).sort(dim=-1, descending=True).values[..., : number + 1]
        gaps.extend((best[..., :-1] - best[..., 1:]).flatten().tolist())

    run = Runner(model)
    token_logits, length_logits = run.engine.token_logits, run.engine.length_logits

    def noted_tokens(hidden):
        logits = token_logits(hidden)
        note(logits.index_fill(-1, torch.tensor(SPECIAL.never_predicted), -1e9), 1)
        return logits

    def noted_lengths(state):
        logits = length_logits(state)
        note(logits[:, 2 : model.limits.target + 1], decoding.width)
        return logits

    def noted(scores, lengths, number):
        for row, length in zip(scores, lengths):
            note(row[:length], len(row))
        return least_confident(scores, lengths, number)

    least_confident = loops.least_confident
    run.engine.token_logits, run.engine.length_logits = noted_tokens, noted_lengths
    with mock.patch.object(loops, "least_confident", noted):
        (ranked,) = run([source], decoding)
    note([one["score"] for one in ranked], len(ranked))
    return min(gaps)


def differs(system, decoding, source, found, expected) -> bool:
    """Check the candidates of a source. Whether its words differ, which they may at choices as tight as rounding."""
    assert len(found) == len(expected)
    if [one["tokens"] for one in found] != [other["tokens"] for other in expected]:
        assert narrowest_choice(system.model, source, decoding) < ROUNDING, (found, expected)
        return True
    for one, other in zip(found, expected):
        assert one["steps"] == other["steps"]
        assert one["score"] == pytest.approx(other["score"], abs=ROUNDING)
        torch.testing.assert_close(one["scores"], other["scores"], atol=ROUNDING, rtol=0)
    return False


decodings = st.builds(
    lambda decoding, beam: Decoding(*decoding, length_beam=beam), st.sampled_from(DECODINGS), st.sampled_from([1, 3])
)
words = st.integers(0, len(DICTIONARY) - 1)  # special tokens and padding's id among them
sentences = st.lists(words, min_size=1, max_size=19).map(lambda ids: [SPECIAL.cls, *ids])


@st.composite
def batches(draw):
    """Different sources, and their numbers in one or several batches, in any order and some twice, with padding."""
    sources = draw(st.lists(sentences, min_size=1, max_size=4, unique_by=tuple))
    numbers = draw(st.lists(st.integers(0, len(sources) - 1), min_size=1, max_size=6))
    ends = sorted(draw(st.sets(st.integers(1, len(numbers)), max_size=2)) | {len(numbers)})
    parts = [(numbers[start:end], draw(st.integers(0, 5))) for start, end in zip([0, *ends], ends) if start < end]
    return sources, parts


def test_outputs_do_not_depend_on_the_batch(system):
    compared, different = 0, 0

    @settings(max_examples=25)
    @given(batches(), decodings)
    def check(case, decoding):
        nonlocal compared, different
        sources, parts = case
        alone = [system([source], decoding)[0] for source in sources]
        for numbers, padding in parts:
            together = system([sources[number] for number in numbers], decoding, padding=padding)
            for number, found in zip(numbers, together, strict=True):
                compared += 1
                different += differs(system, decoding, sources[number], found, alone[number])

    check()
    assert different <= compared / 50, "choices as tight as rounding should be rare"


def test_the_same_batch_gives_the_same_bits(system):
    @settings(max_examples=5)
    @given(batches(), decodings)
    def check(case, decoding):
        first, *others = (system.candidates(case[0], decoding, padding=2) for _ in range(3))
        for other in others:
            for name in ("tokens", "scores", "steps", "lengths"):
                assert (getattr(first, name) == getattr(other, name)).all()
            assert first.totals().tolist() == other.totals().tolist()

    check()


@pytest.mark.parametrize("accelerate", ["none", "onnxruntime"])
@pytest.mark.parametrize("beam", [1, 4])
def test_of_equally_good_choices_the_first_is_taken(accelerate, beam):
    """The shortest length, the first word of the vocabulary, and the shortest of equally good candidates."""
    model = tiny_released(DICTIONARY, untie_head=True)
    model.encoder.length_head.weight.data.zero_()
    model.encoder.head.weight.data.zero_()
    for word in (130, 77, 61, 129):
        model.encoder.head.bias.data[word] = 5.0
    undecided = Runner(model, accelerate)
    sources = [[SPECIAL.cls, *range(40, 43 + row), SPECIAL.sep] for row in range(7)]
    for decoding in DECODINGS:
        for rows in (sources[:1], sources):
            for ranked in undecided(rows, Decoding(*decoding, length_beam=beam)):
                assert [one["tokens"] for one in ranked] == [[61] * length for length in range(2, 2 + beam)]
