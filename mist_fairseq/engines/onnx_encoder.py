"""The encoder as one ONNX graph, for the source pass and the target pass alike; ``release.onnx_folder`` describes it.

A source pass is a target pass that sees nothing but itself: its past has no rows. So both passes share every weight,
also as ONNX Runtime packs them for its kernels.

Dimensions as in ``mist.encoder``; L rows a sentence see themselves and the P rows of a past, whose keys and values are
given. K = P + L.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mist_fairseq.engines.onnx_builder import CONTRIBUTED, Graph
from mist_fairseq.mist.config import SpecialTokens
from mist_fairseq.mist.encoder import Encoder
from mist_fairseq.mist.heads import LengthHead, MaskedLMHead
from mist_fairseq.mist.layers import relative_position_bucket

_BLOCK = 128  # tokens whose largest score is found at once


def encoder_graph(encoder: Encoder, special: SpecialTokens, int8: bool, file: str) -> tuple[Any, list[bytes]]:
    """The graph, and the content of its weights' file in pieces.

    Args:
        encoder: whose weights to take.
        special: ids of the special tokens.
        int8: quantize matrix products and word embeddings; biases, LayerNorms, positions and the length classifier,
            small and decisive, stay in fp32.
        file: the name of the weights' file.

    Raises:
        ValueError: a head is of another kind than those of ``mist.heads`` that the graph writes out.
    """
    for head, written in ((encoder.length_head, LengthHead), (encoder.head, MaskedLMHead)):
        if type(head) is not written:
            raise ValueError(f"the ONNX graph has {written.__name__}, not {type(head).__name__}: use --accelerate none")
    graph, config = Graph(int8), encoder.config
    heads, D = config.heads, config.hidden_size
    tokens = graph.input("tokens", np.int64, ["B", "L"])
    lengths, past_lengths = (graph.input(name, np.int64, ["B"]) for name in ("lengths", "past_lengths"))
    parts = [f"{part}{i}" for i in range(config.layers) for part in ("key", "value")]
    past = [graph.input(f"past_{name}", np.float32, ["B", heads, "P", D // heads]) for name in parts]

    past_size = graph.size(past[0], 2)
    order, past_order = graph.count(graph.size(tokens, 1)), graph.count(past_size)  # (L), (P)
    positions = graph.node("Add", graph.unsqueeze(past_lengths, 1), order)  # (B, L)
    past_real = graph.node("Less", past_order, graph.unsqueeze(past_lengths, 1))  # (B, P)
    real = graph.node("Less", order, graph.unsqueeze(lengths, 1))  # (B, L)
    mask = _mask(graph, encoder, graph.node("Concat", past_real, real, axis=1), positions, past_order, past_real)
    flat = graph.reshape(tokens, -1)  # (B * L)
    x = _embed(graph, encoder, flat, graph.reshape(positions, -1), past_size)
    x = _add_layers(graph, encoder, x, tokens, mask, past)  # (B * L, D)
    _add_length_scores(graph, encoder, x, real, lengths)

    masked = graph.node("And", graph.node("Equal", tokens, graph.constant(special.mask)), real)
    masked = graph.node("Squeeze", graph.node("NonZero", graph.reshape(masked, -1)), graph.constant([0]))  # (N)
    predicted, log_p = _predict(graph, encoder, graph.node("Gather", x, masked), special)
    zeros = graph.node("ConstantOfShape", graph.node("Shape", flat))
    for name, empty, values in (("predictions", flat, predicted), ("scores", zeros, log_p)):
        filled = graph.node("ScatterElements", empty, masked, values, axis=0)
        graph.node("Reshape", filled, graph.node("Shape", tokens), output=name)
    outputs: dict[str, list[int | str]]
    outputs = {"length_scores": ["B", config.length_classes], "predictions": ["B", "L"], "scores": ["B", "L"]}
    outputs |= {name: ["B", heads, "K", D // heads] for name in parts}
    return graph.build(outputs, ["predictions"], file)


def _embed(graph: Graph, encoder: Encoder, tokens: str, positions: str, past_size: str) -> str:
    """Embeddings; rows with a past are a target's. *Shapes:* (N), (N), a scalar -> (N, D)."""
    config = encoder.config
    words = graph.lookup("word_embeddings.weight", _padded(encoder.word_embeddings.weight), tokens)
    places = graph.node(
        "Gather", graph.weight("position_embeddings.weight", encoder.position_embeddings.weight), positions
    )
    kind = graph.node("Min", past_size, graph.constant(1))
    kind = graph.node("Gather", graph.constant([config.source_type, config.target_type]), kind)
    types = graph.weight("type_embeddings.weight", encoder.type_embeddings.weight)
    return graph.norm(words, "embedding_norm", encoder.embedding_norm, places, graph.node("Gather", types, kind))


def _mask(graph: Graph, encoder: Encoder, real: str, positions: str, past_order: str, past_real: str) -> str:
    """What to add to attention scores: -inf where a key is not *real*, else 0 or UniLM's bias by distance.

    *Shapes:* real (B, K), positions (B, L), past_order (P), past_real (B, P) -> (B, H or 1, L, K).
    """
    config, hidden = encoder.config, graph.constant(-np.inf)
    visible = graph.unsqueeze(real, 1, 2)  # (B, 1, 1, K)
    if encoder.relative_bias is None:
        mask = graph.node("Where", visible, graph.constant(0.0), hidden)
        one = graph.constant([1])
        shape = one, one, graph.node("Shape", positions, start=1, end=2), one
        return graph.node("Expand", mask, graph.node("Concat", *shape, axis=0))
    farthest = config.max_positions - 1
    buckets = relative_position_bucket(torch.arange(-farthest, farthest + 1), config.rel_pos_bins, config.max_rel_pos)
    by_distance = graph.weight("relative_bias.weight", encoder.relative_bias.weight.t()[buckets])  # (distances, H)
    past_positions = graph.node("Expand", past_order, graph.node("Shape", past_real))  # (B, P)
    keys = graph.node("Concat", past_positions, positions, axis=1)  # (B, K)
    relative = graph.node("Sub", graph.unsqueeze(keys, 1), graph.unsqueeze(positions, 2))  # (B, L, K)
    bias = graph.node("Gather", by_distance, graph.node("Add", relative, graph.constant(farthest)))  # (B, L, K, H)
    return graph.node("Where", visible, graph.node("Transpose", bias, perm=[0, 3, 1, 2]), hidden)


def _add_layers(graph: Graph, encoder: Encoder, x: str, tokens: str, mask: str, past: list[str]) -> str:
    """The layers; their keys and values, with the past's, are called ``key0``, ``value0``, ... (B, H, K, d).

    *Shapes:* x (B * L, D), tokens (B, L), mask (B, H or 1, L, K), past (B, H, P, d) each -> (B * L, D).
    """
    shape = graph.node("Concat", graph.node("Shape", tokens), graph.constant([-1]), axis=0)
    for i, layer in enumerate(encoder.layers):
        name = f"layers.{i}"
        joint = graph.node("Reshape", graph.linear(x, f"{name}.qkv.weight", layer.qkv.weight), shape)  # (B, L, 3 * D)
        split = graph.nodes_of("Split", [f"{part}{i}" for part in "qkv"], joint, axis=2, num_outputs=3)
        bias = graph.weight(f"{name}.qkv.bias", layer.qkv.bias)
        attended, _, _ = graph.nodes_of(
            "MultiHeadAttention",
            [f"attended{i}", f"key{i}", f"value{i}"],
            *(*split, bias, "", mask, *past[2 * i : 2 * i + 2]),
            num_heads=encoder.config.heads,
            domain=CONTRIBUTED,
        )
        attended = graph.linear(
            graph.reshape(attended, -1, encoder.config.hidden_size),
            f"{name}.attention_output.weight",
            layer.attention_output.weight,
        )
        bias = graph.weight(f"{name}.attention_output.bias", layer.attention_output.bias)
        x = graph.norm(attended, f"{name}.attention_norm", layer.attention_norm, x, bias)
        inner = graph.linear(x, f"{name}.ffn_in.weight", layer.ffn_in.weight)
        inner = graph.gelu(inner, f"{name}.ffn_in.bias", layer.ffn_in.bias)
        inner = graph.linear(inner, f"{name}.ffn_out.weight", layer.ffn_out.weight)
        x = graph.norm(
            inner, f"{name}.ffn_norm", layer.ffn_norm, x, graph.weight(f"{name}.ffn_out.bias", layer.ffn_out.bias)
        )
    return x


def _add_length_scores(graph: Graph, encoder: Encoder, x: str, real: str, lengths: str) -> None:
    """``length_scores`` (B, classes). *Shapes:* x (B * L, D), real (B, L), lengths (B)."""
    shape = graph.node("Concat", graph.node("Shape", real), graph.constant([-1]), axis=0)
    shown = graph.node("Where", graph.unsqueeze(real, 2), graph.node("Reshape", x, shape), graph.constant(0.0))
    total = graph.node("ReduceSum", shown, graph.constant([1]), keepdims=0)  # (B, D)
    count = graph.node("Cast", graph.unsqueeze(lengths, 1), to=graph.onnx.TensorProto.FLOAT)
    weight = graph.weight("length_head.weight", encoder.length_head.weight)
    graph.node("Gemm", graph.node("Div", total, count), weight, transB=1, output="length_scores")


def _predict(graph: Graph, encoder: Encoder, hidden: str, special: SpecialTokens) -> tuple[str, str]:
    """The masked-LM head's likeliest tokens and their log-probabilities. *Shape:* (N, D) -> (N), (N)."""
    head = encoder.head
    graph.rows_change()
    x = graph.linear(hidden, "head.transform.weight", head.transform.weight)
    x = graph.norm(graph.gelu(x, "head.transform.bias", head.transform.bias), "head.norm", head.norm)
    name, weight = "word_embeddings.weight", encoder.word_embeddings.weight
    if head.weight is not None:
        name, weight = "head.weight", head.weight
    bias = head.bias.detach().float().index_fill(0, torch.tensor(special.never_predicted), -torch.inf)
    logits = graph.linear(x, name, _padded(weight))
    logits = graph.node("Add", logits, graph.weight("head.bias", _padded(bias, -torch.inf)))
    return likeliest(graph, logits, -(-encoder.config.vocab_size // _BLOCK))


def likeliest(graph: Graph, logits: str, blocks: int) -> tuple[str, str]:
    """Tokens and log-probabilities; ONNX Runtime finds maxima of blocks faster than the place of one in a row.

    *Shape:* (N, blocks * _BLOCK) -> (N), (N).
    """
    log_p = graph.reshape(graph.node("LogSoftmax", logits, axis=-1), 0, blocks, _BLOCK)
    largest = graph.node("ReduceMax", log_p, graph.constant([2]), keepdims=0)  # (N, blocks)
    block = graph.node("ArgMax", largest, axis=1, keepdims=1)  # (N, 1)
    inside = graph.node("ArgMax", graph.node("GatherND", log_p, block, batch_dims=1), axis=1, keepdims=0)  # (N)
    first = graph.node("Squeeze", graph.node("Mul", block, graph.constant(_BLOCK)), graph.constant([1]))
    return graph.node("Add", first, inside), graph.node("ReduceMax", largest, graph.constant([1]), keepdims=0)


def _padded(weight: Tensor, value: float = 0.0) -> Tensor:
    """With rows for whole blocks of tokens. *Shape:* (V, ...) -> (blocks * _BLOCK, ...)."""
    missing = -len(weight) % _BLOCK
    return F.pad(weight.detach(), (*(0, 0) * (weight.dim() - 1), 0, missing), value=value)
