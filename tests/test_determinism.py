"""An output is its sentence's own: whatever else is in the batch, in which order, and however it is padded.

Bit for bit only where the same batch is repeated: for other shapes libraries add up in other orders, which changes the
last digits of a score. A word can change only where two choices are as good as equal.
"""

from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mist_fairseq.generate.generator import Decoding, Source
from mist_fairseq.hub.onnx_generator import OnnxGenerator
from mist_fairseq.models.generator import NARGenerator, least_confident
from mist_fairseq.release.onnx_folder import save_onnx
from tests.engines.helpers import DECODINGS, prepare
from tests.engines.test_onnx_runtime import untied
from tests.helpers import tiny_dictionary, tiny_model
from tests.models.baselines.test_nat_mass import build as nat_mass

ROUNDING = 1e-4  # of scores, and of what may tip a choice; about ten times what was seen
DICTIONARY = tiny_dictionary()


def as_arguments(sources: list[list[int]], padding: int = 0) -> dict:
    """A batch, with more columns of padding than it needs."""
    width = max(map(len, sources)) + padding
    rows = [source + [DICTIONARY.pad()] * (width - len(source)) for source in sources]
    return {"src_tokens": torch.tensor(rows), "src_lengths": torch.tensor(list(map(len, sources)))}


class Torch:
    """A model behind fairseq's generator, which stays the same for all batches with the same options."""

    def __init__(self, model, **options):
        self.model, self.options = model, options
        self.forget()

    def forget(self):
        """Start anew: a generator that guesses lengths learns from what it has seen."""
        self.generators = {}

    def __call__(self, sources, decoding: Decoding, padding=0):
        """Of each source its candidates, best first: tokens, their log-probabilities, score and passes."""
        if decoding not in self.generators:
            given = dict(decoding=decoding.decoding, iterations=decoding.iterations, length_beam=decoding.length_beam)
            options = {} if decoding.length_beam > 1 else self.options
            self.generators[decoding] = NARGenerator([self.model], DICTIONARY, keep_repeats=True, **given, **options)
        found = self.generators[decoding].generate(None, {"net_input": as_arguments(sources, padding)})
        return [
            [(one["tokens"].tolist(), one["positional_scores"], float(one["score"]), one["steps"]) for one in ranked]
            for ranked in found
        ]


class Onnx:
    """An exported model; padding is its own affair."""

    def __init__(self, model, folder):
        save_onnx(model, str(folder))
        self.model = model
        self.generator = OnnxGenerator.from_pretrained(str(folder), threads=1)

    def __call__(self, sources, decoding: Decoding, padding=0):
        found = self.generator.generate_ids([Source(ids) for ids in sources], decoding)
        return [
            [(one.ids, torch.tensor(one.scores), one.score, one.steps) for one in hypotheses] for hypotheses, _ in found
        ]

    def forget(self):
        """Nothing: it has no memory."""


SYSTEMS = {
    "pytorch": lambda folder: Torch(tiny_model(DICTIONARY)),
    "relative positions": lambda folder: Torch(tiny_model(DICTIONARY, rel_pos_bins=8)),
    "guesses": lambda folder: Torch(tiny_model(DICTIONARY), guesses=2),
    "onnx engine": lambda folder: Torch(prepare(tiny_model(DICTIONARY), "onnxruntime")),
    "onnx engine, guesses": lambda folder: Torch(prepare(tiny_model(DICTIONARY), "onnxruntime"), guesses=2),
    "nat_mass": lambda folder: Torch(nat_mass(DICTIONARY)),
    "onnx folder": lambda folder: Onnx(tiny_model(DICTIONARY), folder / "onnx"),
}


@pytest.fixture(scope="module", params=SYSTEMS)
def system(request, tmp_path_factory):
    return SYSTEMS[request.param](tmp_path_factory.mktemp("system"))


def narrowest_choice(model, source: list[int], decoding: Decoding) -> float:
    """How much better the best is than the next, at the tightest choice on the way to a sentence's output.

    Choices are those of the lengths, of a word at each position in each pass, of what Mask-Predict masks again, and
    the order of the candidates; by PyTorch alone.
    """
    gaps = [float("inf")]

    def note(scores, number):
        """The *number* best of each row, and the next."""
        best = scores.sort(dim=-1, descending=True).values[..., : number + 1]
        gaps.extend((best[..., :-1] - best[..., 1:]).flatten().tolist())

    class Watched(NARGenerator):
        def _allowed_lengths(self, encoded):
            scores = super()._allowed_lengths(encoded)
            note(scores, self.length_beam)
            return scores

        def _predict(self, tokens, index, hidden):
            never = self.model.never_predicted
            note(self.encoder.token_logits(hidden).index_fill(-1, never, -1e9), 1)
            return super()._predict(tokens, index, hidden)

        def _finalize(self, found, beam):
            note(found.mean_score(), beam)
            return super()._finalize(found, beam)

    def noted(scores, lengths, number):
        for row, length in zip(scores, lengths):
            note(row[:length], len(row))
        return least_confident(scores, lengths, number)

    given = dict(decoding=decoding.decoding, iterations=decoding.iterations, length_beam=decoding.length_beam)
    generator = Watched([model.without_engine()], DICTIONARY, **given)
    with mock.patch("mist_fairseq.models.generator.least_confident", noted):
        generator.generate(None, {"net_input": as_arguments([source])})
    return min(gaps)


def differs(system, decoding, source, found, expected) -> bool:
    """Check the candidates of a source. Whether its words differ, which they may at choices as tight as rounding."""
    assert len(found) == len(expected)
    if [one[0] for one in found] != [other[0] for other in expected]:
        assert narrowest_choice(system.model, source, decoding) < ROUNDING, (found, expected)
        return True
    for (_, scores, score, steps), (_, other_scores, other_score, other_steps) in zip(found, expected):
        assert steps == other_steps
        assert score == pytest.approx(other_score, abs=ROUNDING)
        torch.testing.assert_close(scores, other_scores, atol=ROUNDING, rtol=0)
    return False


decodings = st.builds(
    lambda decoding, beam: Decoding(*decoding, length_beam=beam, keep_repeats=True),
    st.sampled_from(DECODINGS),
    st.sampled_from([1, 3]),
)
words = st.integers(0, len(DICTIONARY) - 1)  # special tokens and padding's id among them
sentences = st.lists(words, min_size=1, max_size=19).map(lambda ids: [DICTIONARY.bos(), *ids])


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

    @settings(max_examples=25, deadline=None)
    @given(batches(), decodings)
    def check(case, decoding):
        nonlocal compared, different
        sources, parts = case
        alone = [system([source], decoding)[0] for source in sources]
        for numbers, padding in parts:
            together = system([sources[number] for number in numbers], decoding, padding)
            assert len(together) == len(numbers)
            for number, found in zip(numbers, together):
                compared += 1
                different += differs(system, decoding, sources[number], found, alone[number])

    check()
    assert different <= compared / 50, "choices as tight as rounding should be rare"


def test_the_same_batch_gives_the_same_bits(system):
    @settings(max_examples=5, deadline=None)
    @given(batches(), decodings)
    def check(case, decoding):
        sources, _ = case
        results = []
        for _ in range(3):
            system.forget()
            results.append(system(sources, decoding, 2))
        for found in results[1:]:
            for ranked, expected in zip(found, results[0], strict=True):
                for one, other in zip(ranked, expected, strict=True):
                    assert one[0] == other[0] and torch.equal(one[1], other[1]) and one[2:] == other[2:]

    check()


@pytest.fixture(scope="module", params=["pytorch", "guesses", "onnx engine", "onnx folder"])
def undecided(request, tmp_path_factory):
    """Finds all lengths equally likely, and several words, whatever it reads."""
    model = untied(tiny_model(DICTIONARY, untie_head=True))
    model.encoder.length_head.weight.data.zero_()
    model.encoder.head.weight.data.zero_()
    for word in (130, 77, 61, 129):
        model.encoder.head.bias.data[word] = 5.0
    if request.param == "onnx folder":
        return Onnx(model, tmp_path_factory.mktemp("undecided") / "onnx")
    if request.param == "onnx engine":
        prepare(model, "onnxruntime")
    return Torch(model, **({"guesses": 2} if request.param == "guesses" else {}))


@pytest.mark.parametrize("decoding, iterations", DECODINGS)
@pytest.mark.parametrize("beam", [1, 4])
@pytest.mark.parametrize("rows", [1, 7])
def test_of_equally_good_choices_the_first_is_taken(undecided, decoding, iterations, beam, rows):
    """The shortest length, the first word of the vocabulary, and the shortest of equally good candidates."""
    sources = [[DICTIONARY.bos(), *range(40, 43 + row), DICTIONARY.eos()] for row in range(rows)]
    found = undecided(sources, Decoding(decoding, iterations, beam, keep_repeats=True))
    for ranked in found:
        assert [one[0] for one in ranked] == [[61] * length for length in range(2, 2 + beam)]
