"""The two passes in int8 by ``native.cpp``, for x86 processors with AVX-512 VNNI. Weights of a file need no torch.

It computes what the int8 ONNX graph does (``engines.onnx_encoder``), with a scale for each row of a matrix and each row
of activations, in few large steps. Sums are added in another order, exp and erf are computed to seven digits, and
attention is in bf16 where the processor multiplies that. Rows are packed, so padding costs nothing, and a batch gives
to the last bit what its sentences give alone.

``pip install`` compiles it where there is a C++ compiler; ``why_not`` tells why it cannot be used.

Dimensions as in ``mist.encoder``.
"""

import ctypes
import functools
import os
import sysconfig
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mist_fairseq.engines import register
from mist_fairseq.engines.weights import TOKEN_BLOCK, int8_weights
from mist_fairseq.mist.config import EncoderConfig, GraphSizes, SpecialTokens

_NEEDED = {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "fma"}
_LANES = 16
_ACTIVATIONS = {"gelu": 2, "gelu_new": 3, "gelu_pytorch_tanh": 3, "relu": 4, "silu": 5}  # native.cpp's enum After

# In native.cpp's order, after the word embeddings and before the copy head.
_TABLES = "position_embeddings", "type_embeddings", "length_head", "relative_bias"

_Pointer, _Integer = ctypes.c_void_p, ctypes.c_int64
_FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "mist_model": (_Pointer, [_Pointer]),
    "mist_free": (None, [_Pointer]),
    "mist_matrix": (ctypes.c_bool, [_Pointer, ctypes.c_char_p, _Integer, *[_Pointer] * 3, _Integer, _Integer]),
    "mist_norm": (None, [_Pointer, ctypes.c_char_p, _Integer, _Pointer, _Pointer]),
    "mist_tables": (None, [_Pointer] * 9),
    "mist_take": (_Pointer, [_Pointer, _Integer]),
    "mist_give": (None, [_Pointer, _Pointer]),
    "mist_encode": (ctypes.c_bool, [_Pointer, _Integer, *[_Pointer] * 3, _Integer, *[_Pointer] * 3]),
    "mist_fill": (
        ctypes.c_bool,
        [_Pointer, _Integer, *[_Pointer] * 3, _Integer, _Pointer, ctypes.c_bool, _Pointer, _Pointer],
    ),
}

_SIZES = """
hidden_size embedding_size ffn_size heads layers distinct_layers length_classes farthest activation mask threads half
""".split()
_Sizes = np.dtype([*((name, np.int64) for name in _SIZES), ("eps", np.float64)])
_Sentence = np.dtype([*((name, np.uint64) for name in ("state", "past", "hidden", "tokens")), ("count", np.int64)])


@functools.cache
def _library() -> Any:
    """The compiled library; OSError if there is none, or an old one."""
    source = Path(__file__).with_suffix(".cpp").read_bytes()
    path = Path(__file__).with_name("lib") / f"native{sysconfig.get_config_var('EXT_SUFFIX')}"
    if not path.is_file():
        raise OSError("it was not compiled")
    library = ctypes.CDLL(str(path))
    library.mist_source.restype = _Integer
    if library.mist_source() != zlib.crc32(source):
        raise OSError("it was compiled from another native.cpp")
    for name, (result, arguments) in _FUNCTIONS.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


@functools.cache
def _processor() -> frozenset[str]:
    """What the processor can do, by Linux's names."""
    try:
        flags = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")]
    except OSError:
        flags = []
    return frozenset(flags[0].split()) if flags else frozenset()


def why_not(config: EncoderConfig) -> str:
    """Why there can be no native engine of such an encoder here, empty if there can."""
    if lacking := _NEEDED - _processor():
        return f"the processor lacks {', '.join(sorted(lacking))}"
    try:
        _library()
    except OSError as error:
        return f"{error}; have a C++ compiler (g++) and install mist_fairseq again"
    if config.head != "length":
        return f"the encoder has --head {config.head}"
    for name in ("pre_norm", "gated", "rotary_base", "local_window"):
        if getattr(config, name):
            return f"the encoder has {name}"
    sizes = config.hidden_size, config.hidden_size // config.heads, config.ffn_size, config.embedding_size
    if any(size % _LANES for size in sizes):
        return f"sizes of the encoder and its heads are no multiples of {_LANES}"
    return ""


class _Owner:
    """What has memory of the library and gives it back."""

    def __reduce__(self) -> Any:
        raise TypeError(f"{type(self).__name__} cannot be copied: it has memory of a library")


class _Past(_Owner):
    """Memory for one sentence's keys and values, which goes back when nothing refers to it any more."""

    def __init__(self, engine: "NativeEngine", tokens: int):
        self.engine = engine
        self.address = engine.library.mist_take(engine.model, tokens)
        check_memory(self.address is not None)

    def __del__(self) -> None:
        if self.address is not None:
            self.engine.library.mist_give(self.engine.model, self.address)


class NativeState:
    """An encoded source.

    Args:
        length_scores: *Shape:* (B, classes).
        past: each sentence's keys and values.
        hidden: each sentence's last hidden states, *Shape:* (S, D).
        tokens: each sentence's, *Shape:* (S).
    """

    def __init__(
        self,
        length_scores: np.ndarray,
        past: list[_Past],
        hidden: list[np.ndarray],
        tokens: list[np.ndarray],
    ):
        self.length_scores, self.past, self.hidden, self.tokens = length_scores, past, hidden, tokens

    def select(self, rows: np.ndarray) -> "NativeState":
        """The state of the sentences *rows* (repeats allowed), *Shape:* (B')."""
        parts = ([part[row] for row in rows] for part in (self.past, self.hidden, self.tokens))
        return NativeState(self.length_scores[rows], *parts)


@register("native", ("int8",), encoder_only=True, device="cpu")
class NativeEngine(_Owner):
    """Runs the library, with as many threads as torch has.

    Args:
        encoder: on the CPU, whose weights to take; later changes of them go unnoticed.
        special: ids of the special tokens.
        precision: ``int8``.

    Raises:
        ValueError: it cannot be used here, or not for such an encoder.
    """

    graph: GraphSizes | None = None  # it runs no model with paths

    def __init__(self, encoder: Any, special: SpecialTokens, precision: str):
        import torch

        self._open(encoder.config, int8_weights(encoder, special), special, torch.get_num_threads())

    @classmethod
    def of_weights(
        cls, config: EncoderConfig, weights: Mapping[str, np.ndarray], special: SpecialTokens, threads: int
    ) -> "NativeEngine":
        """The engine of weights that are in int8 already, as ``int8_weights`` gives them."""
        engine = cls.__new__(cls)
        engine._open(config, weights, special, threads)
        return engine

    def _open(
        self, config: EncoderConfig, weights: Mapping[str, np.ndarray], special: SpecialTokens, threads: int
    ) -> None:
        if reason := why_not(config):
            raise ValueError(f"--accelerate native cannot be used: {reason}. Use --accelerate onnxruntime")
        weights = _checked(config, weights)
        self.config, self.special = config, special
        self.library, self._farthest = _library(), config.max_positions - 1
        sizes = np.zeros(1, _Sizes)
        sizes["distinct_layers"] = distinct = 1 if config.shared_layers else config.layers
        sizes["embedding_size"] = config.embedding_size or config.hidden_size
        sizes["activation"], sizes["eps"] = _ACTIVATIONS[config.activation], config.layer_norm_eps
        sizes["farthest"], sizes["mask"], sizes["threads"] = self._farthest, special.mask, max(1, threads)
        sizes["half"] = "avx512_bf16" in _processor()
        for name in ("hidden_size", "ffn_size", "heads", "layers", "length_classes"):
            sizes[name] = getattr(config, name)
        self._process, self.model = os.getpid(), self.library.mist_model(_address(sizes))
        check_memory(self.model is not None)

        def matrix(name: str, layer: int, at: str, bias: str = "") -> None:
            parts = weights[f"{at}.weight"], weights[f"{at}.weight.scale"], weights[bias or f"{at}.bias"]
            given = (self.model, name.encode(), layer, *map(_address, parts), *parts[0].shape)
            check_memory(self.library.mist_matrix(*given))

        def norm(name: str, layer: int, at: str) -> None:
            parts = weights[f"{at}.weight"], weights[f"{at}.bias"]
            self.library.mist_norm(self.model, name.encode(), layer, *map(_address, parts))

        for i in range(distinct):
            for name in ("qkv", "attention_output", "ffn_in", "ffn_out"):
                matrix(name, i, f"layers.{i}.{name}")
            for name in ("attention_norm", "ffn_norm"):
                norm(name, i, f"layers.{i}.{name}")
        for name in ("embedding_norm", "head.norm"):
            norm(name, -1, name)
        matrix("head.transform", -1, "head.transform")
        if config.embedding_size:
            matrix("embedding_projection", -1, "embedding_projection")
        matrix("head", -1, "head" if config.untie_head else "word_embeddings", "head.bias")
        tables = "word_embeddings.weight", "word_embeddings.weight.scale", *(f"{name}.weight" for name in _TABLES)
        self.library.mist_tables(
            self.model, *(_address(weights.get(name)) for name in (*tables, "copy_head.weight", "copy_head.bias"))
        )
        # The library has copies of its matrices, and only refers to all else.
        self._kept = [array for name, array in weights.items() if name in tables or array.dtype != np.int8]

    def __del__(self) -> None:
        model, self.model = getattr(self, "model", None), None  # states may outlive it
        if model is not None and self._process == os.getpid():  # a fork does not have its threads
            self.library.mist_free(model)

    def asarray(self, values: Any) -> np.ndarray:
        """An array of numpy."""
        return np.asarray(values)

    def encode(self, tokens: np.ndarray, lengths: np.ndarray) -> NativeState:
        """Encode sources; see ``generate.decoding.Engine``."""
        flat, positions, starts, _ = self._rows(tokens, lengths, np.zeros_like(lengths))
        sentences = np.zeros(len(tokens), _Sentence)
        past = [_Past(self, int(length)) for length in lengths]
        sentences["state"] = [part.address for part in past]
        hidden = np.empty((len(flat), self.config.hidden_size), np.float32)
        length_scores = np.empty((len(tokens), self.config.length_classes), np.float32)
        given, results = map(_address, (starts, flat, positions)), map(_address, (sentences, hidden, length_scores))
        check_memory(self.library.mist_encode(self.model, len(tokens), *given, self.config.source_type, *results))
        return NativeState(length_scores, past, *(np.split(part, starts[1:-1]) for part in (hidden, flat)))

    def fill(
        self,
        tokens: np.ndarray,
        lengths: np.ndarray,
        state: NativeState,
        second: bool = False,
        allowed: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Predict every [MASK]; see ``generate.decoding.Engine``."""
        counts = np.array([len(part) for part in state.tokens])
        flat, positions, starts, real = self._rows(tokens, lengths, counts)
        sentences = np.zeros(len(tokens), _Sentence)
        sentences["past"] = [part.address for part in state.past]
        for name, parts in (("hidden", state.hidden), ("tokens", state.tokens)):
            sentences[name] = [part.ctypes.data for part in parts]
        sentences["count"] = counts
        scores = np.empty(len(flat), np.float32)
        given = map(_address, (starts, flat, positions))
        if allowed is not None:
            allowed = np.pad(allowed, (0, -len(allowed) % TOKEN_BLOCK))
        done = self.library.mist_fill(
            *(self.model, len(tokens), *given, self.config.target_type, _address(sentences)),
            *(second, _address(allowed), _address(scores)),
        )
        check_memory(done)
        filled, padded_scores = tokens.copy(), np.zeros(tokens.shape, np.float32)
        filled[real], padded_scores[real] = flat, scores
        return filled, padded_scores

    def _rows(
        self, tokens: np.ndarray, lengths: np.ndarray, before: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Real tokens, their positions, *before* tokens after 0, where sentences start, and where tokens are real.

        *Shapes:* (B, L), (B), (B) -> (N), (N), (B + 1), (B, L).
        """
        order = np.arange(tokens.shape[1])
        real = order < lengths[:, None]
        flat = tokens[real].astype(np.int64, copy=False)
        if len(flat) != lengths.sum():
            raise ValueError(f"lengths {lengths.tolist()} are not those of tokens of shape {tokens.shape}")
        if not 0 <= flat.min(initial=0) <= flat.max(initial=0) < self.config.vocab_size:
            raise ValueError(f"token ids are {flat.min()} to {flat.max()}, expected 0 to {self.config.vocab_size - 1}")
        positions = (order + before[:, None])[real]
        if positions.max(initial=0) > self._farthest:
            raise ValueError(f"{positions.max() + 1} positions are more than the model's {self._farthest + 1}")
        return flat, positions, np.concatenate([[0], np.cumsum(lengths)]), real


def _checked(config: EncoderConfig, weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All weights as the library reads them, with zeros for biases that there are not; ValueError names a wrong one."""
    D, F, E = config.hidden_size, config.ffn_size, config.embedding_size or config.hidden_size
    V = -(-config.vocab_size // TOKEN_BLOCK) * TOKEN_BLOCK
    products, norms = {"head.transform": (E, D)}, {"embedding_norm": E, "head.norm": E}
    for i in range(1 if config.shared_layers else config.layers):
        sizes = {"qkv": (3 * D, D), "attention_output": (D, D), "ffn_in": (F, D), "ffn_out": (D, F)}
        products |= {f"layers.{i}.{name}": size for name, size in sizes.items()}
        norms |= {f"layers.{i}.{name}": D for name in ("attention_norm", "ffn_norm")}
    if config.embedding_size:
        products["embedding_projection"] = D, E
    shapes: dict[str, tuple[int, ...]] = {
        "position_embeddings.weight": (config.max_positions, E),
        "type_embeddings.weight": (config.token_types, E),
        "length_head.weight": (config.length_classes, D),
        "head.bias": (V,),
    }
    if config.rel_pos_bins:
        shapes["relative_bias.weight"] = 2 * config.max_positions - 1, config.heads
    if config.copy_head:
        shapes |= {"copy_head.weight": (D, D), "copy_head.bias": (D,)}
    shapes |= {f"{name}.{part}": (size,) for name, size in norms.items() for part in ("weight", "bias")}
    shapes |= {f"{name}.bias": size[:1] for name, size in products.items()}
    integers = {f"{name}.weight": size for name, size in products.items()} | {"word_embeddings.weight": (V, E)}
    if config.untie_head:
        integers["head.weight"] = V, E
    shapes |= integers | {f"{name}.scale": size[:1] for name, size in integers.items()}
    checked = {}
    for name, shape in shapes.items():
        array = weights.get(name)
        if array is None and config.without_biases and name.endswith(".bias"):
            array = np.zeros(shape, np.float32)
        if array is not None and array.dtype == np.uint8:  # of shared layers, as ONNX Runtime takes them
            array = (array.astype(np.int16) - 128).astype(np.int8)
        kind = np.dtype(np.int8 if name in integers else np.float32)
        if array is None or (array.shape, array.dtype) != (shape, kind):
            given = "missing" if array is None else f"{array.dtype} {array.shape}"
            raise ValueError(f"{name} is {given}, expected {kind} {shape}")
        checked[name] = np.ascontiguousarray(array.T if name == "relative_bias.weight" else array)
    return checked


def check_memory(enough: bool) -> None:
    """Raise MemoryError unless there was enough."""
    if not enough:
        raise MemoryError("there is not memory enough for the native engine: use smaller batches")


def _address(array: np.ndarray | None) -> int | None:
    return None if array is None else array.ctypes.data
