import pytest
import torch

from mist_fairseq.experiments.benchmark.equality import PLAIN, Margins, compare, is_near_tie, markdown
from mist_fairseq.generate.decoding import Decoding
from mist_fairseq.scoring.scores import PROTOCOLS
from tests.experiments.benchmark.helpers import MIST, entry, load, save_checkpoint


@pytest.fixture(scope="module")
def checkpoint(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "model.pt"
    save_checkpoint(load(entry(data, MIST), larger=5), path)
    return str(path)


def test_engines_against_pytorch(data, checkpoint):
    engines = [("onnxruntime", "fp32"), ("none", "bf16")]
    system = load(entry(data, MIST))
    reference = [system.dictionary.string(system.dataset[i]["target"]) for i in range(len(system.dataset))]
    result = compare(data, checkpoint, engines, "test", 8, reference, None, PROTOCOLS["plain"], ["bleu-1"], Decoding())
    actual = result["engines"]
    assert result["sentences"] == 8
    assert list(actual) == [PLAIN, "onnxruntime, fp32", "none, bf16"]
    for name in list(actual)[:2]:
        assert actual[name]["different"] == 0 and actual[name]["scores"] == actual[PLAIN]["scores"]
    assert markdown(result).count("of 8") == 3
    with pytest.raises(ValueError, match="the sources are needed"):
        compare(data, checkpoint, engines, "test", 8, reference, None, PROTOCOLS["quora"], ["bleu-1"], Decoding())


@pytest.mark.parametrize("decoding", ["mist", "mask-predict"])
def test_the_exported_model_against_pytorch(data, checkpoint, decoding):
    engines = [("onnx", "fp32"), ("onnx", "int8")]
    given = "test", 8, None, None, PROTOCOLS["plain"], []
    actual = compare(data, checkpoint, engines, *given, Decoding(decoding, 3))["engines"]
    assert list(actual) == [PLAIN, "onnx, fp32", "onnx, int8"]
    assert actual["onnx, fp32"] == {"different": 0, "near_ties": 0}
    assert actual["onnx, int8"]["near_ties"] <= actual["onnx, int8"]["different"] <= 8


def test_a_difference_is_a_near_tie_only_where_the_model_was_undecided(data):
    margins = Margins(load(entry(data, MIST, options={"accelerate": "none"})).model.engine)
    margins.length, margins.passes = 1.0, [torch.tensor([1.0, 1e-5, 1.0]), torch.tensor([1e-5, 1.0, 1.0])]
    first, changed, other = torch.tensor([7, 8, 9]), torch.tensor([7, 5, 9]), torch.tensor([6, 8, 9])
    assert is_near_tie([first], [changed], margins)
    assert not is_near_tie([first], [other], margins) and not is_near_tie([first], [torch.tensor([6, 5, 9])], margins)
    assert is_near_tie([first, first], [first, other], margins)
    assert not is_near_tie([first, first], [first, changed], margins)
    assert is_near_tie([first, first], [changed, other + 1], margins)  # what follows from the first
    assert not is_near_tie([first], [first[:2]], margins)
    margins.length = 1e-5
    assert is_near_tie([first], [first[:2]], margins)


@pytest.mark.parametrize("decoding", ["mist", "mask-predict"])
def test_margins_of_every_pass(data, decoding):
    options = {"accelerate": "none", "decoding": decoding, "decoding_iterations": 3, "min_length": 8}
    system = load(entry(data, MIST, options=options))
    margins = Margins(system.model.engine)
    for i in (3, 4):
        sample = system.batch([i])
        _, passes = system.read(sample, system.decode(sample))[i]
        known = [(margin == float("inf")).sum().item() for margin in margins.passes]
        assert len(margins.passes) == passes and all((margin >= 0).all() for margin in margins.passes)
        length = len(margins.passes[0])
        left = [length, length * 2 // 3, length // 3]  # [MASK]s of Mask-Predict
        assert known == ([0] * passes if decoding == "mist" else [length - number for number in left])


def test_margins_are_those_of_the_two_likeliest(data):
    system = load(entry(data, MIST, options={"accelerate": "none", "keep_repeats": True}))
    margins = Margins(system.model.engine)
    sample = system.batch([3])
    system.decode(sample)
    inputs = sample["net_input"]
    with torch.no_grad():
        index = torch.arange(inputs["src_tokens"].numel())
        source = system.model.encoder.encode_source(inputs["src_tokens"], inputs["src_lengths"], index)
        best = system.model.encoder.length_logits(source)[0].sort(descending=True).values
    assert margins.length == pytest.approx(float(best[0] - best[1]))
    assert len(margins.passes) == 1 and (margins.passes[0] >= 0).all() and margins.passes[0].ndim == 1
