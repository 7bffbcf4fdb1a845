import pytest
import torch
from fairseq import tasks
from omegaconf import OmegaConf

from mist_fairseq.mist.config import PositionLimits
from mist_fairseq.models.baselines.nat_mass import NatMassConfig, NatMassModel
from mist_fairseq.tasks.mist import MistTask, MistTaskConfig
from tests.helpers import decode, encode, sources, targets, tiny_dictionary, tiny_vocab
from tests.models.baselines.test_mass import FFN, HEADS, D, PlainMass, mass_state, write_mass_folder


def config(**changes) -> NatMassConfig:
    cfg = NatMassConfig()
    sizes = dict(
        encoder_layers=2,
        decoder_layers=2,
        encoder_embed_dim=D,
        encoder_ffn_embed_dim=FFN,
        encoder_attention_heads=HEADS,
        length_classes=32,
        precision="fp32",
    )
    for name, value in {**sizes, **changes}.items():
        setattr(cfg, name, value)
    return cfg


def build(dictionary, folder=None, source=40, target=20, **changes) -> NatMassModel:
    """In evaluation mode; without a folder with random weights large enough that outputs differ."""
    torch.manual_seed(0)
    model = NatMassModel(config(**changes), dictionary, PositionLimits(source, target))
    if folder is None:
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.data.mul_(5)
    else:
        assert NatMassModel.pretrained_sizes(str(folder), dictionary) == {}
        model.load_pretrained(str(folder))
    return model.eval()


def task_for(dictionary) -> MistTask:
    cfg = OmegaConf.structured(MistTaskConfig)
    cfg.max_source_positions, cfg.max_target_positions = 40, 20
    return MistTask(cfg, dictionary)


@pytest.mark.parametrize(
    "sizes",
    [
        dict(size=D, ffn=FFN, layers=2, heads=HEADS, scale=0.2),
        dict(size=768, ffn=3072, layers=1, heads=12, scale=0.04),
    ],
    ids=["small", "base"],
)
@pytest.mark.parametrize("fused", [False, True])
def test_equals_a_plain_computation(tmp_path, dictionary, sizes, fused):
    heads, layers = sizes["heads"], sizes["layers"]
    arguments = {name: value for name, value in sizes.items() if name != "heads"}
    folder = write_mass_folder(tmp_path / "mass", mass_state(len(dictionary), fused=fused, **arguments))
    model = build(
        dictionary,
        folder,
        encoder_layers=layers,
        decoder_layers=layers,
        encoder_embed_dim=sizes["size"],
        encoder_ffn_embed_dim=sizes["ffn"],
        encoder_attention_heads=heads,
    )
    plain = PlainMass(mass_state(len(dictionary), **arguments), layers, heads, causal=False)
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


def test_a_checkpoint_brings_its_limits_and_refuses_another_vocabulary(dictionary):
    trained = build(dictionary, source=30, target=10)
    model = build(dictionary)
    model.encoder.word_embeddings.weight.data.zero_()
    model.load_state_dict(trained.state_dict())
    assert model.max_positions() == (30, 10)
    assert all(torch.equal(value, trained.state_dict()[name]) for name, value in model.state_dict().items())
    other = tiny_dictionary([*tiny_vocab()[:-1], "another"])
    with pytest.raises(ValueError, match="another vocabulary than the checkpoint"):
        build(other).load_state_dict(trained.state_dict())


def test_the_limits_of_source_and_target_are_apart(dictionary):
    build(dictionary, source=512, target=31).check_limits()
    with pytest.raises(ValueError, match="--max-source-positions 513 exceeds the model's 512 positions"):
        build(dictionary, source=513).check_limits()
    with pytest.raises(ValueError, match="--max-target-positions 513 exceeds the model's 512 positions"):
        build(dictionary, target=513).check_limits()
    with pytest.raises(ValueError, match="32 --length-classes"):
        build(dictionary, target=32).check_limits()


def test_the_task_starts_from_the_folder(tmp_path, dictionary):
    folder = write_mass_folder(tmp_path / "mass", mass_state(len(dictionary), layers=2))
    task = task_for(dictionary)
    cfg = OmegaConf.structured(config(pretrained=str(folder)))
    OmegaConf.set_struct(cfg, False)
    cfg._name = "nat_mass"
    model = task.build_model(cfg)
    expected = torch.load(folder / "mass-base-uncased.pt", weights_only=True)
    assert isinstance(model, NatMassModel) and tasks.TASK_REGISTRY["mist"] is MistTask
    assert torch.equal(model.encoder.word_embeddings.weight, expected["encoder.embed_tokens.weight"])
    (folder / "mass-base-uncased.pt").unlink()
    task.build_model(cfg, from_checkpoint=True).load_state_dict(model.state_dict())
    with pytest.raises(FileNotFoundError, match="there is no mass-base-uncased.pt"):
        task.build_model(cfg)


def test_other_weights_or_another_vocabulary_are_refused(tmp_path, dictionary):
    folder = write_mass_folder(tmp_path / "mass", mass_state(len(dictionary), layers=1))
    with pytest.raises(
        ValueError, match=r"lacks encoder\.layers\.1\..* \(42 in all\), which the model needs: give .*--encoder-layers"
    ):
        build(dictionary, folder)
    with pytest.raises(ValueError, match=r"embed_tokens\.weight has shape \(\d+, 32\), the model needs \(\d+, 64\)"):
        build(dictionary, folder, encoder_layers=1, decoder_layers=1, encoder_embed_dim=64)
    with pytest.raises(ValueError, match="another vocabulary"):
        NatMassModel.pretrained_sizes(str(folder), tiny_dictionary([*tiny_vocab(), "another"]))
