"""MASS and BANG under the names of microsoft's code: random weights, and what they compute for one sentence."""

import math

import pytest
import torch

from mist_fairseq.mist.encoder_decoder import BUCKETS

D, FFN, HEADS = 32, 64, 4
SMALL_AND_BASE = pytest.mark.parametrize(
    "sizes, heads",
    [(dict(size=D, ffn=FFN, layers=2, scale=0.2), HEADS), (dict(size=768, ffn=3072, layers=1, scale=0.04), 12)],
    ids=["small", "base"],
)


def options(size=D, ffn=FFN, layers=1, heads=HEADS, **_) -> dict[str, int]:
    """The command line's for a model of these sizes."""
    names = dict(encoder_embed_dim=size, encoder_ffn_embed_dim=ffn, encoder_attention_heads=heads)
    return dict(encoder_layers=layers, decoder_layers=layers, **names)


def random_weights(vocab_size, size=D, ffn=FFN, layers=1, scale=0.2, positions=(513, 513), bang_heads=0):
    """MASS's, or with *bang_heads* BANG's; query, key and value stand apart."""
    generator = torch.Generator().manual_seed(0)
    state: dict[str, torch.Tensor] = {}

    def normal(*shape):
        return torch.randn(*shape, generator=generator) * scale

    def linear(name, out, inside):
        state[name + ".weight"], state[name + ".bias"] = normal(out, inside), normal(out)

    def norm(name):
        state[name + ".weight"], state[name + ".bias"] = 1 + normal(size), normal(size)

    words = normal(vocab_size, size)
    for side, rows in zip(("encoder", "decoder"), positions):
        state[f"{side}.version"], state[f"{side}.embed_tokens.weight"] = torch.tensor([3.0]), words
        state[f"{side}.embed_positions.weight"] = normal(rows, size)
        norm(f"{side}.emb_layer_norm")
        for i in range(layers):
            layer = f"{side}.layers.{i}."
            own = layer + ("ngram_self_attn" if bang_heads and side == "decoder" else "self_attn")
            for attention in [own, layer + "encoder_attn"] if side == "decoder" else [own]:
                for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
                    linear(f"{attention}.{name}", size, size)
                norm(attention.replace("ngram_", "") + "_layer_norm")
            if "ngram" in own:
                linear(own + ".relative_linear", BUCKETS * bang_heads, size)
            linear(layer + "fc1", ffn, size)
            linear(layer + "fc2", size, ffn)
            norm(layer + "final_layer_norm")
    if bang_heads:
        state["decoder.ngram_input_embed.weight"] = normal(1, size)
    return state


def fused(state, attention="attn") -> dict[str, torch.Tensor]:
    """Query, key and value in one matrix, as older files have them."""
    state = dict(state)
    for name in [name for name in state if f"{attention}.q_proj." in name]:
        parts = [state.pop(name.replace("q_proj", f"{one}_proj")) for one in "qkv"]
        state[name.replace("q_proj.", "in_proj_")] = torch.cat(parts)
    return state


class Plain:
    """What both have in common, in fp64, position by position and head by head."""

    def __init__(self, state, heads=HEADS):
        self.state, self.heads = {name: tensor.double() for name, tensor in state.items()}, heads

    def layers(self, side, x, source=None, attention="self_attn", bias=None):
        """From embeddings on; bias(layer, x) is as ``attend`` takes it, by default all is seen."""
        x = self.norm(f"{side}.emb_layer_norm", x)
        for i in range(len({name.split(".")[2] for name in self.state if name.startswith(f"{side}.layers.")})):
            name = f"{side}.layers.{i}."
            attended = self.attend(name + attention, x, x, bias and bias(name, x))
            x = self.norm(name + "self_attn_layer_norm", x + attended)
            if source is not None:
                x = self.norm(name + "encoder_attn_layer_norm", x + self.attend(name + "encoder_attn", x, source))
            inner = self.linear(name + "fc1", x)
            inner = 0.5 * inner * (1 + torch.erf(inner / math.sqrt(2)))
            x = self.norm(name + "final_layer_norm", x + self.linear(name + "fc2", inner))
        return x

    def attend(self, name, x, seen, bias=None):
        """bias(head, query position, key position) is added to the score, None where nothing is seen."""
        bias = bias or (lambda *_: 0.0)
        query, (key, value) = (
            self.linear(name + ".q_proj", x),
            (self.linear(f"{name}.{one}_proj", seen) for one in "kv"),
        )
        d = x.shape[1] // self.heads
        out = torch.zeros_like(x)
        for head in range(self.heads):
            part = slice(head * d, (head + 1) * d)
            for t in range(len(x)):
                places = [s for s in range(len(seen)) if bias(head, t, s) is not None]
                scores = [query[t, part] @ key[s, part] / math.sqrt(d) + bias(head, t, s) for s in places]
                out[t, part] = torch.stack(scores).softmax(0) @ value[places, part]
        return self.linear(name + ".out_proj", out)

    def logits(self, hidden):
        return hidden @ self.state["decoder.embed_tokens.weight"].T

    def linear(self, name, x):
        return x @ self.state[name + ".weight"].T + self.state[name + ".bias"]

    def norm(self, name, x):
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * self.state[name + ".weight"] + self.state[name + ".bias"]


class PlainMass(Plain):
    """Args: *causal*: whether the decoder sees only the beginning of the target."""

    def __init__(self, state, heads=HEADS, causal=True):
        super().__init__(state, heads)
        self.bias = (lambda *_: lambda head, t, s: None if s > t else 0.0) if causal else None

    def encode(self, tokens):
        """Ids -> last hidden states (S, D)."""
        return self.layers("encoder", self.embed("encoder", tokens))

    def decode(self, tokens, source):
        """Ids and the encoder's last hidden states -> last hidden states (T, D)."""
        return self.layers("decoder", self.embed("decoder", tokens), source, bias=self.bias)

    def embed(self, side, tokens):
        words, places = self.state[f"{side}.embed_tokens.weight"], self.state[f"{side}.embed_positions.weight"]
        return words[tokens] * math.sqrt(words.shape[1]) + places[1 : 1 + len(tokens)]


class PlainBang(Plain):
    def __call__(self, source: list[int], T: int) -> torch.Tensor:
        """Logits (T, V) of T [MASK]s, in fp32."""
        words, places = (self.state[f"encoder.embed_{name}.weight"] for name in ("tokens", "positions"))
        encoded = self.layers("encoder", words[source] + places[1 : 1 + len(source)])
        masks = self.state["decoder.ngram_input_embed.weight"][-1]
        masks = masks + self.state["decoder.embed_positions.weight"][2 : 2 + T]
        return self.logits(self.layers("decoder", masks, encoded, "ngram_self_attn", self.bias)).float()

    def bias(self, layer, x):
        relative = self.linear(layer + "ngram_self_attn.relative_linear", x)
        return lambda head, t, s: None if s > t else relative[t, bucket(t - s) * self.heads + head]


def bucket(distance: int) -> int:
    if distance < 16:
        return distance
    return min(31, int(16 + 16 * math.log(distance / 16) / math.log(128 / 16)))
