import pytest
import torch

from mist_fairseq.experiments.benchmark.forced import force
from mist_fairseq.experiments.benchmark.systems import _draw
from tests.experiments.benchmark.helpers import BART, LEV, MIST, TRANSFORMER, entry, load, watch

TEN = {"iter_decode_max_iter": 9}
ITERATIVE = {
    "nat": (f"{LEV} nonautoregressive_transformer", {"iter_decode_max_iter": 0}, 1),
    "inat": (f"{LEV} iterative_nonautoregressive_transformer", TEN, 10),
    "cmlm": (f"{LEV} cmlm_transformer", TEN, 10),
    "levt": (f"{LEV} levenshtein_transformer --early-exit 1,1,1", TEN, 10),
    "insertion": (f"{LEV} insertion_transformer", {}, None),  # as many as the length needs
}


def outputs(system, indices=range(6)):
    """Tokens with all special ones, passes and prescribed lengths, by sentence."""
    sample = system.batch(indices)
    actual = system.decode(sample)
    lengths = sample["forced"][1].tolist()
    passes = [system.read(sample, actual)[i][1] for i in sample["id"].tolist()]
    return [len(ranked[0]["tokens"]) for ranked in actual], passes, lengths


# fairseq's BART keeps one encoded source for all its hypotheses.
@pytest.mark.parametrize("arguments, beam", [(TRANSFORMER, 1), (TRANSFORMER, 3), (BART, 3)])
def test_beam_search_ends_where_it_must(data, arguments, beam):
    system = load(entry(data, arguments, options={"beam": beam}), forced=True)
    actual, passes, lengths = outputs(system)
    assert actual == passes == lengths and len(set(lengths)) > 1
    eos = system.dictionary.eos()
    sample = system.batch(range(6))
    for ranked in system.decode(sample):
        for hypothesis in ranked:
            assert hypothesis["tokens"].tolist().index(eos) == len(hypothesis["tokens"]) - 1


def test_without_force_lengths_are_the_models_own(data):
    system = load(entry(data, TRANSFORMER, options={"beam": 1, "max_len_b": 20}))
    sample = system.batch(range(6))
    assert sample["forced"][1:] == (None, None)
    lengths = sample["target"].ne(system.dictionary.pad()).sum(1).tolist()
    assert [len(ranked[0]["tokens"]) for ranked in system.decode(sample)] != lengths


@pytest.mark.parametrize("name", ITERATIVE)
def test_refinement_takes_its_usual_passes(data, name):
    arguments, options, usual = ITERATIVE[name]
    actual, passes, lengths = outputs(load(entry(data, arguments, options=options), forced=True))
    assert actual == lengths and len(set(lengths)) > 1
    # Insertions from <s> </s>, 1 gap, 2 tokens become 3, 5, 9, 17; one more pass changes nothing. [CLS] counted.
    assert passes == [usual or {4: 3, 6: 4, 13: 5}[length] for length in lengths]


@pytest.mark.parametrize("name", ["inat", "cmlm", "levt", "insertion"])
def test_refinement_takes_the_passes_that_are_prescribed(data, name):
    system = load(entry(data, ITERATIVE[name][0], options=TEN, passes={5: 0.5, 7: 0.5}), forced=True)
    actual, passes, lengths = outputs(system, range(12))
    assert actual == lengths
    assert set(passes) == {5, 7}
    assert outputs(system, range(12))[1] == passes, "the passes of a sentence are always the same"
    alone = [outputs(system, [i])[1][0] for i in range(4)]
    assert alone == [_draw(system.entry.passes, i) for i in range(4)]
    for number in (6, 9, 6):
        sample = system.batch([0])
        sample["forced"] = *sample["forced"][:2], torch.tensor([number])
        assert system.read(sample, system.decode(sample))[0][1] == number


def test_length_beams_of_fairseq_are_refused(data):
    with pytest.raises(ValueError, match="iter-decode-with-beam"):
        load(entry(data, ITERATIVE["cmlm"][0], options={**TEN, "iter_decode_with_beam": 3}), forced=True)


@pytest.mark.parametrize(
    "options, passes",
    [
        ({}, 1),
        ({"decoding": "mist", "decoding_iterations": 4}, 4),
        ({"decoding": "mask-predict", "decoding_iterations": 3}, 3),
        ({"length_beam": 2}, 1),
    ],
)
def test_our_own(data, options, passes, monkeypatch):
    system = load(entry(data, MIST, options={"keep_repeats": True, **options}), forced=True)
    filled = []
    watch(monkeypatch, system.model.engine, "fill", lambda _, lengths, __: filled.append(lengths.tolist()))
    sample = system.batch(range(6))
    system.decode(sample)
    beam = options.get("length_beam", 1)
    assert filled == [sample["forced"][1].repeat_interleave(beam).tolist()] * passes


def test_unknown_generators_are_refused(data):
    with pytest.raises(ValueError, match="output lengths of Linear cannot be prescribed"):
        force(torch.nn.Linear(1, 1), object())
