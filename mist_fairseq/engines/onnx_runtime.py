"""The two passes in ONNX Runtime. Needs neither torch nor fairseq where the graphs are there already."""

import contextlib
import ctypes
import functools
import re
from pathlib import Path
from typing import Any

import numpy as np

from mist_fairseq.engines import gpu_number, register
from mist_fairseq.engines.weights import TOKEN_BLOCK
from mist_fairseq.extras import install_line
from mist_fairseq.mist.config import GraphSizes, SpecialTokens

# Before, it reads files that a model names outside of its folder (1.23), crashes (1.21), or gives other numbers than
# PyTorch (1.20).
OLDEST = "1.24.1"

_IN_MEMORY = "weights"  # the name of a file that is none


class OnnxState:
    """An encoded source.

    Args:
        length_scores: *Shape:* (B, classes).
        past: what the graph's run for the target takes of its run for the source.
        lengths: of the sources, *Shape:* (B).
    """

    def __init__(self, length_scores: np.ndarray, past: list[np.ndarray], lengths: np.ndarray):
        self.length_scores, self.past, self.lengths = length_scores, past, lengths

    def select(self, rows: np.ndarray) -> "OnnxState":
        """The state of the sentences *rows* (repeats allowed), *Shape:* (B')."""
        return OnnxState(self.length_scores[rows], [part[rows] for part in self.past], self.lengths[rows])


@register("onnxruntime", ("fp32", "int8"), encoder_only=True, device="cpu")
class OnnxEngine:
    """Runs the graph of ``engines.onnx_encoder``, with as many threads as torch has.

    Args:
        encoder: on the CPU, whose weights to take; later changes of them go unnoticed.
        special: ids of the special tokens.
        precision: ``fp32`` or ``int8``.

    Raises:
        ValueError: a package is not installed, or the encoder is not in fp32.
    """

    def __init__(self, encoder: Any, special: SpecialTokens, precision: str):
        import torch

        from mist_fairseq.engines.onnx_encoder import encoder_graph

        if encoder.word_embeddings.weight.dtype != torch.float32:
            raise ValueError("--accelerate onnxruntime needs weights in fp32: leave out --fp16")
        graph, weights = encoder_graph(encoder, special, precision == "int8", _IN_MEMORY)
        session = start_session(graph.SerializeToString(), torch.get_num_threads(), weights)
        self._open(session, encoder.config.graph)

    @classmethod
    def of_session(cls, session: Any, graph: GraphSizes | None) -> "OnnxEngine":
        """The engine of a model that was exported, maybe with paths through graphs of some sizes."""
        engine = cls.__new__(cls)
        engine._open(session, graph)
        return engine

    def _open(self, session: Any, graph: GraphSizes | None) -> None:
        self.graph = graph
        past = session.get_inputs()[3:]  # after tokens, lengths and past_lengths
        self._past = [value.name for value in past]
        self._optional = {value.name for value in session.get_overridable_initializers()}
        self._encoded = ["length_scores", *(name.removeprefix("past_") for name in self._past)]
        sizes, types = {"B": 1, "P": 0}, {"tensor(float)": np.float32, "tensor(int64)": np.int64}
        self._nothing = {
            value.name: np.zeros([sizes.get(size, size) for size in value.shape], types[value.type]) for value in past
        }
        self._run = session.run

    def asarray(self, values: Any) -> np.ndarray:
        """An array of numpy."""
        return np.asarray(values)

    def encode(self, tokens: np.ndarray, lengths: np.ndarray) -> OnnxState:
        """Encode sources; see ``generate.decoding.Engine``."""
        tokens = np.ascontiguousarray(tokens[:, : lengths.max()])
        nothing = {name: part.repeat(len(tokens), axis=0) for name, part in self._nothing.items()}
        feed = {"tokens": tokens, "lengths": lengths, "past_lengths": np.zeros_like(lengths)}
        length_scores, *past = self._run(self._encoded, feed | nothing)
        return OnnxState(length_scores, past, lengths)

    def fill(
        self,
        tokens: np.ndarray,
        lengths: np.ndarray,
        state: OnnxState,
        second: bool = False,
        allowed: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Predict every [MASK]; see ``generate.decoding.Engine``. ValueError: the graph is older than an option."""
        given: dict[str, np.ndarray] = {"second": np.array(True)} if second else {}
        if allowed is not None:
            given["allowed"] = np.pad(allowed, (0, -len(allowed) % TOKEN_BLOCK))
        for name, options in (("second", "diversity_penalty needs"), ("allowed", "banned and required need")):
            if name in given and name not in self._optional:
                raise ValueError(f"{options} a newer ONNX model: export it again with scripts/export.py")
        return self._fill(["predictions", "scores"], tokens, lengths, state, given)

    def fill_graph(
        self, tokens: np.ndarray, vertices: np.ndarray, state: OnnxState
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Predict every vertex and edge; see ``generate.decoding.Engine``."""
        return self._fill(["predictions", "scores", "edges"], tokens, vertices, state, {})

    def _fill(
        self, outputs: list[str], tokens: np.ndarray, lengths: np.ndarray, state: OnnxState, given: dict[str, Any]
    ) -> Any:
        feed = {"tokens": tokens, "lengths": lengths, "past_lengths": state.lengths, **given}
        return tuple(self._run(outputs, feed | dict(zip(self._past, state.past))))


@functools.cache
def _sums_in_32_bits() -> bool:
    """Whether this x86 processor adds products of 8-bit integers without saturating (VNNI)."""
    try:
        return "vnni" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)[:3]]


def is_supported() -> bool:
    """Whether ONNX Runtime is installed, and not too old."""
    try:
        import onnxruntime
    except ImportError:
        return False
    return _numbers(onnxruntime.__version__) >= _numbers(OLDEST)


def start_session(model: str | bytes, threads: int = 0, weights: bytes = b"", device: object = "cpu") -> Any:
    """What runs an ONNX graph.

    Args:
        model: a file's name, or a serialized graph.
        threads: how many, 0 for one for each core.
        weights: of a serialized graph, the content of their file.
        device: ``cpu``, ``cuda``, ``cuda:1`` or the like, or ``auto``: the first GPU if ONNX Runtime can use it.

    Raises:
        ValueError: ONNX Runtime is not installed or too old, cannot use the device, or cannot read the file; names it.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ValueError(f"ONNX Runtime is not installed: {install_line('runtime')}") from error
    if not is_supported():
        raise ValueError(
            f"ONNX Runtime is {onnxruntime.__version__}, expected {OLDEST} or newer: "
            f"pip install 'onnxruntime>={OLDEST}'"
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors
    if not _sums_in_32_bits():
        options.add_session_config_entry("session.x64quantprecision", "1")
    options.add_session_config_entry("session.force_spinning_stop", "1")  # its threads wait busily, but in a run only
    if weights:
        options.add_external_initializers_from_files_in_memory([_IN_MEMORY], [weights], [len(weights)])
    providers = _providers(device, onnxruntime.get_available_providers())
    try:
        session = onnxruntime.InferenceSession(model, options, providers=providers)
    except Exception as error:  # of many classes, all derived from this one alone
        if isinstance(model, bytes):
            raise
        raise ValueError(
            f"{model} or its weights are damaged, or of a version that ONNX Runtime {onnxruntime.__version__} does not "
            f"read: export the model again, or install a newer onnxruntime ({error})"
        ) from error
    if device != "auto" and len(session.get_providers()) < len(providers):  # it goes on with what is left
        raise ValueError(
            f"ONNX Runtime {onnxruntime.__version__} cannot use device {str(device)!r}, its message says why: install "
            "the CUDA and cuDNN that it needs, or use device cpu"
        )
    # glibc keeps what loading has freed, half of what an int8 model takes then.
    with contextlib.suppress(AttributeError, OSError, TypeError):  # other systems
        ctypes.CDLL(None).malloc_trim(0)
    return session


def _providers(device: object, available: list[str]) -> list[Any]:
    """What ONNX Runtime is to run a graph with; ValueError if it was not built for that."""
    on_gpu = "CUDAExecutionProvider" in available
    number = (0 if on_gpu else None) if device == "auto" else gpu_number(device)
    if number is None:
        return ["CPUExecutionProvider"]
    if not on_gpu:
        raise ValueError(
            f"device is {str(device)!r}, but this ONNX Runtime runs on {', '.join(available)} only: use device cpu, or "
            "pip uninstall onnxruntime and pip install onnxruntime-gpu"
        )
    # fp32 as PyTorch computes it, not TF32.
    return [("CUDAExecutionProvider", {"device_id": number, "use_tf32": 0}), "CPUExecutionProvider"]
