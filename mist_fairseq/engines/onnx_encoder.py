"""The encoder as one ONNX graph, for the source pass and the target pass alike; ``release.onnx_folder`` describes it.

A source pass is a target pass that sees nothing but itself: its past has no rows. So both passes share every weight,
also as ONNX Runtime packs them for its kernels.

Dimensions as in ``mist.encoder``; L rows a sentence see themselves and the P rows of a past, whose keys and values are
given. K = P + L.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from mist_fairseq.engines.onnx_builder import CONTRIBUTED, Graph
from mist_fairseq.engines.weights import TOKEN_BLOCK, bias_by_distance, check_heads, head_bias, padded
from mist_fairseq.mist.config import EncoderConfig, SpecialTokens
from mist_fairseq.mist.copying import CopyHead
from mist_fairseq.mist.dag import TransitionHead
from mist_fairseq.mist.encoder import Encoder
from mist_fairseq.mist.layers import Layer, rotary_turns
from mist_fairseq.mist.path_search import NO_EDGE


def encoder_graph(
    encoder: Encoder, special: SpecialTokens, int8: bool, file: str, about: Mapping[str, str] | None = None
) -> tuple[Any, bytes]:
    """The graph, and the content of its weights' file.

    Args:
        encoder: whose weights to take.
        special: ids of the special tokens.
        int8: quantize matrix products and word embeddings; biases, LayerNorms, positions, the length classifier,
            the copy head and the paths', small and decisive, stay in fp32.
        file: the name of the weights' file.
        about: what both are to say of themselves.

    Raises:
        ValueError: a head is of another kind than those that the graph writes out.
    """
    check_heads(encoder)
    graph, config = Graph(int8), encoder.config
    H, D = config.heads, config.hidden_size
    tokens = graph.input("tokens", np.int64, ["B", "L"])
    lengths, past_lengths = (graph.input(name, np.int64, ["B"]) for name in ("lengths", "past_lengths"))
    parts = [f"{part}{i}" for i in range(config.layers) for part in ("key", "value")]
    past = [graph.input(f"past_{name}", np.float32, ["B", H, "P", D // H]) for name in parts]
    if encoder.copy_head is not None:
        words = graph.input("past_words", np.int64, ["B", "P"])
        hidden = graph.input("past_hidden", np.float32, ["B", "P", D])

    second, allowed = graph.switch("second"), graph.switch("allowed", "V")

    past_size = graph.size(past[0], 2)
    order, past_order = graph.count(graph.size(tokens, 1)), graph.count(past_size)  # (L), (P)
    positions = graph.node("Add", graph.unsqueeze(past_lengths, 1), order)  # (B, L)
    past_real = graph.node("Less", past_order, graph.unsqueeze(past_lengths, 1))  # (B, P)
    real = graph.node("Less", order, graph.unsqueeze(lengths, 1))  # (B, L)
    masks = _masks(graph, encoder, graph.node("Concat", past_real, real, axis=1), positions, past_order, past_real)
    flat, shape = graph.reshape(tokens, -1), graph.node("Shape", tokens)  # (B * L); B, L
    shape_of_rows = graph.node("Concat", shape, graph.constant([-1]), axis=0)
    x = _embed(graph, encoder, flat, graph.reshape(positions, -1), past_size)
    x = _add_layers(graph, encoder, x, shape_of_rows, masks, positions, past)  # (B * L, D)
    _add_length_scores(graph, encoder, x, shape_of_rows, real, lengths)

    zeros, is_target = graph.node("ConstantOfShape", shape), graph.node("Greater", past_size, graph.constant(0))
    masked = graph.node("And", graph.node("Equal", tokens, graph.constant(special.mask)), real)
    masked = graph.node("NonZero", graph.reshape(graph.node("And", masked, is_target), -1))
    masked = graph.node("Squeeze", masked, graph.constant([0]))  # (N)
    logits = _token_logits(graph, encoder, graph.node("Gather", x, masked), special)

    def fill() -> list[str]:
        either = logits
        if encoder.copy_head is not None:
            copies = _copies(graph, encoder.copy_head, x, shape_of_rows, masked, words, hidden, past_real)
            either = _with_copies(graph, logits, *copies)
        predicted = likeliest(graph, either, -(-config.vocab_size // TOKEN_BLOCK), second, allowed)
        filled = [
            graph.node("Reshape", graph.node("ScatterElements", old, masked, new, axis=0), shape)
            for old, new in zip((flat, graph.reshape(zeros, -1)), predicted)
        ]
        return filled if head is None else [*filled, _edges(graph, head, x, shape, order, real)]

    def leave() -> list[str]:
        return [graph.node("Identity", part) for part in (tokens, *[zeros] * (len(results) - 1))]

    head = encoder.transition_head
    results = ["predictions", "scores"] if head is None else ["predictions", "scores", "edges"]
    graph.choose(is_target, fill, leave, results)
    outputs: dict[str, list[int | str]]
    outputs = {"length_scores": ["B", config.length_classes], "predictions": ["B", "L"], "scores": ["B", "L"]}
    outputs |= {} if head is None else {"edges": ["B", "L", "L"]}
    outputs |= {name: ["B", H, "K", D // H] for name in parts}
    if encoder.copy_head is not None:
        graph.node("Identity", tokens, output="words")
        graph.node("Reshape", x, shape_of_rows, output="hidden")
        outputs |= {"words": ["B", "L"], "hidden": ["B", "L", D]}
    return graph.build(outputs, ["predictions", "words"], file, about)


def _embed(graph: Graph, encoder: Encoder, tokens: str, positions: str, past_size: str) -> str:
    """Embeddings; rows with a past are a target's. *Shapes:* (N), (N), a scalar -> (N, D)."""
    config = encoder.config
    words = graph.lookup("word_embeddings.weight", padded(encoder.word_embeddings.weight), tokens)
    kind = graph.node("Min", past_size, graph.constant(1))
    kind = graph.node("Gather", graph.constant([config.source_type, config.target_type]), kind)
    types = graph.node("Gather", graph.weight("type_embeddings.weight", encoder.type_embeddings.weight), kind)
    if encoder.position_embeddings is None:
        x = graph.norm(graph.node("Add", words, types), "embedding_norm", encoder.embedding_norm)
    else:
        table = graph.weight("position_embeddings.weight", encoder.position_embeddings.weight)
        places = graph.node("Gather", table, positions)
        x = graph.norm(words, "embedding_norm", encoder.embedding_norm, places, types)
    if encoder.embedding_projection is None:
        return x
    x = graph.linear(x, "embedding_projection.weight", encoder.embedding_projection.weight)
    return graph.sum(x, graph.bias("embedding_projection", encoder.embedding_projection))


def _masks(
    graph: Graph, encoder: Encoder, real: str, positions: str, past_order: str, past_real: str
) -> tuple[str, str]:
    """What layers that see all and local ones add to attention scores: 0 or a bias by distance, -inf where no key is.

    *Shapes:* real (B, K), positions (B, L), past_order (P), past_real (B, P) -> (B, H or 1, L, K).
    """
    config, hidden = encoder.config, graph.constant(-np.inf)
    visible = graph.unsqueeze(real, 1, 2)  # (B, 1, 1, K)
    if encoder.relative_bias is None:
        mask = graph.node("Where", visible, graph.constant(0.0), hidden)
        one = graph.constant([1])
        shape = one, one, graph.node("Shape", positions, start=1, end=2), one
        mask = graph.node("Expand", mask, graph.node("Concat", *shape, axis=0))
        if not config.local_window:
            return mask, mask
    past_positions = graph.node("Expand", past_order, graph.node("Shape", past_real))  # (B, P)
    keys = graph.node("Concat", past_positions, positions, axis=1)  # (B, K)
    relative = graph.node("Sub", graph.unsqueeze(keys, 1), graph.unsqueeze(positions, 2))  # (B, L, K)
    if encoder.relative_bias is None:
        far = graph.node("Greater", graph.node("Abs", relative), graph.constant(config.local_window))
        # Not -inf: padding that sees nothing would give NaN.
        low, zero = graph.constant(float(np.finfo(np.float32).min) / 4), graph.constant(0.0)
        near = graph.node("Where", graph.unsqueeze(far, 1), low, zero)
        return mask, graph.node("Add", near, graph.node("Where", visible, zero, low))
    by_distance = graph.weight("relative_bias.weight", bias_by_distance(encoder))  # (distances, H)
    distance = graph.node("Add", relative, graph.constant(config.max_positions - 1))
    bias = graph.node("Gather", by_distance, distance)  # (B, L, K, H)
    biased = graph.node("Where", visible, graph.node("Transpose", bias, perm=[0, 3, 1, 2]), hidden)
    return biased, biased


def _add_layers(
    graph: Graph, encoder: Encoder, x: str, shape: str, masks: tuple[str, str], positions: str, past: list[str]
) -> str:
    """The layers; their keys and values, with the past's, are called ``key0``, ``value0``, ... (B, H, K, d).

    *Shapes:* x (B * L, D), which *shape* makes (B, L, D), positions (B, L), masks (B, H or 1, L, K), past (B, H, P, d)
    each -> (B * L, D).
    """
    config = encoder.config
    product = partial(graph.linear, reused=config.shared_layers)
    for i in range(config.layers):
        number = 0 if config.shared_layers else i
        name, layer = f"layers.{number}", encoder.layers[number]
        inner = x
        if config.pre_norm and number > 0:
            inner = graph.norm(x, f"{name}.attention_norm", layer.attention_norm)
        joint = graph.node("Reshape", product(inner, f"{name}.qkv.weight", layer.qkv.weight), shape)
        bias = graph.bias(f"{name}.qkv", layer.qkv)
        if config.rotary_base:  # which turn the biases, too
            joint, bias = graph.sum(joint, bias), ""
        query, key, value = graph.nodes_of("Split", [f"{part}{i}" for part in "qkv"], joint, axis=2, num_outputs=3)
        if config.rotary_base:
            base = config.local_rotary_base if layer.is_local else config.rotary_base
            query, key = (_turned(graph, encoder, part, positions, base) for part in (query, key))  # (B, L, D)
        attended, _, _ = graph.nodes_of(
            "MultiHeadAttention",
            [f"attended{i}", f"key{i}", f"value{i}"],
            *(query, key, value, bias, "", masks[layer.is_local]),
            *past[2 * i : 2 * i + 2],
            num_heads=config.heads,
            domain=CONTRIBUTED,
        )
        attended = graph.reshape(attended, -1, config.hidden_size)
        attended = product(attended, f"{name}.attention_output.weight", layer.attention_output.weight)
        if config.pre_norm:
            x = graph.sum(x, attended, graph.bias(f"{name}.attention_output", layer.attention_output))
            fed = _feed_forward(graph, layer, name, graph.norm(x, f"{name}.ffn_norm", layer.ffn_norm), config)
            x = graph.sum(x, fed, graph.bias(f"{name}.ffn_out", layer.ffn_out))
        else:
            bias = graph.bias(f"{name}.attention_output", layer.attention_output)
            x = graph.norm(attended, f"{name}.attention_norm", layer.attention_norm, x, bias)
            fed = _feed_forward(graph, layer, name, x, config)
            x = graph.norm(fed, f"{name}.ffn_norm", layer.ffn_norm, x, graph.bias(f"{name}.ffn_out", layer.ffn_out))
    return x if encoder.final_norm is None else graph.norm(x, "final_norm", encoder.final_norm)


def _feed_forward(graph: Graph, layer: Layer, name: str, x: str, config: EncoderConfig) -> str:
    """Without the last bias. *Shape:* (N, D) -> (N, D)."""
    product = partial(graph.linear, reused=config.shared_layers)
    inner = product(x, f"{name}.ffn_in.weight", layer.ffn_in.weight)
    bias = graph.bias(f"{name}.ffn_in", layer.ffn_in)
    if config.gated:
        inner = graph.sum(inner, bias)
        inner, gate = graph.nodes_of("Split", [inner + "_inner", inner + "_gate"], inner, axis=1, num_outputs=2)
        inner = graph.node("Mul", graph.activate(inner, config.activation), gate)
    else:
        inner = graph.activate(inner, config.activation, bias)
    return product(inner, f"{name}.ffn_out.weight", layer.ffn_out.weight)


def _turned(graph: Graph, encoder: Encoder, x: str, positions: str, base: float) -> str:
    """Heads turned by rotary positions. *Shapes:* x (B, L, D), positions (B, L) -> (B, L, D)."""
    config = encoder.config
    size = config.hidden_size // config.heads
    turns = rotary_turns(torch.arange(config.max_positions)[None], size, base)
    tables = [graph.weight(f"{part}.{base:g}", turn[0, 0]) for part, turn in zip(("cosines", "sines"), turns)]
    return graph.node("RotaryEmbedding", x, positions, *tables, num_heads=config.heads, domain=CONTRIBUTED)


def _add_length_scores(graph: Graph, encoder: Encoder, x: str, shape: str, real: str, lengths: str) -> None:
    """``length_scores`` (B, classes). *Shapes:* x (B * L, D), *shape* makes it (B, L, D), real (B, L), lengths (B)."""
    shown = graph.node("Where", graph.unsqueeze(real, 2), graph.node("Reshape", x, shape), graph.constant(0.0))
    total = graph.node("ReduceSum", shown, graph.constant([1]), keepdims=0)  # (B, D)
    count = graph.node("Cast", graph.unsqueeze(lengths, 1), to=graph.onnx.TensorProto.FLOAT)
    weight = graph.weight("length_head.weight", encoder.length_head.weight)
    graph.node("Gemm", graph.node("Div", total, count), weight, transB=1, output="length_scores")


def _copies(
    graph: Graph, head: CopyHead, x: str, shape: str, masked: str, words: str, hidden: str, real: str
) -> tuple[str, str]:
    """The source's tokens, and what each scores from all its places together. -> (N, P) each.

    *Shapes:* x (B * L, D), which *shape* makes (B, L, D), masked (N), into B * L, words and real (B, P), hidden
    (B, P, D).
    """
    weights = graph.weight("copy_head.weight", head.weight), graph.bias("copy_head", head)
    queries = graph.node("Reshape", graph.node("Gemm", x, *filter(None, weights), transB=1), shape)
    scale = head.out_features**-0.5
    scores = graph.node("FusedMatMul", queries, hidden, transB=1, alpha=scale, domain=CONTRIBUTED)
    scores = graph.node("Where", graph.unsqueeze(real, 1), scores, graph.constant(-np.inf))  # (B, L, P)
    highest = graph.node("ReduceMax", scores, graph.constant([2]))
    same = graph.node("Equal", graph.unsqueeze(words, 2), graph.unsqueeze(words, 1))  # (B, P, P)
    same = graph.node("Cast", same, to=graph.onnx.TensorProto.FLOAT)
    odds = graph.node("MatMul", graph.node("Exp", graph.node("Sub", scores, highest)), same)
    odds = graph.node("Max", odds, graph.constant(float(np.finfo(np.float32).tiny)))
    together = graph.node("Add", graph.node("Log", odds), highest)
    together = graph.node("Gather", graph.node("Flatten", together, axis=2), masked)
    sentence = graph.node("Div", masked, graph.node("Gather", shape, graph.constant(1)))
    return graph.node("Gather", words, sentence), together


def _edges(graph: Graph, head: TransitionHead, x: str, shape: str, order: str, real: str) -> str:
    """What ``TransitionHead`` gives. *Shapes:* x (B * L, D), *shape* is B, L, order (L), real (B, L) -> (B, L, L)."""

    def product(name: str, linear: Any) -> str:
        bias = graph.bias(f"transition_head.{name}", linear)
        weight = graph.weight(f"transition_head.{name}.weight", linear.weight)
        return graph.node("Gemm", x, weight, *filter(None, [bias]), transB=1)

    size = head.query_key.in_features // head.heads
    both = product("query_key", head.query_key)
    both = graph.node("Reshape", both, graph.node("Concat", shape, graph.constant([2, head.heads, size]), axis=0))
    both = graph.node("Transpose", both, perm=[2, 0, 3, 1, 4])
    query, key = (graph.node("Gather", both, graph.constant(part)) for part in (0, 1))  # (B, H, L, d)
    scores = graph.node("FusedMatMul", query, key, transB=1, alpha=size**-0.5, domain=CONTRIBUTED)
    later = graph.node("Less", graph.unsqueeze(order, 1), graph.unsqueeze(order, 0))
    there, none = graph.node("And", later, graph.unsqueeze(real, 1)), graph.constant(NO_EDGE)
    log_p = graph.node("LogSoftmax", graph.node("Where", graph.unsqueeze(there, 1), scores, none), axis=-1)
    gates = graph.node("LogSoftmax", product("gate", head.gate), axis=-1)
    gates = graph.node("Reshape", gates, graph.node("Concat", shape, graph.constant([-1]), axis=0))
    gates = graph.unsqueeze(graph.node("Transpose", gates, perm=[0, 2, 1]), 3)  # (B, H, L, 1)
    mixed = graph.node("ReduceLogSumExp", graph.node("Add", log_p, gates), graph.constant([1]), keepdims=0)
    return graph.node("Where", there, mixed, none)


def _token_logits(graph: Graph, encoder: Encoder, hidden: str, special: SpecialTokens) -> str:
    """The masked-LM head's scores. *Shape:* (N, D) -> (N, blocks * TOKEN_BLOCK)."""
    head = encoder.head
    graph.rows_change()
    x = graph.linear(hidden, "head.transform.weight", head.transform.weight)
    x = graph.activate(x, encoder.config.activation, graph.bias("head.transform", head.transform))
    x = graph.norm(x, "head.norm", head.norm)
    name, weight = "word_embeddings.weight", encoder.word_embeddings.weight
    if head.weight is not None:
        name, weight = "head.weight", head.weight
    logits = graph.linear(x, name, padded(weight))
    return graph.node("Add", logits, graph.weight("head.bias", head_bias(encoder, special)))


def _with_copies(graph: Graph, logits: str, words: str, copied: str) -> str:
    """The scores of choosing or copying, by what ``_copies`` gives. *Shapes:* (N, V), (N, P), (N, P) -> (N, V)."""
    chosen = graph.node("GatherElements", logits, words, axis=1)  # (N, P)
    either = graph.node("Add", copied, graph.node("Softplus", graph.node("Sub", chosen, copied)))
    either = graph.node("Where", graph.node("IsInf", chosen), chosen, either)  # never predicted
    return graph.node("ScatterElements", logits, words, either, axis=1)


def likeliest(graph: Graph, logits: str, blocks: int, second: str, allowed: str) -> Sequence[str]:
    """Tokens and log-probabilities, or with the input *second* those of the second likeliest.

    ONNX Runtime finds maxima of blocks faster than the place of one in a row.

    *Shape:* (N, blocks * TOKEN_BLOCK), allowed of as many or none -> (N) each.
    """
    flat = graph.node("LogSoftmax", logits, axis=-1)

    def some() -> Sequence[str]:
        log_p = graph.node("Where", allowed, flat, graph.constant(-np.inf))
        return _likeliest(graph, log_p, blocks, second, "allowed")

    def all_tokens() -> Sequence[str]:
        return _likeliest(graph, flat, blocks, second, "any")

    is_given = graph.node("Greater", graph.node("Size", allowed), graph.constant(0))
    return graph.choose(is_given, some, all_tokens, ["likeliest", "likeliest_scores"])


def _likeliest(graph: Graph, flat: str, blocks: int, second: str, name: str) -> Sequence[str]:
    """As ``likeliest``, from log-probabilities; values have names that begin with *name*."""

    def next_best() -> list[str]:
        two = graph.nodes_of("TopK", [f"{name}_two_scores", f"{name}_two_tokens"], flat, graph.constant([2]), axis=1)
        scores, tokens = (graph.node("Gather", values, graph.constant(1), axis=1) for values in two)
        return [tokens, scores]

    def best() -> list[str]:
        log_p = graph.reshape(flat, 0, blocks, TOKEN_BLOCK)
        largest = graph.node("ReduceMax", log_p, graph.constant([2]), keepdims=0)  # (N, blocks)
        block = graph.node("ArgMax", largest, axis=1, keepdims=1)  # (N, 1)
        inside = graph.node("ArgMax", graph.node("GatherND", log_p, block, batch_dims=1), axis=1, keepdims=0)  # (N)
        first = graph.node("Squeeze", graph.node("Mul", block, graph.constant(TOKEN_BLOCK)), graph.constant([1]))
        highest = graph.node("ReduceMax", largest, graph.constant([1]), keepdims=0)
        return [graph.node("Add", first, inside), highest]

    return graph.choose(second, next_best, best, [f"{name}_likeliest", f"{name}_likeliest_scores"])
