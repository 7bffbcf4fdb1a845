import copy

import pytest
import torch
from fairseq import tasks
from omegaconf import OmegaConf
from torch._subclasses.fake_tensor import FakeTensorMode

from mist_fairseq.criterions.mist_loss import MistLoss
from mist_fairseq.mist.config import EncoderDecoderConfig
from mist_fairseq.models.baselines.nat_mass import NatMassConfig, NatMassModel
from mist_fairseq.models.generator import NARGenerator
from mist_fairseq.models.mist import PositionLimits
from mist_fairseq.tasks.mist import MistTask, MistTaskConfig
from tests.helpers import batch, decode, encode, sources, targets, tiny_dictionary, tiny_vocab
from tests.models.baselines.test_mass import FFN, HEADS, D, PlainMass, mass_state, write_mass_folder

SOURCES, TARGETS = [9, 4, 13, 2], [5, 12, 1, 7]


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


def test_a_sentence_alone_equals_it_in_a_batch(dictionary):
    model = build(dictionary)
    src, src_lengths = sources(SOURCES, dictionary)
    tgt, tgt_lengths = targets(TARGETS, dictionary)
    with torch.no_grad():
        together = encode(model, src, src_lengths)
        hidden = decode(model, tgt, tgt_lengths, together)
        for row, (S, T) in enumerate(zip(SOURCES, TARGETS)):
            one = slice(row, row + 1)
            alone = encode(model, src[one, :S], src_lengths[one])
            torch.testing.assert_close(alone.hidden, together.hidden[one, :S], atol=1e-5, rtol=1e-5)
            (expected,) = decode(model, tgt[one, :T], tgt_lengths[one], alone)
            torch.testing.assert_close(hidden[row], expected, atol=1e-5, rtol=1e-5)
            lengths = [model.encoder.length_logits(state) for state in (alone, together.select(torch.tensor([row])))]
            torch.testing.assert_close(*lengths, atol=1e-5, rtol=1e-5)


def test_the_decoder_sees_the_whole_target_and_source(dictionary):
    model = build(dictionary)
    src, src_lengths = sources([6], dictionary)
    tgt, tgt_lengths = targets([5], dictionary)

    def first_row(src, tgt):
        with torch.no_grad():
            return decode(model, tgt, tgt_lengths, encode(model, src, src_lengths))[0][0]

    later, other = tgt.clone(), src.clone()
    later[0, 3], other[0, 4] = 41, 41
    before = first_row(src, tgt)
    assert (before - first_row(src, later)).abs().max() > 1e-3
    assert (before - first_row(other, tgt)).abs().max() > 1e-3


def test_mixing_trains_all_weights(dictionary):
    model = build(dictionary).train()
    sample = batch(SOURCES, TARGETS, dictionary)
    criterion = MistLoss(task_for(dictionary), 0.5, 1.0, 1.0, 0.1)
    loss, sample_size, logging = criterion(model, sample)
    loss.backward()
    assert sample_size == sum(TARGETS) and logging["mist_loss"] > 0 and logging["revealed"] > 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert all(p.grad.abs().max() > 0 for name, p in model.named_parameters() if "qkv.bias" not in name)
    criterion = MistLoss(task_for(dictionary), 0.5, 0.0, 1.0, 0.1)
    assert "mist_loss" not in criterion(model, sample)[2]


def test_forward_never_waits_for_a_value(dictionary):
    inputs = batch(SOURCES, TARGETS, dictionary)["net_input"]
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        model = build(dictionary).train()
        output = model(**{name: mode.from_tensor(value) for name, value in inputs.items()}, glancing_ratio=0.5)
        output["mist_logits"].sum().backward()


def test_bf16_keeps_the_weights_in_fp32(dictionary):
    model = build(dictionary, dropout=0.0, attention_dropout=0.0, activation_dropout=0.0).train()
    inputs = batch(SOURCES, TARGETS, dictionary)["net_input"]
    exact = model(**inputs)["nat_logits"]
    model.precision = "bf16"
    output = model(**inputs)
    assert output["nat_logits"].dtype == torch.bfloat16
    assert torch.cosine_similarity(output["nat_logits"].float().flatten(), exact.flatten(), dim=0) > 0.99
    output["mist_logits"].float().logsumexp(-1).sum().backward()
    used = [p for name, p in model.named_parameters() if "length_head" not in name]
    assert all(p.grad is not None and p.dtype == p.grad.dtype == torch.float32 for p in used)


@pytest.mark.parametrize(
    "decoding, iterations, beam",
    [("single-pass", 1, 1), ("single-pass", 1, 3), ("mist", 3, 1), ("mist", 3, 2), ("mask-predict", 4, 2)],
)
def test_generates(dictionary, decoding, iterations, beam):
    """A sentence alone gives what it gives in a batch, in which one source stands twice."""
    model = build(dictionary)
    generator = NARGenerator([model], dictionary, decoding=decoding, iterations=iterations, length_beam=beam)
    src, lengths = sources([9, 4, 13], dictionary)
    src, lengths = torch.cat([src, src[:1]]), torch.cat([lengths, lengths[:1]])
    found = generator.generate([model], {"net_input": {"src_tokens": src, "src_lengths": lengths}})
    for row, hypotheses in enumerate(found):
        assert len(hypotheses) == beam
        alone = {"src_tokens": src[row : row + 1, : lengths[row]], "src_lengths": lengths[row : row + 1]}
        for here, expected in zip(hypotheses, generator.generate([model], {"net_input": alone})[0]):
            assert here["tokens"].tolist() == expected["tokens"].tolist() and 1 <= here["steps"] <= iterations
            torch.testing.assert_close(here["score"], expected["score"], atol=1e-4, rtol=1e-4)
    assert found[0][0]["tokens"].tolist() == found[3][0]["tokens"].tolist()


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
    with pytest.raises(ValueError, match="--max-source-positions 513 exceeds MASS's 512 positions"):
        build(dictionary, source=513).check_limits()
    with pytest.raises(ValueError, match="--max-target-positions 513 exceeds MASS's 512 positions"):
        build(dictionary, target=513).check_limits()
    with pytest.raises(ValueError, match="32 --length-classes"):
        build(dictionary, target=32).check_limits()


def test_positions_reach_as_far_as_mass(dictionary):
    model = build(dictionary, source=512, target=512, length_classes=600)
    src, lengths = sources([512], dictionary)
    with torch.no_grad():
        assert decode(model, src, lengths, encode(model, src, lengths))[0].shape == (512, D)


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
    with pytest.raises(ValueError, match=r"lacks decoder\.layers\.1\..* which a model of 2 --encoder-layers"):
        build(dictionary, folder)
    with pytest.raises(ValueError, match=r"embed_tokens\.weight has shape \(\d+, 32\), the model needs \(\d+, 64\)"):
        build(dictionary, folder, encoder_layers=1, decoder_layers=1, encoder_embed_dim=64)
    with pytest.raises(ValueError, match="another vocabulary"):
        NatMassModel.pretrained_sizes(str(folder), tiny_dictionary([*tiny_vocab(), "another"]))


def test_weights_kept_in_bf16_give_what_autocast_gives(dictionary):
    model = build(dictionary).eval()
    kept = copy.deepcopy(model)
    kept.encoder.keep_in_(torch.bfloat16)
    assert kept.encoder.decoder.layers[0].cross_attention.query.weight.dtype == torch.bfloat16
    inputs = batch([9, 4], [5, 7], dictionary)["net_input"]
    found = []
    for one in (model, kept):
        with torch.no_grad(), one.autocast("bf16"):
            source = one.encoder.encode_source(inputs["src_tokens"], inputs["src_lengths"], inputs["src_index"])
            target = inputs["target_tokens"], inputs["target_lengths"], inputs["target_index"]
            hidden = one.encoder.decode_target(*target, source)
            found.append((source.hidden, one.encoder.length_logits(source), one.encoder.token_logits(hidden)))
    assert all(torch.equal(*pair) for pair in zip(*found))


def test_heads_share_the_hidden_size():
    with pytest.raises(ValueError, match="hidden size 32 is not a multiple of the 5 attention heads"):
        EncoderDecoderConfig(100, hidden_size=32, heads=5)
