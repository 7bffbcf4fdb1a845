import math
from argparse import Namespace
from types import SimpleNamespace

import pytest
import torch
from fairseq.models import ARCH_MODEL_REGISTRY
from fairseq.sequence_generator import SequenceGenerator

from mist_fairseq.models.baselines.mass import MassModel, mass_base
from tests.helpers import tiny_dictionary, tiny_vocab

D, FFN, HEADS = 32, 64, 4


def mass_state(vocab_size, size=D, ffn=FFN, layers=1, fused=False, seed=0, scale=0.2) -> dict[str, torch.Tensor]:
    """Random weights under microsoft/MASS's names; *fused* as its older files have the attentions."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator) * scale

    words = normal(vocab_size, size)
    state = {}
    for side in ("encoder", "decoder"):
        state[f"{side}.version"] = torch.tensor([3.0])
        state[f"{side}.embed_tokens.weight"] = words
        state[f"{side}.embed_positions.weight"] = normal(513, size)
        norms = ["emb_layer_norm"]
        for i in range(layers):
            layer = f"layers.{i}."
            for attention in ("self_attn", "encoder_attn")[: 1 if side == "encoder" else 2]:
                weight, bias = normal(3 * size, size), normal(3 * size)
                if fused:
                    state[f"{side}.{layer}{attention}.in_proj_weight"] = weight
                    state[f"{side}.{layer}{attention}.in_proj_bias"] = bias
                else:
                    for name, w, b in zip("qkv", weight.split(size), bias.split(size)):
                        state[f"{side}.{layer}{attention}.{name}_proj.weight"] = w
                        state[f"{side}.{layer}{attention}.{name}_proj.bias"] = b
                state[f"{side}.{layer}{attention}.out_proj.weight"] = normal(size, size)
                state[f"{side}.{layer}{attention}.out_proj.bias"] = normal(size)
                norms.append(f"{layer}{attention}_layer_norm")
            for name, out, inside in (("fc1", ffn, size), ("fc2", size, ffn)):
                state[f"{side}.{layer}{name}.weight"] = normal(out, inside)
                state[f"{side}.{layer}{name}.bias"] = normal(out)
            norms.append(f"{layer}final_layer_norm")
        for name in norms:
            state[f"{side}.{name}.weight"], state[f"{side}.{name}.bias"] = 1 + normal(size), normal(size)
    return state


def write_mass_folder(folder, state, symbols=None):
    """A folder as microsoft/MASS publishes it."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"{symbol} {i}\n" for i, symbol in enumerate(symbols or tiny_vocab())]
    (folder / "dict.txt").write_text("".join(lines), encoding="utf-8")
    torch.save(state, folder / "mass-base-uncased.pt")
    return folder


class PlainMass:
    """MASS for one sentence, from the weights under MASS's names, split layout, in fp64.

    Args:
        causal: whether the decoder sees only the beginning of the target.
    """

    def __init__(self, state, layers=1, heads=HEADS, causal=True):
        self.state = {name: tensor.double() for name, tensor in state.items()}
        self.layers, self.heads, self.causal = layers, heads, causal

    def encode(self, tokens):
        """Ids -> last hidden states (S, D)."""
        x = self.embed("encoder", tokens)
        for i in range(self.layers):
            x = self.norm(
                f"encoder.layers.{i}.self_attn_layer_norm", x + self.attend(f"encoder.layers.{i}.self_attn", x, x)
            )
            x = self.feed_forward(f"encoder.layers.{i}.", x)
        return x

    def decode(self, tokens, source):
        """Ids and the encoder's last hidden states -> last hidden states (T, D)."""
        x = self.embed("decoder", tokens)
        for i in range(self.layers):
            name = f"decoder.layers.{i}."
            x = self.norm(name + "self_attn_layer_norm", x + self.attend(name + "self_attn", x, x, self.causal))
            x = self.norm(name + "encoder_attn_layer_norm", x + self.attend(name + "encoder_attn", x, source))
            x = self.feed_forward(name, x)
        return x

    def logits(self, hidden):
        return hidden @ self.state["decoder.embed_tokens.weight"].T

    def embed(self, side, tokens):
        words, places = self.state[f"{side}.embed_tokens.weight"], self.state[f"{side}.embed_positions.weight"]
        rows = [words[token] * math.sqrt(words.shape[1]) + places[1 + i] for i, token in enumerate(tokens)]
        return self.norm(f"{side}.emb_layer_norm", torch.stack(rows))

    def attend(self, name, x, seen, causal=False):
        query, key = self.linear(name + ".q_proj", x), self.linear(name + ".k_proj", seen)
        value, d = self.linear(name + ".v_proj", seen), x.shape[1] // self.heads
        rows = []
        for i in range(len(x)):
            parts = []
            for at in (slice(head * d, (head + 1) * d) for head in range(self.heads)):
                visible = i + 1 if causal else len(seen)
                scores = torch.stack([query[i, at] @ key[j, at] / math.sqrt(d) for j in range(visible)])
                shares = scores.exp() / scores.exp().sum()
                parts.append(sum(share * value[j, at] for j, share in enumerate(shares)))
            rows.append(torch.cat(parts))
        return self.linear(name + ".out_proj", torch.stack(rows))

    def feed_forward(self, name, x):
        inner = self.linear(name + "fc1", x)
        inner = 0.5 * inner * (1 + torch.erf(inner / math.sqrt(2)))
        return self.norm(name + "final_layer_norm", x + self.linear(name + "fc2", inner))

    def linear(self, name, x):
        return x @ self.state[name + ".weight"].T + self.state[name + ".bias"]

    def norm(self, name, x):
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * self.state[name + ".weight"] + self.state[name + ".bias"]


def build(dictionary, folder=None, source_limit=464, **options):
    """Through the architecture, as fairseq-train does; in evaluation mode."""
    sizes = dict(encoder_layers=1, decoder_layers=1, encoder_embed_dim=D, encoder_ffn_embed_dim=FFN)
    args = Namespace(**{**sizes, "encoder_attention_heads": HEADS, **options}, pretrained=folder and str(folder))
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


@pytest.mark.parametrize(
    "sizes",
    [
        dict(size=D, ffn=FFN, layers=2, heads=HEADS, scale=0.2),
        dict(size=768, ffn=3072, layers=1, heads=12, scale=0.04),
    ],
    ids=["small", "base"],
)
def test_equals_a_plain_computation(tmp_path, dictionary, sizes):
    heads = sizes.pop("heads")
    state = mass_state(len(dictionary), **sizes)
    model, _ = build(
        dictionary,
        write_mass_folder(tmp_path / "mass", state),
        encoder_layers=sizes["layers"],
        decoder_layers=sizes["layers"],
        encoder_embed_dim=sizes["size"],
        encoder_ffn_embed_dim=sizes["ffn"],
        encoder_attention_heads=heads,
    )
    plain = PlainMass(state, sizes["layers"], heads)
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


def test_fused_and_split_attentions_are_the_same(tmp_path, dictionary):
    V = len(dictionary)
    models = [
        build(dictionary, write_mass_folder(tmp_path / str(fused), mass_state(V, fused=fused)))[0].state_dict()
        for fused in (False, True)
    ]
    assert models[0].keys() == models[1].keys()
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


def test_the_decoder_sees_the_beginning_of_the_target(tmp_path, dictionary):
    model, _ = build(dictionary, write_mass_folder(tmp_path / "mass", mass_state(len(dictionary))))
    before = logits(model)
    after = logits(model, previous=[[*row[:2], 90, row[3]] for row in PREVIOUS])
    torch.testing.assert_close(before[:, :2], after[:, :2])
    assert ((before[:, 2:] - after[:, 2:]).abs().amax(-1) > 1e-3).all()


def test_beam_search_steps_equal_the_whole_computation(tmp_path, dictionary):
    model, _ = build(dictionary, write_mass_folder(tmp_path / "mass", mass_state(len(dictionary))))
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
    model, args = build(dictionary, write_mass_folder(tmp_path / "mass", mass_state(len(dictionary))))
    assert args.pretrained is None and args.max_source_positions == 512
    again, _ = build(dictionary)
    again.load_state_dict(model.state_dict())
    assert torch.equal(logits(again), logits(model))


def test_a_file_of_other_weights_is_refused(tmp_path, dictionary):
    state = mass_state(len(dictionary))
    folder = tmp_path / "mass"

    def refused(message, error=ValueError, **options):
        with pytest.raises(error, match=message):
            build(dictionary, folder, **options)

    refused("there is no dict.txt in it", FileNotFoundError)
    write_mass_folder(folder, state)
    refused(
        r"has decoder\.layers\.0\..* \(26 in all\), unknown to the model: give .* --decoder-layers", decoder_layers=0
    )
    refused(
        r"lacks encoder\.layers\.1\..* \(16 in all\), which the model needs: give .* --encoder-layers",
        encoder_layers=2,
    )
    refused(r"embed_tokens\.weight has shape \(\d+, 32\), the model needs \(\d+, 64\)", encoder_embed_dim=64)
    refused(
        r"encoder\.layers\.0\.fc1\.weight has shape \(64, 32\), the model needs \(80, 32\)", encoder_ffn_embed_dim=80
    )
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
    folder = write_mass_folder(tmp_path / "mass", mass_state(len(dictionary)))
    vocab = tiny_vocab()
    for other in ([*vocab[:-2], vocab[-1], vocab[-2]], vocab[:-1]):
        with pytest.raises(ValueError, match=rf"another vocabulary \({len(other)} entries\) than .*dict.txt"):
            build(tiny_dictionary(other), folder)


def test_sources_beyond_the_positions_are_refused(dictionary):
    with pytest.raises(ValueError, match="--max-source-positions 513 exceeds MASS's 512 positions"):
        build(dictionary, source_limit=513)
    assert isinstance(build(dictionary, source_limit=512)[0], MassModel)
