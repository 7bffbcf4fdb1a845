import pytest
import torch

from mist_fairseq.benchmark.equality import PLAIN, Margins, compare, markdown, near_tie
from mist_fairseq.scoring.scores import PROTOCOLS
from tests.benchmark.helpers import MIST, entry, load, save_checkpoint


@pytest.fixture(scope="module")
def checkpoint(data, tmp_path_factory):
    system = load(entry(data, MIST))
    for parameter in system.model.parameters():
        parameter.data *= 5  # decided outputs
    path = tmp_path_factory.mktemp("checkpoint") / "model.pt"
    save_checkpoint(system, path)
    return str(path)


def test_engines_against_pytorch(data, checkpoint):
    engines = [("onnxruntime", "fp32", 0), ("onnxruntime", "fp32", 2), ("none", "bf16", 0)]
    system = load(entry(data, MIST))
    reference = [system.dictionary.string(system.dataset[i]["target"]) for i in range(len(system.dataset))]
    result = compare(data, checkpoint, engines, "test", 8, reference, None, PROTOCOLS["plain"], ["bleu-1"])
    found = result["engines"]
    assert result["sentences"] == 8
    assert list(found) == [PLAIN, "onnxruntime, fp32", "onnxruntime, fp32, 2 guesses", "none, bf16"]
    for name in list(found)[:3]:
        assert found[name]["different"] == 0 and found[name]["scores"] == found[PLAIN]["scores"]
    assert 0 <= found["onnxruntime, fp32, 2 guesses"]["guessed"] <= 1
    assert markdown(result).count("of 8") == 4
    with pytest.raises(ValueError, match="the sources are needed"):
        compare(data, checkpoint, engines, "test", 8, reference, None, PROTOCOLS["quora"], ["bleu-1"])


def test_a_difference_is_a_near_tie_only_where_the_model_was_undecided(data):
    margins = Margins(load(entry(data, MIST)))
    margins.length, margins.tokens = 1.0, torch.tensor([1.0, 1e-5, 1.0])
    expected = torch.tensor([7, 8, 9])
    assert near_tie(expected, torch.tensor([7, 5, 9]), margins)
    assert not near_tie(expected, torch.tensor([6, 5, 9]), margins)
    assert not near_tie(expected, torch.tensor([7, 8]), margins)
    margins.length = 1e-5
    assert near_tie(expected, torch.tensor([7, 8]), margins)


def test_margins_are_those_of_the_two_likeliest(data):
    system = load(entry(data, MIST, options={"accelerate": "none", "keep_repeats": True}))
    margins = Margins(system)
    sample = system.batch([3])
    system.decode(sample)
    inputs = sample["net_input"]
    with torch.no_grad():
        index = torch.arange(inputs["src_tokens"].numel())
        source = system.model.encoder.encode_source(inputs["src_tokens"], inputs["src_lengths"], index)
        best = system.model.encoder.length_head(source)[0].sort(descending=True).values
    assert margins.length == pytest.approx(float(best[0] - best[1]))
    assert (margins.tokens >= 0).all() and margins.tokens.ndim == 1
