"""Engines run a model's source and target pass, for inference only, with the same outputs.

Each has the methods of ``generate.decoding.Engine``. A new one is a module here and a row of ``ENGINES``.
"""

import importlib
import importlib.util
import logging
from typing import TYPE_CHECKING, Any, NamedTuple

from mist_fairseq.engines.onnx_runtime import is_supported

if TYPE_CHECKING:
    from mist_fairseq.generate.decoding import Engine
    from mist_fairseq.mist.config import SpecialTokens

logger = logging.getLogger(__name__)


class _Engine(NamedTuple):
    """A row of ``ENGINES``: where the class is, what it can do, and whether it takes nothing but ``Encoder``."""

    module: str
    name: str
    precisions: tuple[str, ...]
    encoder_only: bool


# By the name that ``--accelerate`` takes.
ENGINES = {
    "none": _Engine("mist_fairseq.engines.pytorch", "PyTorchEngine", ("fp32", "bf16"), False),
    "compile": _Engine("mist_fairseq.engines.compiled", "CompiledEngine", ("fp32", "bf16"), False),
    "onnxruntime": _Engine("mist_fairseq.engines.onnx_runtime", "OnnxEngine", ("fp32", "int8"), True),
    "cudagraph": _Engine("mist_fairseq.engines.cuda_graph", "CudaGraphEngine", ("fp32", "bf16"), True),
}
ACCELERATE = ["auto", *ENGINES]
PRECISIONS = ["fp32", "bf16", "int8"]


def choose(model: Any, precision: str) -> str:
    """What ``auto`` stands for: on a CPU ONNX Runtime where it is installed, not too old and able, else PyTorch."""
    import torch

    from mist_fairseq.mist.encoder import Encoder

    weight = next(model.parameters())
    able = isinstance(model, Encoder) and weight.device.type == "cpu" and precision in ENGINES["onnxruntime"].precisions
    # fairseq's --fp16 leaves no fp32 weights.
    if able and weight.dtype == torch.float32 and importlib.util.find_spec("onnx") is not None and is_supported():
        return "onnxruntime"
    return "none"


def build_engine(model: Any, special: "SpecialTokens", accelerate: str, precision: str) -> "Engine":
    """The engine that ``--accelerate`` names.

    Args:
        model: ``Encoder`` or ``EncoderDecoder``, on the device where it is to run. The engine may change it.
        special: ids of the special tokens.
        accelerate: one of ``ACCELERATE``.
        precision: one of ``PRECISIONS``.

    Raises:
        ValueError: there is no such engine, or it cannot do this precision, model or device; says what can.
    """
    from mist_fairseq.mist.encoder import Encoder

    if accelerate not in ACCELERATE:
        raise ValueError(f"--accelerate is {accelerate!r}, expected one of {', '.join(ACCELERATE)}")
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}, expected one of {', '.join(PRECISIONS)}")
    chosen = choose(model, precision) if accelerate == "auto" else accelerate
    engine = ENGINES[chosen]
    if precision not in engine.precisions:
        if precision == "int8" and not isinstance(model, Encoder):
            raise ValueError("--precision int8 is for mist_* architectures: use fp32 or bf16")
        able = " or ".join(name for name, other in ENGINES.items() if precision in other.precisions)
        raise ValueError(f"--accelerate {chosen} has no --precision {precision}: use --accelerate {able}")
    if engine.encoder_only and not isinstance(model, Encoder):
        raise ValueError(f"--accelerate {chosen} is for mist_* architectures: use --accelerate compile")
    logger.info("engine: %s, %s", chosen, precision)
    built: Engine = getattr(importlib.import_module(engine.module), engine.name)(model, special, precision)
    return built
