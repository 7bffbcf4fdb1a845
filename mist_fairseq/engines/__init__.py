"""Engines run a model's source and target pass faster than plain PyTorch, with the same outputs, for inference only.

An engine has the methods of ``models.encoder.Encoder`` that generation calls: ``encode_source``, ``decode_target``,
``length_logits``, ``likeliest_tokens`` and ``encode_and_guess``; ``context`` is entered around the whole generation
of a batch, where there is one.
"""

import importlib.util
import logging

import torch

from mist_fairseq.hub.onnx_generator import is_supported
from mist_fairseq.mist.encoder import Encoder

logger = logging.getLogger(__name__)

ACCELERATE = ["auto", "none", "compile", "onnxruntime", "cudagraph"]
PRECISIONS = {
    "none": ["fp32", "bf16"],
    "compile": ["fp32", "bf16"],
    "onnxruntime": ["fp32", "int8"],
    "cudagraph": ["fp32", "bf16"],
}


def choose(encoder: torch.nn.Module, precision: str) -> str:
    """What ``auto`` stands for: on a CPU ONNX Runtime where it is installed, not too old and able, else no engine."""
    if (
        isinstance(encoder, Encoder)
        and encoder.word_embeddings.weight.device.type == "cpu"
        and encoder.word_embeddings.weight.dtype == torch.float32  # not fairseq's --fp16
        and precision in PRECISIONS["onnxruntime"]
        and importlib.util.find_spec("onnx") is not None
        and is_supported()
    ):
        return "onnxruntime"
    return "none"


def build_engine(encoder: torch.nn.Module, never_predicted: torch.Tensor, accelerate: str, precision: str):
    """The engine that ``--accelerate`` names.

    Args:
        encoder: ``Encoder`` or ``EncoderDecoder``, on the device where it is to run. The engine may change it.
        never_predicted: ids that are never an output.
        accelerate: one of ``ACCELERATE``.
        precision: ``fp32``, ``bf16`` or ``int8``.

    Returns:
        The engine, or None where the encoder itself is to run.

    Raises:
        ValueError: no such engine, or it cannot do this precision, model or device; says what can.
    """
    if accelerate not in ACCELERATE:
        raise ValueError(f"--accelerate is {accelerate!r}, expected one of {', '.join(ACCELERATE)}")
    if accelerate == "auto":
        accelerate = choose(encoder, precision)
    if precision not in PRECISIONS[accelerate]:
        able = " or ".join(name for name, precisions in PRECISIONS.items() if precision in precisions)
        if precision == "int8" and not isinstance(encoder, Encoder):
            raise ValueError("--precision int8 is for mist_* architectures: use fp32 or bf16")
        raise ValueError(f"--accelerate {accelerate} has no --precision {precision}: use --accelerate {able}")
    logger.info("engine: %s, %s", accelerate, precision)
    if accelerate == "none":
        return None
    if accelerate == "compile":
        from mist_fairseq.engines.compiled import CompiledEncoder

        return CompiledEncoder(encoder)
    if not isinstance(encoder, Encoder):
        raise ValueError(f"--accelerate {accelerate} is for mist_* architectures: use --accelerate compile")
    if accelerate == "cudagraph":
        from mist_fairseq.engines.cuda_graph import CudaGraphEncoder

        return CudaGraphEncoder(encoder)
    from mist_fairseq.engines.onnx_runtime import OnnxRuntimeEncoder

    return OnnxRuntimeEncoder(encoder, never_predicted, int8=precision == "int8")
