import pytest
import torch
from fairseq import tasks
from omegaconf import OmegaConf

from mist_fairseq.mist.config import PositionLimits
from mist_fairseq.models.baselines.nat_mass import NatMassConfig, NatMassModel
from mist_fairseq.tasks.mist_task import MistTask, MistTaskConfig
from tests.helpers import decode, encode, sources, spread, targets, tiny_dictionary, tiny_vocab
from tests.models.baselines.plain import SMALL_AND_BASE, PlainMass, fused, options, random_weights
from tests.models.baselines.test_mass import write_mass_folder


def config(**changes) -> NatMassConfig:
    return NatMassConfig(**{**options(layers=2), "length_classes": 32, "precision": "fp32", **changes})


def build(dictionary, folder=None, source=40, target=20, **changes) -> NatMassModel:
    """In evaluation mode; without a folder with random weights large enough that outputs differ."""
    torch.manual_seed(0)
    model = NatMassModel(config(**changes), dictionary, PositionLimits(source, target))
    if folder is None:
        return spread(model)
    assert NatMassModel.pretrained_sizes(str(folder), dictionary) == {}
    model.load_pretrained(str(folder))
    return model.eval()


@SMALL_AND_BASE
@pytest.mark.parametrize("layout", [dict, fused])
def test_equals_a_plain_computation(tmp_path, dictionary, sizes, heads, layout):
    weights = random_weights(len(dictionary), **sizes)
    folder = write_mass_folder(tmp_path / "mass", layout(weights))
    model, plain = build(dictionary, folder, **options(heads=heads, **sizes)), PlainMass(weights, heads, causal=False)
    src, src_lengths = sources([7, 2], dictionary)
    tgt, tgt_lengths = targets([3, 5], dictionary)
    with torch.no_grad():
        state = encode(model, src, src_lengths)
        hidden = decode(model, tgt, tgt_lengths, state)
        lengths = model.encoder.length_logits(state)
    for row, (S, T) in enumerate(zip(src_lengths, tgt_lengths)):
        encoded = plain.encode(src[row, :S].tolist())
        expected = plain.decode(tgt[row, :T].tolist(), encoded)
        torch.testing.assert_close(state.hidden[row, :S].double(), encoded, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(hidden[row].double(), expected, atol=1e-5, rtol=1e-5)
        logits = model.encoder.token_logits(hidden[row])
        torch.testing.assert_close(logits.double(), plain.logits(expected), atol=1e-5, rtol=1e-5)
        mean = encoded.sum(0) / len(encoded)
        scores = mean @ model.encoder.length_head.weight.double().T
        torch.testing.assert_close(lengths[row].double(), scores, atol=1e-5, rtol=1e-5)


def test_the_task_starts_from_the_folder(tmp_path, dictionary):
    folder = write_mass_folder(tmp_path / "mass", random_weights(len(dictionary), layers=2))
    task = MistTask(OmegaConf.structured(MistTaskConfig(max_source_positions=40, max_target_positions=20)), dictionary)
    cfg = OmegaConf.structured(config(pretrained=str(folder), _name="nat_mass"))
    model = task.build_model(cfg)
    expected = torch.load(folder / "mass-base-uncased.pt", weights_only=True)
    assert isinstance(model, NatMassModel) and tasks.TASK_REGISTRY["mist"] is MistTask
    assert torch.equal(model.encoder.word_embeddings.weight, expected["encoder.embed_tokens.weight"])
    (folder / "mass-base-uncased.pt").unlink()
    task.build_model(cfg, from_checkpoint=True).load_state_dict(model.state_dict())
    with pytest.raises(FileNotFoundError, match="there is no mass-base-uncased.pt"):
        task.build_model(cfg)


def test_other_weights_or_another_vocabulary_are_refused(tmp_path, dictionary):
    folder = write_mass_folder(tmp_path / "mass", random_weights(len(dictionary), layers=1))
    message = r"lacks encoder\.layers\.1\..* \(42 in all\), which the model needs: give .*--encoder-layers"
    with pytest.raises(ValueError, match=message):
        build(dictionary, folder)
    with pytest.raises(ValueError, match="another vocabulary"):
        NatMassModel.pretrained_sizes(str(folder), tiny_dictionary([*tiny_vocab(), "another"]))
