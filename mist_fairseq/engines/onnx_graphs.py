"""The source pass and the target pass as ONNX graphs that stand alone: what ``export.onnx_folder`` writes to files.

Dimensions as in ``models.encoder``.
"""

import numpy as np
import torch
from torch import Tensor

from mist_fairseq.engines.graph import Graph, add_layers, head_transform, past_inputs, shape_of_rows
from mist_fairseq.mist.encoder import Encoder, relative_position_bucket

_BLOCK = 128  # tokens whose largest score is found at once


def source_graph(encoder: Encoder, int8: bool, version: str = ""):
    """The source pass with the length classifier.

    Inputs: ``tokens`` (B, S), ``lengths`` (B). Outputs: ``length_scores`` (B, classes) before the softmax, and
    ``key0``, ``value0``, ... (B, H, S, d).
    """
    graph, config = Graph(int8), encoder.config
    size, heads = config.hidden_size, config.heads
    tokens, lengths = graph.input("tokens", np.int64, ["B", "S"]), graph.input("lengths", np.int64, ["B"])
    positions = _count(graph, _size(graph, tokens, 1))  # (S)
    real = graph.node("Less", positions, _unsqueeze(graph, lengths, 1))  # (B, S)
    x = _embed(graph, encoder, graph.constant(encoder.word_embeddings.weight), tokens, positions, config.source_type)
    mask = _mask(graph, encoder, real, *(_unsqueeze(graph, positions, 0) for _ in range(2)))
    shape = shape_of_rows(graph, encoder, tokens)
    x, names = add_layers(graph, encoder, x, shape, mask, [])
    x = graph.node("Reshape", x, shape)
    shown = graph.node("Where", _unsqueeze(graph, real, 2), x, graph.constant(torch.tensor(0.0)))
    total = graph.node("ReduceSum", shown, graph.constant([1]), keepdims=0)  # (B, D)
    count = graph.node("Cast", _unsqueeze(graph, lengths, 1), to=graph.onnx.TensorProto.FLOAT)
    # Small and decisive: in fp32 also where the rest is int8.
    classifier = graph.constant(encoder.length_head.weight.t())
    graph.node("MatMul", graph.node("Div", total, count), classifier, output="length_scores")
    outputs = {"length_scores": ["B", config.length_classes]}
    return graph.build(outputs | {name: ["B", heads, "S", size // heads] for name in names}, version=version)


def target_graph(encoder: Encoder, never_predicted: Tensor, mask_token: int, int8: bool, version: str = ""):
    """The target pass with the masked-LM head.

    Inputs: ``tokens`` (B, T), ``lengths`` (B), ``source_lengths`` (B), ``past_key0``, ``past_value0``, ...
    (B, H, S, d). Outputs: ``predictions`` (B, T), the tokens with every [MASK] replaced, and ``scores`` (B, T), the
    log-probability of what replaced it, else 0.

    Only the [MASK]s go through the head, and only its maxima leave it.
    """
    graph, config = Graph(int8), encoder.config
    tokens, lengths, source_lengths = (
        graph.input(name, np.int64, shape)
        for name, shape in (("tokens", ["B", "T"]), ("lengths", ["B"]), ("source_lengths", ["B"]))
    )
    past = past_inputs(graph, encoder, "S")
    order, source_positions = _count(graph, _size(graph, tokens, 1)), _count(graph, _size(graph, past[0][0], 2))
    source_sizes = _unsqueeze(graph, source_lengths, 1)
    positions = graph.node("Add", source_sizes, order)  # (B, T), all known within the limits of source and target
    source_real = graph.node("Less", source_positions, source_sizes)  # (B, S)
    real = graph.node("Less", order, _unsqueeze(graph, lengths, 1))  # (B, T)
    key_positions = None
    if encoder.relative_bias is not None:
        repeated = graph.node("Expand", source_positions, graph.node("Shape", source_real))
        key_positions = graph.node("Concat", repeated, positions, axis=1)  # (B, S + T)
    mask = _mask(graph, encoder, graph.node("Concat", source_real, real, axis=1), positions, key_positions)
    table = encoder.word_embeddings.weight
    blocks = -(-len(table) // _BLOCK)
    words = graph.constant(_padded(table, blocks * _BLOCK))  # one table where the head has it too
    x = _embed(graph, encoder, words, tokens, positions, config.target_type)
    x, _ = add_layers(graph, encoder, x, shape_of_rows(graph, encoder, tokens), mask, past)
    flat = graph.node("Reshape", tokens, graph.constant([-1]))
    masked = graph.node("And", graph.node("Equal", tokens, graph.constant(torch.tensor(mask_token))), real)
    masked = graph.node("NonZero", graph.node("Reshape", masked, graph.constant([-1])))  # (1, N)
    masked = graph.node("Squeeze", masked, graph.constant([0]))  # (N)
    graph.middles = None  # from here on there are other rows
    hidden = head_transform(graph, encoder, graph.node("Gather", x, masked))
    predicted, log_p = _likeliest(graph, _logits(graph, encoder, hidden, never_predicted, words, blocks), blocks)
    zeros = graph.node("ConstantOfShape", graph.node("Shape", flat))
    for name, empty, values in (("predictions", flat, predicted), ("scores", zeros, log_p)):
        filled = graph.node("ScatterElements", empty, masked, values, axis=0)
        graph.node("Reshape", filled, graph.node("Shape", tokens), output=name)
    return graph.build({name: ["B", "T"] for name in ("predictions", "scores")}, ("predictions",), version)


def _size(graph: Graph, x: str, axis: int) -> str:
    """A scalar."""
    size = graph.node("Shape", x, start=axis, end=axis + 1)
    return graph.node("Squeeze", size, graph.constant([0]))


def _count(graph: Graph, size: str) -> str:
    """0, 1, ... *size* - 1."""
    return graph.node("Range", *(graph.constant(torch.tensor(0)), size, graph.constant(torch.tensor(1))))


def _unsqueeze(graph: Graph, x: str, *axes: int) -> str:
    return graph.node("Unsqueeze", x, graph.constant(list(axes)))


def _padded(weight: Tensor, size: int, value: float = 0.0) -> Tensor:
    """With more rows. *Shape:* (V, ...) -> (size, ...)."""
    weight = weight.detach().float().cpu()
    return torch.cat([weight, weight.new_full((size - len(weight), *weight.shape[1:]), value)])


def _embed(graph: Graph, encoder: Encoder, words: str, tokens: str, positions: str, token_type: int) -> str:
    """*Shapes:* tokens (B, L), positions (L) or (B, L) -> (B, L, D)."""
    table = encoder.position_embeddings.weight + encoder.type_embeddings.weight[token_type]
    x = graph.node("Gather", words, tokens)
    x = graph.node("Add", x, graph.node("Gather", graph.constant(table), positions))
    return graph.norm(x, encoder.embedding_norm)


def _mask(graph: Graph, encoder: Encoder, real: str, queries: str, keys: str | None) -> str:
    """What to add to attention scores. *Shapes:* real (B, K), positions (B or 1, L) and (B or 1, K) -> (.., .., L, K).

    UniLM's relative position bias is a table by distance.
    """
    config, hidden = encoder.config, graph.constant(torch.tensor(float("-inf")))
    visible = _unsqueeze(graph, real, 1, 2)  # (B, 1, 1, K)
    if encoder.relative_bias is None or keys is None:
        mask = graph.node("Where", visible, graph.constant(torch.tensor(0.0)), hidden)
        one = graph.constant([1])
        shape = one, one, graph.node("Shape", queries, start=1, end=2), one
        return graph.node("Expand", mask, graph.node("Concat", *shape, axis=0))
    farthest = config.max_positions - 1
    buckets = relative_position_bucket(torch.arange(-farthest, farthest + 1), config.rel_pos_bins, config.max_rel_pos)
    relative = graph.node("Sub", _unsqueeze(graph, keys, 1), _unsqueeze(graph, queries, 2))
    row = graph.node("Add", relative, graph.constant(torch.tensor(farthest)))  # (B or 1, L, K)
    bias = graph.node("Gather", graph.constant(encoder.relative_bias.weight.t()[buckets]), row)
    return graph.node("Where", visible, graph.node("Transpose", bias, perm=[0, 3, 1, 2]), hidden)


def _logits(graph: Graph, encoder: Encoder, hidden: str, never_predicted: Tensor, words: str, blocks: int) -> str:
    """Scores of all tokens, -inf for those that are none. *Shape:* (N, D) -> (N, blocks * _BLOCK)."""
    head = encoder.head
    allowed = head.bias.detach().float().index_fill(0, never_predicted, float("-inf"))
    bias = graph.constant(_padded(allowed, blocks * _BLOCK, float("-inf")))
    if head.weight is None and not graph.int8:
        return graph.node("Gemm", hidden, words, bias, transB=1)
    weight = encoder.word_embeddings.weight if head.weight is None else head.weight
    return graph.node("Add", graph.linear(hidden, _padded(weight, blocks * _BLOCK)), bias)


def _likeliest(graph: Graph, logits: str, blocks: int) -> tuple[str, str]:
    """Tokens and log-probabilities; ONNX Runtime finds maxima of blocks faster than the place of one in a row.

    *Shape:* (N, blocks * _BLOCK) -> (N), (N).
    """
    log_p = graph.node("LogSoftmax", logits, axis=-1)
    log_p = graph.node("Reshape", log_p, graph.constant([0, blocks, _BLOCK]))
    largest = graph.node("ReduceMax", log_p, graph.constant([2]), keepdims=0)  # (N, blocks)
    block = graph.node("ArgMax", largest, axis=1, keepdims=1)  # (N, 1)
    inside = graph.node("ArgMax", graph.node("GatherND", log_p, block, batch_dims=1), axis=1, keepdims=0)  # (N)
    first = graph.node("Mul", block, graph.constant(torch.tensor(_BLOCK)))
    token = graph.node("Add", graph.node("Squeeze", first, graph.constant([1])), inside)
    return token, graph.node("ReduceMax", largest, graph.constant([1]), keepdims=0)
