"""The encoder as ONNX graphs: the layers, for source rows, target rows or both, and the masked-LM head.

Masks and positions come from outside; ``export.onnx_graphs`` has the two passes that stand alone. Written node by node
rather than traced, so that there is nothing in them but what is computed. Dimensions as in ``models.encoder``; L rows a
sentence see themselves and P earlier ones, whose keys and values are given.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from mist_fairseq.mist.encoder import Encoder

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
        self.nodes: list = []
        self.weights: list = []
        self.inputs: list = []
        self.middles: str | None = None  # the zero point of each row of activations, of int8

    def input(self, name: str, dtype: type, shape: Sequence[int | str]) -> str:
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

    def norm(self, x: str, norm: nn.LayerNorm, skipped: tuple[str, Tensor] | None = None) -> str:
        """LayerNorm of x, or of x + residual + bias where these are *skipped*."""
        weights = self.constant(norm.weight), self.constant(norm.bias)
        if skipped is None:
            return self.node("LayerNormalization", x, *weights, axis=-1, epsilon=norm.eps)
        residual, bias = skipped
        given = x, residual, *weights, self.constant(bias)
        return self.node("SkipLayerNormalization", *given, domain=CONTRIBUTED, epsilon=norm.eps)

    def build(self, outputs: Mapping[str, Sequence[int | str]], integers: tuple[str, ...] = (), version: str = ""):
        """The model, with its outputs' shapes; all are fp32 but *integers*. *version* is its producer's."""
        helper = self.onnx.helper
        described = [
            self._describe(name, np.int64 if name in integers else np.float32, shape) for name, shape in outputs.items()
        ]
        graph = helper.make_graph(self.nodes, "mist", self.inputs, described, self.weights)
        opsets = [helper.make_opsetid("", 18), helper.make_opsetid(CONTRIBUTED, 1)]
        producer = {"producer_name": "mist_fairseq", "producer_version": version}
        return helper.make_model(graph, opset_imports=opsets, ir_version=9, **producer)

    def _describe(self, name: str, dtype: type, shape: Sequence[int | str]):
        helper = self.onnx.helper
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)


def add_layers(graph: Graph, encoder: Encoder, x: str, shape: str, mask: str, past: list) -> tuple:
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
        x = graph.norm(attended, layer.attention_norm, (x, layer.attention_output.bias))
        inner = graph.gelu(graph.linear(x, layer.ffn_in.weight), layer.ffn_in.bias)
        x = graph.norm(graph.linear(inner, layer.ffn_out.weight), layer.ffn_norm, (x, layer.ffn_out.bias))
        names += present
    return x, names


def past_inputs(graph: Graph, encoder: Encoder, size: str) -> list[list[str]]:
    """Inputs ``past_key0``, ``past_value0``, ... (B, H, *size*, d) of each layer."""
    heads = encoder.config.heads
    shape: list[int | str] = ["B", heads, size, encoder.config.hidden_size // heads]
    return [
        [graph.input(f"past_{part}{i}", np.float32, shape) for part in ("key", "value")]
        for i in range(encoder.config.layers)
    ]


def shape_of_rows(graph: Graph, encoder: Encoder, tokens: str) -> str:
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
    shape = shape_of_rows(graph, encoder, tokens)
    x, names = add_layers(graph, encoder, x, shape, mask, past_inputs(graph, encoder, "P"))
    graph.node("Reshape", x, shape, output="hidden")
    return graph.build({"hidden": ["B", "L", size]} | {name: ["B", heads, "K", size // heads] for name in names})


def head_transform(graph: Graph, encoder: Encoder, hidden: str) -> str:
    """The head's own layer. *Shape:* (N, D) -> (N, D)."""
    head = encoder.head
    return graph.norm(graph.gelu(graph.linear(hidden, head.transform.weight), head.transform.bias), head.norm)


def head_graph(encoder: Encoder, never_predicted: Tensor, int8: bool):
    """Masked-LM head: ``hidden`` (N, D) -> ``scores`` (N, V), log-probabilities over all tokens but some."""
    graph, head = Graph(int8), encoder.head
    x = head_transform(graph, encoder, graph.input("hidden", np.float32, ["N", encoder.config.hidden_size]))
    weight = encoder.word_embeddings.weight if head.weight is None else head.weight
    bias = head.bias.detach().float().index_fill(0, never_predicted, float("-inf"))
    logits = graph.node("Add", graph.linear(x, weight), graph.constant(bias))
    graph.node("LogSoftmax", logits, axis=-1, output="scores")
    return graph.build({"scores": ["N", len(weight)]})
