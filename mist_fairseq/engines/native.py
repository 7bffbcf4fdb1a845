"""The two passes in int8 by ``native.cpp``, for x86 processors with AVX-512 VNNI. Weights of a file need no torch.

It computes what the int8 ONNX graph does (``engines.onnx_encoder``), with a scale for each row of a matrix and each row
of activations, in few large steps; only sums are added in another order. Rows are packed, so padding costs nothing.

``pip install`` compiles it where there is a C++ compiler; ``why_not`` tells why it cannot be used.

Dimensions as in ``mist.encoder``.
"""

import ctypes
import functools
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mist_fairseq.engines import register
from mist_fairseq.engines.weights import int8_weights
from mist_fairseq.mist.config import EncoderConfig, SpecialTokens

_NEEDED = {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "fma"}
_LANES = 16
_ACTIVATIONS = {"gelu": 2, "gelu_new": 3, "gelu_pytorch_tanh": 3, "relu": 4, "silu": 5}  # native.cpp's enum After

_Pointer, _Integer = ctypes.c_void_p, ctypes.c_int64
_FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "mist_source": (_Integer, []),
    "mist_model": (_Pointer, [_Pointer]),
    "mist_free": (None, [_Pointer]),
    "mist_matrix": (ctypes.c_bool, [_Pointer, ctypes.c_char_p, _Integer, *[_Pointer] * 3, _Integer, _Integer]),
    "mist_norm": (None, [_Pointer, ctypes.c_char_p, _Integer, _Pointer, _Pointer]),
    "mist_tables": (None, [_Pointer] * 9),
    "mist_take": (_Pointer, [_Pointer, _Integer]),
    "mist_give": (None, [_Pointer, _Pointer]),
    "mist_encode": (ctypes.c_bool, [_Pointer, _Integer, *[_Pointer] * 3, _Integer, *[_Pointer] * 3]),
    "mist_fill": (ctypes.c_bool, [_Pointer, _Integer, *[_Pointer] * 3, _Integer, _Pointer, ctypes.c_bool, _Pointer]),
}

_SIZES = """
hidden_size embedding_size ffn_size heads layers distinct_layers length_classes farthest activation mask threads
""".split()
_Sizes = np.dtype([*((name, np.int64) for name in _SIZES), ("eps", np.float64)])
_Sentence = np.dtype([*((name, np.uint64) for name in ("state", "past", "hidden", "tokens")), ("count", np.int64)])


@functools.cache
def _library() -> Any:
    """The compiled library; OSError if there is none, or an old one."""
    source = Path(__file__).with_suffix(".cpp").read_bytes()
    found = sorted(Path(__file__).with_name("lib").glob("native*.so"))
    if not found:
        raise OSError("it was not compiled")
    library = ctypes.CDLL(str(found[-1]))
    for name, (result, arguments) in _FUNCTIONS.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    if library.mist_source() != zlib.crc32(source):
        raise OSError("it was compiled from another native.cpp")
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
    for name in ("pre_norm", "gated", "rotary_base", "local_window"):
        if getattr(config, name):
            return f"the encoder has {name}"
    sizes = config.hidden_size, config.hidden_size // config.heads, config.ffn_size, config.embedding_size
    if any(size % _LANES for size in sizes):
        return f"sizes of the encoder and its heads are no multiples of {_LANES}"
    return ""


class _Past:
    """Memory of the library for one sentence's keys and values, which goes back when nothing refers to it any more."""

    def __init__(self, engine: "NativeEngine", tokens: int):
        self.engine = engine
        self.address = engine.library.mist_take(engine.model, tokens)
        engine.check(self.address is not None)

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
class NativeEngine:
    """Runs the library, with as many threads as torch has.

    Args:
        encoder: on the CPU, whose weights to take; later changes of them go unnoticed.
        special: ids of the special tokens.
        precision: ``int8``.

    Raises:
        ValueError: it cannot be used here, or not for such an encoder.
    """

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
        self.config, self.special = config, special
        self._kept: list[np.ndarray] = []
        self.library, self._farthest = _library(), config.max_positions - 1
        sizes = np.zeros(1, _Sizes)
        sizes["distinct_layers"] = distinct = 1 if config.shared_layers else config.layers
        sizes["embedding_size"] = config.embedding_size or config.hidden_size
        sizes["activation"], sizes["eps"] = _ACTIVATIONS[config.activation], config.layer_norm_eps
        sizes["farthest"], sizes["mask"], sizes["threads"] = self._farthest, special.mask, threads
        for name in ("hidden_size", "ffn_size", "heads", "layers", "length_classes"):
            sizes[name] = getattr(config, name)
        self.model = self.library.mist_model(_address(sizes))
        self.check(self.model is not None)
        for i in range(distinct):
            for name in ("qkv", "attention_output", "ffn_in", "ffn_out"):
                self._matrix(name, i, weights, f"layers.{i}.{name}")
            for name in ("attention_norm", "ffn_norm"):
                self._norm(name, i, weights, f"layers.{i}.{name}")
        for name in ("embedding_norm", "head.norm"):
            self._norm(name, -1, weights, name)
        self._matrix("head.transform", -1, weights, "head.transform")
        if config.embedding_size:
            self._matrix("embedding_projection", -1, weights, "embedding_projection")
        own = "head" if "head.weight" in weights else "word_embeddings"
        self._matrix("head", -1, weights, own, weights["head.bias"])
        names = ["word_embeddings.weight", "word_embeddings.weight.scale", "position_embeddings.weight"]
        names += ["type_embeddings.weight", "length_head.weight"]
        tables: list[np.ndarray | None] = [weights[name] for name in names]
        by_distance = weights.get("relative_bias.weight")
        tables.append(None if by_distance is None else by_distance.T)
        tables += [weights.get(f"copy_head.{part}") for part in ("weight", "bias")]
        self.library.mist_tables(self.model, *map(self._keep, tables))

    def __del__(self) -> None:
        if getattr(self, "model", None) is not None:
            self.library.mist_free(self.model)

    def asarray(self, values: Any) -> np.ndarray:
        """An array of numpy."""
        return np.asarray(values)

    def encode(self, tokens: np.ndarray, lengths: np.ndarray) -> NativeState:
        """Encode sources; see ``generate.decoding.Engine``."""
        flat, positions, starts = self._rows(tokens, lengths)
        sentences = np.zeros(len(tokens), _Sentence)
        past = [_Past(self, int(length)) for length in lengths]
        sentences["state"] = [part.address for part in past]
        hidden = np.empty((len(flat), self.config.hidden_size), np.float32)
        length_scores = np.empty((len(tokens), self.config.length_classes), np.float32)
        given, results = map(_address, (starts, flat, positions)), map(_address, (sentences, hidden, length_scores))
        self.check(self.library.mist_encode(self.model, len(tokens), *given, self.config.source_type, *results))
        return NativeState(length_scores, past, *(np.split(part, starts[1:-1]) for part in (hidden, flat)))

    def fill(
        self, tokens: np.ndarray, lengths: np.ndarray, state: NativeState, second: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Predict every [MASK]; see ``generate.decoding.Engine``."""
        counts = np.array([len(part) for part in state.tokens])
        flat, positions, starts = self._rows(tokens, lengths, counts)
        sentences = np.zeros(len(tokens), _Sentence)
        sentences["past"] = [part.address for part in state.past]
        for name, parts in (("hidden", state.hidden), ("tokens", state.tokens)):
            sentences[name] = [part.ctypes.data for part in parts]
        sentences["count"] = counts
        scores = np.empty(len(flat), np.float32)
        given = map(_address, (starts, flat, positions))
        done = self.library.mist_fill(
            *(self.model, len(tokens), *given, self.config.target_type, _address(sentences), second, _address(scores))
        )
        self.check(done)
        real = np.arange(tokens.shape[1]) < lengths[:, None]
        filled, padded_scores = tokens.copy(), np.zeros(tokens.shape, np.float32)
        filled[real], padded_scores[real] = flat, scores
        return filled, padded_scores

    def _rows(
        self, tokens: np.ndarray, lengths: np.ndarray, before: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Real tokens, their positions, *before* tokens after 0, and where sentences start. -> (N), (N), (B + 1)."""
        order = np.arange(tokens.shape[1])
        real = order < lengths[:, None]
        flat = tokens[real]
        if not 0 <= flat.min(initial=0) <= flat.max(initial=0) < self.config.vocab_size:
            raise ValueError(f"token ids are {flat.min()} to {flat.max()}, expected 0 to {self.config.vocab_size - 1}")
        positions = np.broadcast_to(order, tokens.shape) if before is None else order + before[:, None]
        positions = positions[real]
        if positions.max(initial=0) > self._farthest:
            raise ValueError(f"{positions.max() + 1} positions are more than the model's {self._farthest + 1}")
        return flat, positions, np.concatenate([[0], np.cumsum(lengths)])

    def _matrix(
        self, name: str, layer: int, weights: Mapping[str, np.ndarray], at: str, bias: np.ndarray | None = None
    ) -> None:
        values, bias = weights[f"{at}.weight"], weights.get(f"{at}.bias") if bias is None else bias
        if values.dtype == np.uint8:  # of shared layers, as ONNX Runtime takes them
            values = (values.astype(np.int16) - 128).astype(np.int8)
        given = [np.ascontiguousarray(part) for part in (values, weights[f"{at}.weight.scale"])]
        bias = None if bias is None else np.ascontiguousarray(bias)
        self.check(
            self.library.mist_matrix(self.model, name.encode(), layer, *map(_address, (*given, bias)), *values.shape)
        )

    def _norm(self, name: str, layer: int, weights: Mapping[str, np.ndarray], at: str) -> None:
        weight = weights[f"{at}.weight"]
        parts = weight, weights.get(f"{at}.bias", np.zeros_like(weight))
        self.library.mist_norm(self.model, name.encode(), layer, *map(self._keep, parts))

    def _keep(self, array: np.ndarray | None) -> int | None:
        """The address of an array that stays for as long as the engine."""
        if array is None:
            return None
        array = np.ascontiguousarray(array)
        self._kept.append(array)
        return _address(array)

    def check(self, enough_memory: bool) -> None:
        """Raise MemoryError unless there was."""
        if not enough_memory:
            raise MemoryError("there is not memory enough for the native engine: use smaller batches")


def _address(array: np.ndarray | None) -> int | None:
    return None if array is None else array.ctypes.data
