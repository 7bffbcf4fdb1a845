from argparse import Namespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mist_fairseq.engines.length_guesser import LengthGuesser
from mist_fairseq.mist.mixing import mix_source
from mist_fairseq.models.generator import AUTOREGRESSIVE_OPTIONS, NARGenerator, least_confident
from tests.helpers import batch, decode, encode, sources, tiny_model
from tests.models.baselines.test_nat_mass import build as nat_mass

LENGTHS = [9, 4, 13, 2, 20, 9]


def generator(model, **options):
    options.setdefault("keep_repeats", True)
    return NARGenerator([model], model.dictionary, **options)


def generate(model, tokens, lengths, **options):
    return generator(model, **options).generate(None, {"net_input": {"src_tokens": tokens, "src_lengths": lengths}})


def plain_fill(model, tokens, source):
    """Predict the [MASK]s of one unpadded sentence, nothing cached: every pass encodes the source again."""
    dictionary = model.dictionary
    with torch.no_grad():
        state = encode(model, torch.tensor([source]), torch.tensor([len(source)]))
        hidden = decode(model, torch.tensor([tokens]), torch.tensor([len(tokens)]), state)[0]
        logits = model.encoder.token_logits(hidden)
    logits[:, dictionary.never_predicted()] = -float("inf")
    log_p = logits.log_softmax(-1)
    filled, scores = list(tokens), [None] * len(tokens)
    for t, token in enumerate(tokens):
        if token == dictionary.mask():
            filled[t] = int(log_p[t].argmax())
            scores[t] = float(log_p[t].max())
    return filled, scores


def plain_length(model, source, low=2, high=None):
    with torch.no_grad():
        state = encode(model, torch.tensor([source]), torch.tensor([len(source)]))
        logits = model.encoder.length_logits(state)[0]
    return max(range(low, (high or model.limits.target) + 1), key=lambda length: float(logits[length]))


def plain_mist(model, source, iterations):
    """The paper's iterative decoding of one sentence, without stopping early."""
    dictionary = model.dictionary
    masks = [dictionary.mask()] * plain_length(model, source)
    tokens, scores = plain_fill(model, masks, source)
    history = [tokens]
    for _ in range(iterations - 1):
        mixed = [dictionary.bos(), *tokens]
        if tokens[-1] != dictionary.eos():
            mixed.append(dictionary.eos())
        mixed = (mixed + source[1:])[: model.limits.source]
        mixed[-1] = dictionary.eos()
        tokens, scores = plain_fill(model, masks, mixed)
        history.append(tokens)
    return tokens, scores, history


def plain_mask_predict(model, source, iterations):
    """Ghazvininejad et al. 2019 over one sentence: N - n of N tokens are masked before pass n + 1."""
    mask = model.dictionary.mask()
    tokens, scores = plain_fill(model, [mask] * plain_length(model, source), source)
    for done in range(1, iterations):
        number = len(tokens) * (iterations - done) // iterations
        worst = sorted(range(len(tokens)), key=lambda t: scores[t])[:number]
        masked = [mask if t in worst else token for t, token in enumerate(tokens)]
        filled, new = plain_fill(model, masked, source)
        for t in worst:
            tokens[t], scores[t] = filled[t], new[t]
    return tokens, scores


def assert_same(hypothesis, tokens, scores, dictionary):
    last = len(tokens) - 1
    positions = [t for t, token in enumerate(tokens) if token != dictionary.eos() or t == last]
    assert hypothesis["tokens"].tolist() == [tokens[t] for t in positions]
    expected = torch.tensor([scores[t] for t in positions])
    torch.testing.assert_close(hypothesis["positional_scores"], expected, atol=1e-4, rtol=0)
    assert float(hypothesis["score"]) == pytest.approx(sum(scores) / len(scores), abs=1e-4)


@pytest.mark.parametrize("rel_pos_bins", [0, 8])
def test_single_pass_equals_a_plain_loop(dictionary, rel_pos_bins):
    """A sentence alone, in a batch, with and without the cached source state."""
    model = tiny_model(dictionary, rel_pos_bins=rel_pos_bins)
    tokens, lengths = sources(LENGTHS, dictionary)
    for row, hypotheses in enumerate(generate(model, tokens, lengths)):
        source = tokens[row, : lengths[row]].tolist()
        expected = plain_fill(model, [dictionary.mask()] * plain_length(model, source), source)
        assert_same(hypotheses[0], *expected, dictionary)
        assert hypotheses[0]["steps"] == 1


@pytest.mark.parametrize("iterations", [1, 2, 5])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_mist_equals_a_plain_loop(dictionary, iterations, seed):
    model = tiny_model(dictionary, seed=seed)
    tokens, lengths = sources(LENGTHS, dictionary)
    found = generate(model, tokens, lengths, decoding="mist", iterations=iterations)
    for row, hypotheses in enumerate(found):
        expected, scores, history = plain_mist(model, tokens[row, : lengths[row]].tolist(), iterations)
        assert_same(hypotheses[0], expected, scores, dictionary)
        same = [n for n in range(1, iterations) if history[n] == history[n - 1]]
        assert hypotheses[0]["steps"] == (same[0] + 1 if same else iterations)


def test_mist_stops_at_a_fixed_point(dictionary):
    """A model that looks at nothing repeats itself: two passes, however many are allowed."""
    model = tiny_model(dictionary)
    model.encoder.head.transform.weight.data.zero_()
    tokens, lengths = sources(LENGTHS, dictionary)
    for hypotheses in generate(model, tokens, lengths, decoding="mist", iterations=9):
        assert hypotheses[0]["steps"] == 2


@pytest.mark.parametrize("iterations", [1, 2, 4, 10])
def test_mask_predict_equals_a_plain_loop(dictionary, iterations):
    model = tiny_model(dictionary)
    tokens, lengths = sources(LENGTHS, dictionary)
    found = generate(model, tokens, lengths, decoding="mask-predict", iterations=iterations)
    for row, hypotheses in enumerate(found):
        expected = plain_mask_predict(model, tokens[row, : lengths[row]].tolist(), iterations)
        assert_same(hypotheses[0], *expected, dictionary)
        assert hypotheses[0]["steps"] == iterations


def test_iterations_of_one_are_the_single_pass(dictionary):
    model = tiny_model(dictionary)
    tokens, lengths = sources(LENGTHS, dictionary)
    results = [
        generate(model, tokens, lengths, decoding=decoding, iterations=1)
        for decoding in ("single-pass", "mist", "mask-predict")
    ]
    for single, *others in zip(*results):
        for other in others:
            assert torch.equal(single[0]["tokens"], other[0]["tokens"]) and single[0]["score"] == other[0]["score"]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(0, 10)), min_size=1, max_size=5),
    st.integers(0, 10**6),
)
def test_least_confident_equals_a_plain_loop(rows, seed):
    lengths, numbers = (torch.tensor(column) for column in zip(*rows))
    scores = torch.randint(-3, 1, (len(rows), 9), generator=torch.Generator().manual_seed(seed)).float()  # many ties
    found = least_confident(scores, lengths, numbers)
    for row, (length, number) in enumerate(rows):
        order = sorted(range(length), key=lambda t: (float(scores[row, t]), t))
        assert set(found[row].nonzero()[:, 0].tolist()) == set(order[:number])


@pytest.mark.parametrize("decoding, iterations", [("single-pass", 1), ("mist", 3), ("mask-predict", 3)])
def test_length_beam_keeps_the_best_of_the_likeliest_lengths(dictionary, decoding, iterations):
    model = tiny_model(dictionary)
    tokens, lengths = sources(LENGTHS, dictionary)
    options = dict(decoding=decoding, iterations=iterations)
    found = generate(model, tokens, lengths, length_beam=4, options=Namespace(nbest=4), **options)
    with torch.no_grad():
        logits = model.encoder.length_logits(encode(model, tokens, lengths))
    for row, hypotheses in enumerate(found):
        assert len(hypotheses) == 4
        scores = [float(hypothesis["score"]) for hypothesis in hypotheses]
        assert scores == sorted(scores, reverse=True)
        likeliest = sorted(range(2, 21), key=lambda length: -float(logits[row, length]))[:4]
        # Each candidate is what forcing its length alone gives.
        forced = []
        for length in likeliest:
            alone = generate(model, tokens, lengths, min_length=length - 1, max_length=length - 1, **options)
            forced.append(alone[row][0])
        forced.sort(key=lambda hypothesis: -float(hypothesis["score"]))
        for hypothesis, expected in zip(hypotheses, forced):
            assert hypothesis["tokens"].tolist() == expected["tokens"].tolist()
            assert float(hypothesis["score"]) == pytest.approx(float(expected["score"]), abs=1e-4)


def test_length_beam_may_exceed_the_number_of_lengths(dictionary):
    model = tiny_model(dictionary)
    tokens, lengths = sources(LENGTHS, dictionary)
    found = generate(model, tokens, lengths, length_beam=50, min_length=3, max_length=5)
    assert [len(hypotheses) for hypotheses in found] == [3] * len(LENGTHS)


@pytest.mark.parametrize("low, high", [(1, None), (6, None), (1, 3), (4, 4)])
def test_length_bounds_count_tokens_before_the_final_sep(dictionary, low, high):
    model = tiny_model(dictionary)
    model.encoder.head.bias.data[dictionary.eos()] = -1e4  # so that every token shows
    tokens, lengths = sources(LENGTHS, dictionary)
    for row, hypotheses in enumerate(generate(model, tokens, lengths, min_length=low, max_length=high)):
        length = len(hypotheses[0]["tokens"])
        assert low + 1 <= length <= (high or model.limits.target - 1) + 1
        source = tokens[row, : lengths[row]].tolist()
        assert length == plain_length(model, source, low + 1, high and high + 1)


def assert_same_as_without_guesses(model, tokens, lengths, generators, **options):
    expected = generate(model, tokens, lengths, **options)
    for each in generators:
        sample = {"net_input": {"src_tokens": tokens, "src_lengths": lengths}}
        for found, wanted in zip(each.generate(None, sample), expected):
            assert torch.equal(found[0]["tokens"], wanted[0]["tokens"]) and found[0]["steps"] == wanted[0]["steps"]
            torch.testing.assert_close(found[0]["positional_scores"], wanted[0]["positional_scores"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("rel_pos_bins", [0, 8])
@pytest.mark.parametrize("decoding, iterations", [("single-pass", 1), ("mist", 3), ("mask-predict", 3)])
@pytest.mark.parametrize("guessed", ["none", "some", "all"])
def test_guessed_lengths_change_nothing(dictionary, monkeypatch, rel_pos_bins, decoding, iterations, guessed):
    model = tiny_model(dictionary, rel_pos_bins=rel_pos_bins)
    tokens, lengths = sources(LENGTHS, dictionary)
    right = [plain_length(model, row[:length].tolist()) for row, length in zip(tokens, lengths)]
    wrong = [length % 20 + 1 for length in right]
    hits = {"none": [], "some": [0, 3, 4], "all": range(len(right))}[guessed]
    guesses = [[wrong[row], right[row] if row in hits else 2 + (right[row] == 2)] for row in range(len(right))]
    monkeypatch.setattr(LengthGuesser, "guess", lambda self, lengths: torch.tensor(guesses))
    options = dict(decoding=decoding, iterations=iterations)
    own = generator(model, guesses=2, **options)
    assert_same_as_without_guesses(model, tokens, lengths, [own, own], **options)
    assert (own.guesser.hits, own.guesser.total) == (2 * len(hits), 2 * len(right))


@pytest.mark.parametrize("bounds", [{}, {"min_length": 6}, {"max_length": 3}, {"min_length": 4, "max_length": 4}])
@pytest.mark.parametrize("guesses", [1, 3, 50])
def test_guesses_learn_and_keep_to_the_bounds_of_the_length(dictionary, bounds, guesses):
    """Every length is among 50 guesses; of a source seen before, at the second try, the length is the likeliest."""
    model = tiny_model(dictionary)
    tokens, lengths = sources([9, 4, 14, 19], dictionary)  # too far apart to learn from each other
    own = generator(model, guesses=guesses, **bounds)
    assert_same_as_without_guesses(model, tokens, lengths, [own], **bounds)
    before = own.guesser.hits
    assert own.guesser.total == 4 and (guesses < 50 or before == 4)
    assert_same_as_without_guesses(model, tokens, lengths, [own], **bounds)
    assert (own.guesser.hits, own.guesser.total) == (before + 4, 8)


def test_a_guessed_length_needs_no_pass_over_the_target(dictionary, monkeypatch):
    model = tiny_model(dictionary)
    tokens, lengths = sources(LENGTHS, dictionary)
    passes = []
    original = model.encoder.decode_target
    monkeypatch.setattr(model.encoder, "decode_target", lambda t, *more: passes.append(len(t)) or original(t, *more))
    generate(model, tokens, lengths, guesses=50)
    assert passes == []
    own = generator(model, guesses=1)
    own.generate(None, {"net_input": {"src_tokens": tokens, "src_lengths": lengths}})
    assert passes == ([len(LENGTHS) - own.guesser.hits] if own.guesser.hits < len(LENGTHS) else [])


def test_guesses_are_refused_where_source_and_target_have_different_layers(dictionary):
    tokens, lengths = sources(LENGTHS, dictionary)
    with pytest.raises(ValueError, match="--length-guesses"):
        generate(nat_mass(dictionary), tokens, lengths, guesses=2)


def test_equal_sources_are_encoded_once(dictionary, monkeypatch):
    model = tiny_model(dictionary)
    tokens, lengths = sources([9, 4, 13], dictionary)
    order = torch.tensor([2, 0, 2, 1, 0, 2])
    rows = []
    original = model.encoder.encode_source
    monkeypatch.setattr(model.encoder, "encode_source", lambda t, *args: rows.append(len(t)) or original(t, *args))
    repeated = generate(model, tokens[order], lengths[order], length_beam=3)
    assert rows == [3]
    single = generate(model, tokens, lengths, length_beam=3)
    for row, hypotheses in zip(order.tolist(), repeated):
        assert [h["tokens"].tolist() for h in hypotheses] == [h["tokens"].tolist() for h in single[row]]


def test_sources_that_differ_in_length_only_are_different(dictionary):
    """One is longer by tokens with padding's id, as the other is padded."""
    model = tiny_model(dictionary)
    tokens, _ = sources([9, 9, 9], dictionary)
    tokens[:] = tokens[0]
    tokens[:, 7:] = dictionary.pad()
    lengths = torch.tensor([7, 9, 8])
    for row, hypotheses in enumerate(generate(model, tokens, lengths)):
        (alone,) = generate(model, tokens[row : row + 1, : lengths[row]], lengths[row : row + 1])
        assert torch.equal(hypotheses[0]["tokens"], alone[0]["tokens"])


def test_seps_are_dropped_and_repeats_collapse(dictionary):
    model = tiny_model(dictionary)
    model.encoder.head.transform.weight.data.zero_()
    model.encoder.head.bias.data[dictionary.index("guitar")] = 1e4  # the same word everywhere
    tokens, lengths = sources(LENGTHS, dictionary)
    collapsed = generate(model, tokens, lengths, min_length=5, keep_repeats=False)
    for hypotheses in collapsed:
        assert dictionary.string(hypotheses[0]["tokens"]) == "guitar"
        assert len(hypotheses[0]["positional_scores"]) == 1
    for hypotheses in generate(model, tokens, lengths, min_length=5, max_length=5):
        assert dictionary.string(hypotheses[0]["tokens"]) == " ".join(["guitar"] * 6)
    model.encoder.head.bias.data[dictionary.eos()] = 1e5
    for hypotheses in generate(model, tokens, lengths):
        assert hypotheses[0]["tokens"].tolist() == [dictionary.eos()] and torch.isfinite(hypotheses[0]["score"])


def test_history_and_steps_for_fairseq(dictionary):
    model = tiny_model(dictionary)
    tokens, lengths = sources(LENGTHS, dictionary)
    options = Namespace(retain_iter_history=True)
    for decoding in ("mist", "mask-predict"):
        found = generate(model, tokens, lengths, decoding=decoding, iterations=3, options=options)
        single = generate(model, tokens, lengths)
        for hypotheses, first in zip(found, single):
            history = hypotheses[0]["history"]
            assert len(history) == hypotheses[0]["steps"]
            assert torch.equal(history[0]["tokens"], first[0]["tokens"])
            assert torch.equal(history[-1]["tokens"], hypotheses[0]["tokens"])


def test_scores_may_be_changed_in_place(dictionary):
    """fairseq divides them by log 2; inference-mode tensors would refuse."""
    tokens, lengths = sources(LENGTHS, dictionary)
    generate(tiny_model(dictionary), tokens, lengths)[0][0]["positional_scores"].div_(2)


def test_targets_in_the_sample_do_not_matter(dictionary):
    model = tiny_model(dictionary)
    sample = batch([5, 7], [3, 4], dictionary)
    inputs = sample["net_input"]
    alone = generate(model, inputs["src_tokens"], inputs["src_lengths"])
    for with_target, without in zip(generator(model).generate(None, sample), alone):
        assert torch.equal(with_target[0]["tokens"], without[0]["tokens"])


def test_training_mode_and_dropout_are_off(dictionary):
    model = tiny_model(dictionary, dropout=0.5).train()
    tokens, lengths = sources(LENGTHS, dictionary)
    first, second = (generate(model, tokens, lengths) for _ in range(2))
    assert all(torch.equal(a[0]["positional_scores"], b[0]["positional_scores"]) for a, b in zip(first, second))


@pytest.mark.parametrize("name", sorted(AUTOREGRESSIVE_OPTIONS))
def test_options_of_autoregressive_decoding_are_refused_by_name(dictionary, name):
    default, _ = AUTOREGRESSIVE_OPTIONS[name]
    values = {bool: True, int: 7, float: 7.5, type(None): "hard"}
    with pytest.raises(ValueError, match=f"--{name.replace('_', '-')} does not work"):
        generator(tiny_model(dictionary), options=Namespace(**{name: values[type(default)]}))
    generator(tiny_model(dictionary), options=Namespace(**{name: default}))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"decoding": "beam"}, "decoding is 'beam', expected one of single-pass, mist, mask-predict"),
        ({"iterations": 0}, "iterations is 0, expected a whole number of at least 1"),
        ({"iterations": 3}, "iterations 3 needs decoding mist or mask-predict"),
        ({"options": Namespace(nbest=3), "length_beam": 2}, "nbest 3 needs a length_beam of at least 3, not 2"),
        ({"min_length": 5, "max_length": 4}, "min_length 5 is more than max_length 4"),
        ({"min_length": 0}, "min_length is 0, expected a whole number of at least 1"),
        ({"guesses": -1}, "--length-guesses -1: expected 0 or more"),
        ({"guesses": 2, "length_beam": 2}, "--length-guesses 2: expected 0 or more, and 0 with a --length-beam"),
    ],
)
def test_impossible_combinations_are_refused(dictionary, options, message):
    with pytest.raises(ValueError, match=message):
        generator(tiny_model(dictionary), **options)


def test_more_is_refused_when_generating(dictionary):
    model = tiny_model(dictionary)
    with pytest.raises(ValueError, match="2 models: ensembles are not supported"):
        NARGenerator([model, model], dictionary)
    tokens, lengths = sources([5], dictionary)
    sample = {"net_input": {"src_tokens": tokens, "src_lengths": lengths}}
    with pytest.raises(ValueError, match="prefixes and constraints"):
        generator(model).generate(None, sample, prefix_tokens=tokens)
    for guesses in (0, 2):
        with pytest.raises(ValueError, match="--min-length 30 is too long: the model makes at most 19 tokens"):
            generator(model, min_length=30, guesses=guesses).generate(None, sample)


@pytest.mark.parametrize("decoding, iterations", [("single-pass", 1), ("mist", 3), ("mask-predict", 3)])
@pytest.mark.parametrize("guesses", [0, 2])
def test_lengths_may_be_given(dictionary, decoding, iterations, guesses):
    """As if they were the only ones allowed."""
    model = tiny_model(dictionary)
    tokens, lengths = sources(LENGTHS, dictionary)
    wanted = [2, 7, 3, 19, 7, 4]
    sample = {"net_input": {"src_tokens": tokens, "src_lengths": lengths}, "lengths": torch.tensor(wanted)}
    found = generator(model, decoding=decoding, iterations=iterations, guesses=guesses).generate(None, sample)
    for row, length in enumerate(wanted):
        alone = tokens[row : row + 1, : lengths[row]], lengths[row : row + 1]
        options = {"min_length": length - 1, "max_length": length - 1}
        (expected,) = generate(model, *alone, decoding=decoding, iterations=iterations, **options)
        assert torch.equal(found[row][0]["tokens"], expected[0]["tokens"])
        torch.testing.assert_close(found[row][0]["positional_scores"], expected[0]["positional_scores"])


def test_length_scores_are_given_if_asked_for(dictionary):
    model = tiny_model(dictionary)
    tokens, lengths = sources(LENGTHS, dictionary)
    asking = generator(model, length_beam=2, min_length=2, max_length=8)
    asking.retain_length_scores = True
    found = asking.generate(None, {"net_input": {"src_tokens": tokens, "src_lengths": lengths}})
    expected = model.encoder.length_logits(encode(model, tokens, lengths))[:, 3:10].softmax(1)
    for row, ranked in enumerate(found):
        for hypothesis in ranked:
            torch.testing.assert_close(hypothesis["length_scores"], expected[row])


def test_mixing_is_the_function_that_training_uses(dictionary):
    """What MIST decoding feeds back is mix_source of the last output."""
    model = tiny_model(dictionary)
    tokens, lengths = sources([5, 9], dictionary)
    pseudo, pseudo_lengths = sources([3, 4], dictionary, seed=7)
    expected = mix_source(pseudo, pseudo_lengths, tokens, lengths, limit=40, sep=dictionary.eos(), pad=dictionary.pad())
    for found, wanted in zip(model.mix(pseudo, pseudo_lengths, tokens, lengths), expected):
        assert torch.equal(found, wanted)
