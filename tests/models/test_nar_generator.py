"""What fairseq's commands get; tests/generate/test_decoding.py is about the decodings themselves."""

from argparse import Namespace

import pytest
import torch

from mist_fairseq.engines import build_engine
from mist_fairseq.generate.decoding import Decoding
from mist_fairseq.models.nar_generator import AUTOREGRESSIVE_OPTIONS, NARGenerator
from tests.generate.plain import DECODINGS, LENGTHS, Runner
from tests.helpers import batch, sources, tiny_model


def generator(model, decoding=Decoding(keep_repeats=True), options=None) -> NARGenerator:  # noqa: B008
    return NARGenerator([model], model.dictionary, decoding, options)


def generate(model, tokens, lengths, options=None, asked=None, **decoding):
    given = Decoding(**{"keep_repeats": True, **decoding})
    sample = {"net_input": {"src_tokens": tokens, "src_lengths": lengths}, "lengths": asked}
    return generator(model, given, options).generate(None, sample)


def without_seps(tokens, dictionary) -> list[int]:
    """Positions of all tokens but the [SEP]s before the last."""
    return [t for t, token in enumerate(tokens) if token != dictionary.eos() or t == len(tokens) - 1]


@pytest.mark.parametrize("accelerate", [None, "none", "onnxruntime"])
@pytest.mark.parametrize("decoding, iterations", DECODINGS)
@pytest.mark.parametrize("asked", [None, [2, 7, 3, 19, 7, 4]], ids=["predicted lengths", "given lengths"])
def test_hypotheses_are_the_candidates(dictionary, accelerate, decoding, iterations, asked):
    """With or without an engine that was built for it."""
    model = tiny_model(dictionary)
    if accelerate:
        model.engine = build_engine(model.encoder, dictionary.tokenizer.special, accelerate, "fp32")
    tokens, lengths = sources(LENGTHS, dictionary)
    options = dict(decoding=decoding, iterations=iterations)
    options |= {} if asked else {"length_beam": 3, "nbest": 2}  # random answers differ
    retaining = Namespace(retain_iter_history=True)
    given = None if asked is None else torch.tensor(asked)
    found = generate(model, tokens, lengths, retaining, given, **options)
    rows = [row[:length].tolist() for row, length in zip(tokens, lengths)]
    for hypotheses, candidates in zip(found, Runner(model.released)(rows, Decoding(**options), asked)):
        assert len(hypotheses) == options.get("nbest", 1)
        for one, other in zip(hypotheses, candidates):
            kept = without_seps(other["tokens"], dictionary)
            assert one["tokens"].tolist() == [other["tokens"][t] for t in kept]
            torch.testing.assert_close(one["positional_scores"], other["scores"][kept], atol=1e-4, rtol=0)
            assert float(one["score"]) == pytest.approx(other["score"], abs=1e-4) and one["steps"] == other["steps"]
            history = [[step[t] for t in without_seps(step, dictionary)] for step in other["history"]]
            assert [step["tokens"].tolist() for step in one["history"]] == history
            assert one["alignment"] is one["attention"] is None


def test_history_only_where_it_is_asked_for(dictionary):
    found = generate(tiny_model(dictionary), *sources(LENGTHS, dictionary))
    assert all("history" not in hypothesis for (hypothesis,) in found)


def test_seps_are_dropped_and_repeats_collapse(dictionary):
    model = tiny_model(dictionary)
    model.encoder.head.transform.weight.data.zero_()
    model.encoder.head.bias.data[dictionary.index("guitar")] = 1e4  # the same word everywhere
    tokens, lengths = sources(LENGTHS, dictionary)
    for (one,) in generate(model, tokens, lengths, min_length=5, keep_repeats=False):
        assert dictionary.string(one["tokens"]) == "guitar" and len(one["positional_scores"]) == 1
    for (one,) in generate(model, tokens, lengths, min_length=5, max_length=5):
        assert dictionary.string(one["tokens"]) == " ".join(["guitar"] * 6)
    model.encoder.head.bias.data[dictionary.eos()] = 1e5
    for (one,) in generate(model, tokens, lengths):
        assert one["tokens"].tolist() == [dictionary.eos()] and torch.isfinite(one["score"])


def test_scores_may_be_changed_in_place(dictionary):
    """fairseq divides them by log 2; inference-mode tensors would refuse."""
    generate(tiny_model(dictionary), *sources(LENGTHS, dictionary))[0][0]["positional_scores"].div_(2)


def test_targets_in_the_sample_do_not_matter(dictionary):
    model, sample = tiny_model(dictionary), batch([5, 7], [3, 4], dictionary)
    alone = generate(model, *(sample["net_input"][name] for name in ("src_tokens", "src_lengths")))
    for (with_target,), (without,) in zip(generator(model).generate(None, sample), alone):
        assert torch.equal(with_target["tokens"], without["tokens"])


def test_validation_is_without_dropout_in_the_precision_of_the_training(dictionary):
    """It leaves the weights as they are, for the training to go on with."""
    tokens, lengths = sources(LENGTHS, dictionary)
    for precision in ("fp32", "bf16"):
        model = tiny_model(dictionary, dropout=0.5, precision=precision).train()
        first, second = (generate(model, tokens, lengths) for _ in range(2))
        expected = Runner(tiny_model(dictionary).released, precision=precision)
        rows = [row[:length].tolist() for row, length in zip(tokens, lengths)]
        for (one,), (again,), (other,) in zip(first, second, expected(rows, Decoding())):
            assert torch.equal(one["positional_scores"], again["positional_scores"])
            assert float(one["score"]) == pytest.approx(other["score"], abs=1e-6)
        assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


DEFAULTS = [option for options in AUTOREGRESSIVE_OPTIONS.values() for option in options.items()]


@pytest.mark.parametrize(("name", "default"), sorted(DEFAULTS, key=lambda option: option[0]))
def test_options_of_autoregressive_decoding_are_refused_by_name(dictionary, name, default):
    values = {bool: True, int: 7, float: 7.5, type(None): "hard"}
    with pytest.raises(ValueError, match=f"--{name.replace('_', '-')} does not work"):
        generator(tiny_model(dictionary), options=Namespace(**{name: values[type(default)]}))
    generator(tiny_model(dictionary), options=Namespace(**{name: default}))


def test_more_is_refused(dictionary):
    model = tiny_model(dictionary)
    with pytest.raises(ValueError, match="2 models: ensembles are not supported"):
        NARGenerator([model, model], dictionary, Decoding())
    tokens, lengths = sources([9, 4, 13], dictionary)
    for name in ("prefix_tokens", "constraints"):
        with pytest.raises(ValueError, match="prefixes and constraints"):
            generator(model).generate(None, {}, **{name: tokens})
    with pytest.raises(ValueError, match="min_length 30 is too long: the model makes at most 19 tokens"):
        generate(model, tokens, lengths, min_length=30)
    none = torch.tensor([9, 0, 13])
    for given, asked, message in ((none, None, "a source has 0"), (lengths, none, "an output is to have 0")):
        with pytest.raises(ValueError, match=f"{message} tokens, expected at least 1"):
            generate(model, tokens, given, asked=asked)
