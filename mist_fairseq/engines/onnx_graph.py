"""The encoder as ONNX graphs: the layers, for source rows, target rows or both, and the masked-LM head.

``layers_graph`` and ``head_graph`` are what the engine in ``onnx_runtime`` runs, with masks and positions from PyTorch;
``source_graph`` and ``target_graph`` are the two passes alone, which ``export.onnx_folder`` writes to files.
Written node by node rather than traced, so that there is nothing in them but what is computed. Dimensions as in
``models.encoder``; L rows a sentence see themselves and P earlier ones, whose keys and values are given.
"""

import numpy as np
import torch
from torch import Tensor, nn

from mist_fairseq.models.encoder import Encoder, relative_position_bucket

CONTRIBUTED = "com.microsoft"  # ONNX Runtime's operators


class Graph:
    """An ONNX graph that is being put together. Methods return names of values.

    Args:
        int8: matrix products of 8-bit integers: weights with a scale for each output channel, rounded once, and
            activations with a scale for each row, rounded as they come; else fp32.

    Raises:
        ValueError: the package onnx is not installed.
    """

    def __init__(self, int8: bool):
        try:
            import onnx
        except ImportError as error:
            raise ValueError("onnx is not installed: pip install -e .[onnxruntime]") from error
        self.onnx, self.int8 = onnx, int8
        self.nodes, self.weights, self.inputs = [], [], []
        self.middles = None  # the zero point of each row of activations, of int8

    def input(self, name: str, dtype: type, shape: list[int | str]) -> str:
        """An input; a dimension that varies has a name."""
        self.inputs.append(self._describe(name, dtype, shape))
        return name

    def constant(self, value: Tensor | np.ndarray | list) -> str:
        """A weight."""
        if isinstance(value, Tensor):
            value = value.detach().cpu()
            value = (value.float() if value.is_floating_point() else value).numpy()
        name = f"weight{len(self.weights)}"
        self.weights.append(self.onnx.numpy_helper.from_array(np.asarray(value, order="C"), name))
        return name

    def node(self, operator: str, *inputs: str, output: str | None = None, **attributes) -> str:
        """An operation with one result."""
        return self.nodes_of(operator, [output or f"result{len(self.nodes)}"], *inputs, **attributes)[0]

    def nodes_of(self, operator: str, outputs: list[str], *inputs: str, **attributes) -> list[str]:
        """An operation with several results."""
        self.nodes.append(self.onnx.helper.make_node(operator, list(inputs), outputs, **attributes))
        return outputs

    def linear(self, x: str, weight: Tensor) -> str:
        """A product without a bias, which the next operation adds. *Shapes:* x (N, I), weight (O, I) -> (N, O)."""
        if not self.int8:
            return self.node("MatMul", x, self.constant(weight.t()))
        weight = weight.detach().float()
        scale = weight.abs().amax(1).clamp(min=1e-12) / 127  # (O)
        rounded = (weight / scale[:, None]).round().to(torch.int8)
        # ONNX Runtime's own dynamic quantization has one scale for all of x: a row's result would depend on the others.
        largest = self.node("ReduceMax", self.node("Abs", x), self.constant([1]), keepdims=1)
        row_scale = self.node("Mul", largest, self.constant(torch.tensor(1 / 127)))  # (N, 1)
        flat_scale = self.node("Reshape", row_scale, self.constant([-1]))
        middle = self.constant(torch.tensor(128, dtype=torch.uint8))  # of unsigned integers, the fastest on x86
        if self.middles is None:
            self.middles = self.node("Expand", middle, self.node("Shape", flat_scale))  # (N)
        product = self.node(
            "MatMulIntegerToFloat",
            self.node("QuantizeLinear", x, flat_scale, self.middles, axis=0),
            self.constant(rounded.t()),
            self.constant(torch.tensor(1.0)),
            self.constant(scale),
            middle,
            self.constant(torch.zeros(len(scale), dtype=torch.int8)),
            domain=CONTRIBUTED,
        )
        return self.node("Mul", product, row_scale)

    def gelu(self, x: str, bias: Tensor) -> str:
        """GELU, by the error function, of x + bias. *Shapes:* x (N, O), bias (O)."""
        return self.node("BiasGelu", x, self.constant(bias), domain=CONTRIBUTED)

    def norm(self, x: str, norm: nn.LayerNorm, residual: str | None = None, bias: Tensor | None = None) -> str:
        """LayerNorm of x, or of x + residual + bias."""
        weights = self.constant(norm.weight), self.constant(norm.bias)
        if residual is None:
            return self.node("LayerNormalization", x, *weights, axis=-1, epsilon=norm.eps)
        given = x, residual, *weights, self.constant(bias)
        return self.node("SkipLayerNormalization", *given, domain=CONTRIBUTED, epsilon=norm.eps)

    def build(self, outputs: dict[str, list[int | str]], integers: tuple[str, ...] = (), version: str = ""):
        """The model, with its outputs' shapes; all are fp32 but *integers*. *version* is its producer's."""
        helper = self.onnx.helper
        described = [
            self._describe(name, np.int64 if name in integers else np.float32, shape) for name, shape in outputs.items()
        ]
        graph = helper.make_graph(self.nodes, "mist", self.inputs, described, self.weights)
        opsets = [helper.make_opsetid("", 18), helper.make_opsetid(CONTRIBUTED, 1)]
        producer = {"producer_name": "mist_fairseq", "producer_version": version}
        return helper.make_model(graph, opset_imports=opsets, ir_version=9, **producer)

    def _describe(self, name: str, dtype: type, shape: list[int | str]):
        helper = self.onnx.helper
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)


def _layers(graph: Graph, encoder: Encoder, x: str, shape: str, mask: str, past: list) -> tuple:
    """The layers.

    Args:
        graph: to add them to.
        encoder: whose they are.
        x: embeddings, *Shape:* (B, L, D).
        shape: B, L, D.
        mask: added to the attention scores, *Shape:* (B or 1, H or 1, L, P + L).
        past: of each layer the names of earlier keys and values, (B, H, P, d); empty where there are none.

    Returns:
        The last layer's rows, (B * L, D), and ``key0``, ``value0``, ..., the names of all keys and values,
        (B, H, P + L, d).
    """
    config = encoder.config
    rows = graph.constant([-1, config.hidden_size])
    x = graph.node("Reshape", x, rows)  # (B * L, D)
    names = []
    for i, layer in enumerate(encoder.layers):
        qkv = graph.nodes_of(
            "Split", [f"{part}{i}" for part in "qkv"], graph.linear(x, layer.qkv.weight), axis=1, num_outputs=3
        )
        query, key, value = (graph.node("Reshape", part, shape) for part in qkv)
        # Named even where nobody reads them: without these outputs ONNX Runtime ignores the past.
        attended, *present = graph.nodes_of(
            "MultiHeadAttention",
            [f"attended{i}", f"key{i}", f"value{i}"],
            *(query, key, value, graph.constant(layer.qkv.bias), "", mask, *(past[i] if past else ())),
            num_heads=config.heads,
            domain=CONTRIBUTED,
        )
        attended = graph.linear(graph.node("Reshape", attended, rows), layer.attention_output.weight)
        x = graph.norm(attended, layer.attention_norm, x, layer.attention_output.bias)
        inner = graph.gelu(graph.linear(x, layer.ffn_in.weight), layer.ffn_in.bias)
        x = graph.norm(graph.linear(inner, layer.ffn_out.weight), layer.ffn_norm, x, layer.ffn_out.bias)
        names += present
    return x, names


def _past(graph: Graph, encoder: Encoder, size: str) -> list[list[str]]:
    """Inputs ``past_key0``, ``past_value0``, ... (B, H, *size*, d) of each layer."""
    heads = encoder.config.heads
    shape = ["B", heads, size, encoder.config.hidden_size // heads]
    return [
        [graph.input(f"past_{part}{i}", np.float32, shape) for part in ("key", "value")]
        for i in range(encoder.config.layers)
    ]


def _shape_of_rows(graph: Graph, encoder: Encoder, tokens: str) -> str:
    """B, L, D of tokens (B, L)."""
    return graph.node("Concat", graph.node("Shape", tokens), graph.constant([encoder.config.hidden_size]), axis=0)


def layers_graph(encoder: Encoder, int8: bool):
    """Embeddings and layers.

    Inputs: ``tokens``, ``positions``, ``types`` (B, L), the last two also (1, L); ``mask``, added to the attention
    scores, (B or 1, H or 1, L, P + L); ``past_key0``, ``past_value0``, ... (B, H, P, d), of no rows where nothing is
    seen but the rows themselves. Outputs: ``hidden`` (B, L, D) and all keys and values, ``key0``, ``value0``, ...
    (B, H, P + L, d).
    """
    graph, config = Graph(int8), encoder.config
    size, heads = config.hidden_size, config.heads
    tokens = graph.input("tokens", np.int64, ["B", "L"])
    positions = graph.input("positions", np.int64, ["positions_B", "L"])
    types = graph.input("types", np.int64, ["types_B", "L"])
    mask = graph.input("mask", np.float32, ["mask_B", "mask_H", "L", "K"])
    x = graph.node("Gather", graph.constant(encoder.word_embeddings.weight), tokens)
    for table, index in ((encoder.position_embeddings, positions), (encoder.type_embeddings, types)):
        x = graph.node("Add", x, graph.node("Gather", graph.constant(table.weight), index))
    x = graph.norm(x, encoder.embedding_norm)
    shape = _shape_of_rows(graph, encoder, tokens)
    x, names = _layers(graph, encoder, x, shape, mask, _past(graph, encoder, "P"))
    graph.node("Reshape", x, shape, output="hidden")
    return graph.build({"hidden": ["B", "L", size]} | {name: ["B", heads, "K", size // heads] for name in names})


def _transform(graph: Graph, encoder: Encoder, hidden: str) -> str:
    """The head's own layer. *Shape:* (N, D) -> (N, D)."""
    head = encoder.head
    return graph.norm(graph.gelu(graph.linear(hidden, head.transform.weight), head.transform.bias), head.norm)


def head_graph(encoder: Encoder, never_predicted: Tensor, int8: bool):
    """Masked-LM head: ``hidden`` (N, D) -> ``scores`` (N, V), log-probabilities over all tokens but some."""
    graph, head = Graph(int8), encoder.head
    x = _transform(graph, encoder, graph.input("hidden", np.float32, ["N", encoder.config.hidden_size]))
    weight = encoder.word_embeddings.weight if head.weight is None else head.weight
    bias = head.bias.detach().float().index_fill(0, never_predicted, float("-inf"))
    logits = graph.node("Add", graph.linear(x, weight), graph.constant(bias))
    graph.node("LogSoftmax", logits, axis=-1, output="scores")
    return graph.build({"scores": ["N", len(weight)]})


# -- passes that stand alone, for export ------------------------------------------------------------------------


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
    shape = _shape_of_rows(graph, encoder, tokens)
    x, names = _layers(graph, encoder, x, shape, mask, [])
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
    past = _past(graph, encoder, "S")
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
    words = encoder.word_embeddings.weight
    blocks = -(-len(words) // _BLOCK)
    words = graph.constant(_padded(words, blocks * _BLOCK))  # one table where the head has it too
    x = _embed(graph, encoder, words, tokens, positions, config.target_type)
    x, _ = _layers(graph, encoder, x, _shape_of_rows(graph, encoder, tokens), mask, past)
    flat = graph.node("Reshape", tokens, graph.constant([-1]))
    masked = graph.node("And", graph.node("Equal", tokens, graph.constant(torch.tensor(mask_token))), real)
    masked = graph.node("NonZero", graph.node("Reshape", masked, graph.constant([-1])))  # (1, N)
    masked = graph.node("Squeeze", masked, graph.constant([0]))  # (N)
    graph.middles = None  # from here on there are other rows
    hidden = _transform(graph, encoder, graph.node("Gather", x, masked))
    predicted, log_p = _likeliest(graph, _logits(graph, encoder, hidden, never_predicted, words, blocks), blocks)
    zeros = graph.node("ConstantOfShape", graph.node("Shape", flat))
    for name, empty, values in (("predictions", flat, predicted), ("scores", zeros, log_p)):
        filled = graph.node("ScatterElements", empty, masked, values, axis=0)
        graph.node("Reshape", filled, graph.node("Shape", tokens), output=name)
    return graph.build({name: ["B", "T"] for name in ("predictions", "scores")}, ("predictions",), version)


_BLOCK = 128  # tokens whose largest score is found at once


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
    if encoder.relative_bias is None:
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
    bias = head.bias.detach().float().index_fill(0, never_predicted, float("-inf"))
    bias = graph.constant(_padded(bias, blocks * _BLOCK, float("-inf")))
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
