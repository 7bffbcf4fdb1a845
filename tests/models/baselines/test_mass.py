from argparse import Namespace
from types import SimpleNamespace

import pytest
import torch
from fairseq.models import ARCH_MODEL_REGISTRY
from fairseq.sequence_generator import SequenceGenerator

from mist_fairseq.models.baselines.mass import MassModel, mass_base
from tests.helpers import tiny_dictionary, tiny_vocab
from tests.models.baselines.plain import SMALL_AND_BASE, D, PlainMass, fused, options, random_weights


def write_mass_folder(folder, state, symbols=None):
    """A folder as microsoft/MASS publishes it."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"{symbol} {i}\n" for i, symbol in enumerate(symbols or tiny_vocab())]
    (folder / "dict.txt").write_text("".join(lines), encoding="utf-8")
    torch.save(state, folder / "mass-base-uncased.pt")
    return folder


def build(dictionary, folder=None, source_limit=464, **changes):
    """Through the architecture, as fairseq-train does; in evaluation mode."""
    args = Namespace(**{**options(), **changes}, pretrained=folder and str(folder))
    task = SimpleNamespace(
        source_dictionary=dictionary, target_dictionary=dictionary, max_positions=lambda: (source_limit, 1024)
    )
    mass_base(args)
    torch.manual_seed(0)
    model = ARCH_MODEL_REGISTRY["mass_base"].build_model(args, task)
    return model.eval(), args


def padded(rows, pad=0):
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=pad)


SOURCES = [[50, 61, 72, 83, 94, 55, 4], [60, 4], [77, 88, 99, 44, 4]]
PREVIOUS = [[4, 70, 71, 72], [4, 51, 52, 53], [4, 64, 66, 68]]


def logits(model, sources=SOURCES, previous=PREVIOUS):
    lengths = torch.tensor([len(source) for source in sources])
    with torch.no_grad():
        return model(padded(sources), lengths, torch.tensor(previous))[0]


@pytest.fixture
def model(tmp_path, dictionary):
    return build(dictionary, write_mass_folder(tmp_path / "mass", random_weights(len(dictionary))))[0]


@SMALL_AND_BASE
@pytest.mark.parametrize("layout", [dict, fused])
def test_equals_a_plain_computation(tmp_path, dictionary, sizes, heads, layout):
    state = random_weights(len(dictionary), **sizes)
    model, _ = build(dictionary, write_mass_folder(tmp_path / "mass", layout(state)), **options(heads=heads, **sizes))
    plain = PlainMass(state, heads)
    for found, source, previous in zip(logits(model), SOURCES, PREVIOUS):
        expected = plain.logits(plain.decode(previous, plain.encode(source)))
        torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)


def test_the_architecture_is_mass_base(dictionary):
    args = Namespace()
    mass_base(args)
    sizes = (args.encoder_layers, args.encoder_embed_dim, args.encoder_ffn_embed_dim, args.encoder_attention_heads)
    assert sizes == (6, 768, 3072, 12)
    assert (args.decoder_layers, args.decoder_embed_dim, args.decoder_ffn_embed_dim) == (6, 768, 3072)
    assert args.decoder_attention_heads == 12 and args.activation_fn == "gelu"
    model, _ = build(dictionary)
    assert model.encoder.embed_positions.weight.shape == model.decoder.embed_positions.weight.shape == (513, D)
    assert model.max_positions() == (512, 512)
    assert model.decoder.output_projection.weight is model.encoder.embed_tokens.weight


def test_the_decoder_sees_the_beginning_of_the_target(model):
    before = logits(model)
    after = logits(model, previous=[[*row[:2], 90, row[3]] for row in PREVIOUS])
    torch.testing.assert_close(before[:, :2], after[:, :2])
    assert ((before[:, 2:] - after[:, 2:]).abs().amax(-1) > 1e-3).all()


def test_beam_search_steps_equal_the_whole_computation(model, dictionary):
    generator = SequenceGenerator([model], dictionary, beam_size=3, max_len_b=12, normalize_scores=False)
    lengths = torch.tensor([len(source) for source in SOURCES])
    found = generator.generate([model], {"net_input": {"src_tokens": padded(SOURCES), "src_lengths": lengths}})
    assert all(len(hypotheses) == 3 for hypotheses in found)
    for source, hypotheses in zip(SOURCES, found):
        for hypothesis in hypotheses:
            tokens = hypothesis["tokens"].tolist()
            scores = logits(model, [source], [[dictionary.eos(), *tokens[:-1]]])[0].log_softmax(-1)
            expected = scores.gather(1, hypothesis["tokens"][:, None])[:, 0]
            torch.testing.assert_close(hypothesis["positional_scores"], expected, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(hypothesis["score"], expected.sum(), atol=1e-4, rtol=1e-4)


def test_a_checkpoint_needs_the_folder_no_more(tmp_path, dictionary):
    model, args = build(dictionary, write_mass_folder(tmp_path / "mass", random_weights(len(dictionary))))
    assert args.pretrained is None and args.max_source_positions == 512
    again, _ = build(dictionary)
    again.load_state_dict(model.state_dict())
    assert torch.equal(logits(again), logits(model))


def test_a_file_of_other_weights_is_refused(tmp_path, dictionary):
    state = random_weights(len(dictionary))
    folder = tmp_path / "mass"

    def refused(message, error=ValueError, **options):
        with pytest.raises(error, match=message):
            build(dictionary, folder, **options)

    refused("there is no dict.txt in it", FileNotFoundError)
    write_mass_folder(folder, state)
    refused(r"has decoder\.layers\.0\..* \(26 in all\), unknown .*: give .* --decoder-layers", decoder_layers=0)
    refused(r"lacks encoder\.layers\.1\..* \(16 in all\), .*: give .* --encoder-layers", encoder_layers=2)
    refused(r"embed_tokens\.weight has shape \(\d+, 32\), the model needs \(\d+, 64\)", encoder_embed_dim=64)
    refused(r"layers\.0\.fc1\.weight has shape \(64, 32\), .* \(80, 32\)", encoder_ffn_embed_dim=80)
    write_mass_folder(folder, {**state, "encoder.embed_positions.weight": torch.zeros(1025, D)})
    refused(r"encoder\.embed_positions\.weight has shape \(1025, 32\), the model needs \(513, 32\)")
    write_mass_folder(folder, {**state, "decoder.embed_tokens.weight": state["decoder.embed_tokens.weight"] + 1})
    refused("decoder.embed_tokens.weight differ")
    write_mass_folder(folder, {"weights": state})
    refused("does not hold a dictionary of tensors")
    (folder / "mass-base-uncased.pt").write_bytes(b"nothing")
    refused("mass-base-uncased.pt is damaged")
    (folder / "mass-base-uncased.pt").unlink()
    refused("there is no mass-base-uncased.pt in it", FileNotFoundError)


def test_another_vocabulary_is_refused(tmp_path, dictionary):
    folder = write_mass_folder(tmp_path / "mass", random_weights(len(dictionary)))
    vocab = tiny_vocab()
    for other in ([*vocab[:-2], vocab[-1], vocab[-2]], vocab[:-1]):
        with pytest.raises(ValueError, match=rf"another vocabulary \({len(other)} entries\) than .*dict.txt"):
            build(tiny_dictionary(other), folder)


def test_sources_beyond_the_positions_are_refused(dictionary):
    with pytest.raises(ValueError, match="--max-source-positions 513 exceeds MASS's 512 positions"):
        build(dictionary, source_limit=513)
    assert isinstance(build(dictionary, source_limit=512)[0], MassModel)
