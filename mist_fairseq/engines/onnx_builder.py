"""An ONNX graph that is put together node by node, so that there is nothing in it but what is computed.

Dimensions: N rows, I inputs and O outputs of a product, V rows of a table, D values in each.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from safetensors.numpy import save
from torch import Tensor, nn

from mist_fairseq.engines.weights import rounded
from mist_fairseq.extras import install_line

CONTRIBUTED = "com.microsoft"  # ONNX Runtime's operators


class Graph:
    """A graph in the making. Methods return names of values.

    Weights go to a file of their own, under the encoder's names. With *int8* matrices are rounded to 8-bit integers, a
    scale for each row of the matrix (``NAME.scale``): an output of a product, a token of the word embeddings.

    Args:
        int8: multiply 8-bit integers, activations with a scale for each row, rounded as they come; else fp32.

    Raises:
        ValueError: the package onnx is not installed.
    """

    def __init__(self, int8: bool):
        try:
            import onnx
        except ImportError as error:
            raise ValueError(f"onnx is not installed: {install_line('onnxruntime')}") from error
        self.onnx: Any = onnx
        self.int8 = int8
        self.weights: dict[str, np.ndarray] = {}
        self._nodes: list[Any] = []
        self._results = 0
        self._constants: list[Any] = []
        self._inputs: list[Any] = []
        self._middles: tuple[str, str] | None = None

    # -- values ---------------------------------------------------------------------------------------------

    def input(self, name: str, dtype: type, shape: Sequence[int | str]) -> str:
        """Add an input; a dimension that varies has a name."""
        self._inputs.append(self._describe(name, dtype, shape))
        return name

    def switch(self, name: str, *shape: int | str) -> str:
        """Add an input that need not be given, of truth values; by default it is false, or of a *shape* empty."""
        self._constants.append(self.onnx.numpy_helper.from_array(np.zeros([0] * len(shape), bool), name))
        return self.input(name, np.bool_, shape)

    def constant(self, value: Any) -> str:
        """Add a constant of the graph itself; numbers are of int64 or fp32."""
        value = np.asarray(value)
        value = value.astype(np.float32) if value.dtype == np.float64 else value
        name = f"constant{len(self._constants)}"
        self._constants.append(self.onnx.numpy_helper.from_array(value, name))
        return name

    def weight(self, name: str, value: Tensor) -> str:
        """Add a weight in fp32."""
        if name not in self.weights:
            self.weights[name] = value.detach().float().cpu().contiguous().numpy()
        return name

    def node(self, operator: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """Add an operation with one result."""
        self._results += 1
        return self.nodes_of(operator, [output or f"result{self._results}"], *inputs, **attributes)[0]

    def nodes_of(self, operator: str, outputs: list[str], *inputs: str, **attributes: Any) -> list[str]:
        """Add an operation with several results."""
        self._nodes.append(self.onnx.helper.make_node(operator, list(inputs), outputs, **attributes))
        return outputs

    def choose(
        self,
        condition: str,
        one: Callable[[], Sequence[str]],
        other: Callable[[], Sequence[str]],
        outputs: Sequence[str],
    ) -> Sequence[str]:
        """The results of *one* part of the graph or the *other*, the first int64, the others fp32.

        Only that part is computed. No part may have products in int8: in a part ONNX Runtime takes kernels for them
        whose sums saturate on processors without VNNI.
        """
        parts, nodes = [], self._nodes
        for made in (one, other):
            self._nodes = []
            kinds = [np.int64] + [np.float32] * (len(outputs) - 1)
            described = [self._describe(name, kind, None) for name, kind in zip(made(), kinds, strict=True)]
            parts.append(self.onnx.helper.make_graph(self._nodes, made.__name__, [], described))
        self._nodes = nodes
        return self.nodes_of("If", list(outputs), condition, then_branch=parts[0], else_branch=parts[1])

    # -- shapes ---------------------------------------------------------------------------------------------

    def size(self, x: str, axis: int) -> str:
        """One dimension of x, a scalar."""
        return self.node("Squeeze", self.node("Shape", x, start=axis, end=axis + 1), self.constant([0]))

    def count(self, size: str) -> str:
        """0, 1, ... *size* - 1."""
        return self.node("Range", self.constant(0), size, self.constant(1))

    def unsqueeze(self, x: str, *axes: int) -> str:
        """X with more dimensions, of size 1."""
        return self.node("Unsqueeze", x, self.constant(list(axes)))

    def reshape(self, x: str, *shape: int) -> str:
        """X in another shape; 0 keeps a dimension."""
        return self.node("Reshape", x, self.constant(list(shape)))

    # -- layers ---------------------------------------------------------------------------------------------

    def lookup(self, table: str, value: Tensor, index: str) -> str:
        """Rows of a table that a product may use, too. *Shapes:* value (V, D), index (N) -> (N, D)."""
        if not self.int8:
            return self.node("Gather", self.weight(table, value), index)
        integers, scale = self._rounded(table, value)
        rows = self.node("Gather", integers, index), self.node("Gather", scale, index)
        return self.node("DequantizeLinear", *rows, axis=0)

    def linear(self, x: str, name: str, weight: Tensor, reused: bool = False) -> str:
        """A product without a bias, which the next operation adds. *Shapes:* x (N, I), weight (O, I) -> (N, O).

        Args:
            x: rows.
            name: of the weight.
            weight: the matrix.
            reused: whether other products have the same weight. ONNX Runtime makes signed integers unsigned where the
                processor asks for it, and fails the second time; so they are unsigned from the start.
        """
        if not self.int8:
            return self.node("Gemm", x, self.weight(name, weight), transB=1)
        integers, scale = self._rounded(name, weight, reused)
        zero = np.full(len(weight), 128, np.uint8) if reused else np.zeros(len(weight), np.int8)
        # ONNX Runtime's own dynamic quantization has one scale for all of x: a row's result would depend on the others.
        largest = self.node("ReduceMax", self.node("Abs", x), self.constant([1]), keepdims=1)
        row_scale = self.node("Mul", largest, self.constant(1 / 127))  # (N, 1)
        flat_scale = self.reshape(row_scale, -1)
        middle, middles = self._zero_points(flat_scale)
        product = self.node(
            "QGemm",
            *(self.node("QuantizeLinear", x, flat_scale, middles, axis=0), self.constant(1.0), middle),
            *(integers, scale, self.constant(zero)),
            transB=1,
            domain=CONTRIBUTED,
        )
        return self.node("Mul", product, row_scale)

    def rows_change(self) -> None:
        """From here on products are of another number of rows."""
        self._middles = None

    def bias(self, name: str, linear: nn.Linear) -> str:
        """The bias of a product, "" if it has none."""
        return "" if linear.bias is None else self.weight(f"{name}.bias", linear.bias)

    def sum(self, *parts: str) -> str:
        """The sum of all parts that are there."""
        first, *others = filter(None, parts)
        return self.node("Sum", first, *others) if others else first

    def activate(self, x: str, activation: str, bias: str = "") -> str:
        """An *activation* of ``ACTIVATIONS`` of x + bias. *Shapes:* x (N, O), bias (O)."""
        if bias and activation == "gelu":
            return self.node("BiasGelu", x, bias, domain=CONTRIBUTED)
        x = self.sum(x, bias)
        if activation == "silu":
            return self.node("Mul", x, self.node("Sigmoid", x))
        if activation in ("gelu", "relu"):
            domain = CONTRIBUTED if activation == "gelu" else ""
            return self.node(activation.capitalize(), x, domain=domain)
        return self.node("FastGelu", x, domain=CONTRIBUTED)  # by the hyperbolic tangent

    def norm(self, x: str, name: str, norm: nn.LayerNorm, *added: str) -> str:
        """LayerNorm of x, or of x + *added*: another x and maybe a bias. *Shapes:* (N, D), (N, D), (D) -> (N, D)."""
        weights = [self.weight(f"{name}.weight", norm.weight)]
        if norm.bias is not None:
            weights.append(self.weight(f"{name}.bias", norm.bias))
        if not added:
            return self.node("LayerNormalization", x, *weights, axis=-1, epsilon=norm.eps)
        other, *bias = added
        given = x, other, weights[0], weights[1] if weights[1:] else "", *bias
        return self.node("SkipLayerNormalization", *given, domain=CONTRIBUTED, epsilon=norm.eps)

    def _rounded(self, name: str, value: Tensor, unsigned: bool = False) -> tuple[str, str]:
        """A matrix and its scales, under its own name; *unsigned* is 128 more. *Shapes:* (O, I) -> the same, (O)."""
        scale = f"{name}.scale"
        if name not in self.weights:
            values, self.weights[scale] = rounded(value.detach().float().cpu().numpy())
            self.weights[name] = (values.astype(np.int16) + 128).astype(np.uint8) if unsigned else values
        return name, scale

    def _zero_points(self, rows: str) -> tuple[str, str]:
        """What stands for 0 among unsigned integers, the fastest on x86: a scalar, and one for each row."""
        if self._middles is None:
            middle = self.constant(np.uint8(128))
            self._middles = middle, self.node("Expand", middle, self.node("Shape", rows))
        return self._middles

    # -- the whole ------------------------------------------------------------------------------------------

    def build(
        self,
        outputs: Mapping[str, Sequence[int | str]],
        integers: Sequence[str],
        file: str,
        about: Mapping[str, str] | None = None,
    ) -> tuple[Any, bytes]:
        """The model, and the content of its weights' file, in safetensors' format.

        Args:
            outputs: their shapes; all are fp32 but *integers*.
            integers: outputs of int64.
            file: the name of the weights' file, which is to stand beside the model's.
            about: what both are to say of themselves.
        """
        helper, proto = self.onnx.helper, self.onnx.TensorProto
        content = save(self.weights, {"about": json.dumps(about, sort_keys=True)} if about else None)
        begin = 8 + int.from_bytes(content[:8], "little")
        places = json.loads(content[8:begin])
        tensors = []
        for name, value in self.weights.items():
            first, last = places[name]["data_offsets"]
            kind = helper.np_dtype_to_tensor_dtype(value.dtype)
            tensor = proto(name=name, data_type=kind, dims=value.shape, data_location=proto.EXTERNAL)
            for key, entry in (("location", file), ("offset", begin + first), ("length", last - first)):
                tensor.external_data.add(key=key, value=str(entry))
            tensors.append(tensor)
        described = [
            self._describe(name, np.int64 if name in integers else np.float32, shape) for name, shape in outputs.items()
        ]
        graph = helper.make_graph(self._nodes, "mist", self._inputs, described, [*self._constants, *tensors])
        opsets = [helper.make_opsetid("", 18), helper.make_opsetid(CONTRIBUTED, 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=9, producer_name="mist_fairseq")
        for key, text in (about or {}).items():
            model.metadata_props.add(key=key, value=text)
        return model, content

    def _describe(self, name: str, dtype: type, shape: Sequence[int | str] | None) -> Any:
        helper = self.onnx.helper
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)
