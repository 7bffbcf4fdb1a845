"""Engines run a model's source and target pass, for inference only, with the same outputs.

An engine is a class in a module of this package, with the methods of ``generate.decoding.Engine`` and a line of
``@register``; nothing else names it.
"""

import importlib
import importlib.util
import logging
import pkgutil
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

if TYPE_CHECKING:
    from mist_fairseq.generate.decoding import Engine
    from mist_fairseq.mist.config import SpecialTokens

logger = logging.getLogger(__name__)

PRECISIONS = ["fp32", "bf16", "int8"]

C = TypeVar("C", bound=type)  # the class of an engine


class _Registered(NamedTuple):
    """What ``register`` was told of an engine."""

    build: Callable[..., "Engine"]
    precisions: tuple[str, ...]
    encoder_only: bool
    device: str | None


_ENGINES: dict[str, _Registered] = {}


def register(
    name: str, precisions: tuple[str, ...], encoder_only: bool = False, device: str | None = None
) -> Callable[[C], C]:
    """Make a class an engine.

    Args:
        name: what ``--accelerate`` calls it.
        precisions: which it can do.
        encoder_only: whether it runs an ``Encoder`` only, and no ``EncoderDecoder``.
        device: ``cpu`` or ``cuda`` where it runs on such only.
    """

    def register_class(engine: C) -> C:
        _ENGINES[name] = _Registered(engine, precisions, encoder_only, device)
        return engine

    return register_class


def engines() -> dict[str, _Registered]:
    """Every engine by the name that ``--accelerate`` takes. Imports torch."""
    for module in pkgutil.iter_modules(__path__, f"{__name__}."):
        importlib.import_module(module.name)
    return dict(sorted(_ENGINES.items()))  # in whichever order the modules were imported


def engine_name(engine: object) -> str | None:
    """What ``--accelerate`` calls an engine that was built, None of what is none. Imports nothing."""
    return next((name for name, known in _ENGINES.items() if known.build is type(engine)), None)


def gpu_number(device: object) -> int | None:
    """N of ``cuda:N``, 0 of ``cuda``, None of ``cpu``; ValueError if *device*, text or ``torch.device``, is none."""
    known = re.fullmatch(r"cpu|cuda(?::(\d+))?", str(device))
    if known is None:
        raise ValueError(f"device is {str(device)!r}, expected auto, cpu, cuda or cuda:N, N the number of a GPU")
    return None if str(device) == "cpu" else int(known[1] or 0)


def choose_device(device: object, accelerate: str, precision: str) -> str:
    """Where a model is to run: *device*, or for ``auto`` a GPU if there is one and an engine can use it.

    ValueError: there is no such device.
    """
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "auto":
        chosen = [engine for name, engine in engines().items() if accelerate in ("auto", name)]
        able = [engine for engine in chosen if engine.device != "cpu" and precision in engine.precisions]
        return "cuda" if able and gpus else "cpu"
    number = gpu_number(device)
    if number is not None and number >= gpus:
        there = f"{gpus} GPUs, numbered from 0" if gpus else "no GPU: use cpu, or install PyTorch for your GPU"
        raise ValueError(f"device is {str(device)!r}, but torch {torch.__version__} sees {there}")
    return str(device)


def choose(model: Any, precision: str) -> str:
    """What ``auto`` stands for: on a CPU, the first that is there and able; else PyTorch.

    In int8 that is ``native``, and in fp32 and int8 ONNX Runtime, if it is not too old.
    """
    import torch

    from mist_fairseq.engines.native import why_not
    from mist_fairseq.engines.onnx_runtime import is_supported
    from mist_fairseq.mist.encoder import Encoder

    weight = next(model.parameters())
    able = isinstance(model, Encoder) and precision in engines()["onnxruntime"].precisions
    on_cpu = weight.device.type == "cpu" and weight.dtype == torch.float32  # fairseq's --fp16 leaves no fp32 weights
    if precision == "int8" and able and on_cpu and not why_not(model.config):
        return "native"
    installed = importlib.util.find_spec("onnx") is not None and is_supported()
    return "onnxruntime" if able and on_cpu and installed else "none"


def check_engine(model: Any, accelerate: str, precision: str) -> None:
    """Check what can be told before the model is on its device; ValueError as of ``build_engine``."""
    from mist_fairseq.mist.encoder import Encoder

    known, is_encoder = engines(), isinstance(model, Encoder)
    if accelerate not in ("auto", *known):
        raise ValueError(f"--accelerate is {accelerate!r}, expected one of {', '.join(('auto', *known))}")
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}, expected one of {', '.join(PRECISIONS)}")
    if precision == "int8" and not is_encoder:
        raise ValueError("--precision int8 is for mist_* architectures: use fp32 or bf16")
    if accelerate == "auto":
        return
    if precision not in known[accelerate].precisions:
        able = " or ".join(other for other, engine in known.items() if precision in engine.precisions)
        raise ValueError(f"--accelerate {accelerate} has no --precision {precision}: use --accelerate {able}")
    if known[accelerate].encoder_only and not is_encoder:
        raise ValueError(f"--accelerate {accelerate} is for mist_* architectures: use --accelerate compile")


def build_engine(model: Any, special: "SpecialTokens", accelerate: str, precision: str) -> "Engine":
    """The engine that ``--accelerate`` names.

    Args:
        model: ``Encoder`` or ``EncoderDecoder``, on the device where it is to run. The engine may change it.
        special: ids of the special tokens.
        accelerate: the name of an engine, or ``auto``.
        precision: one of ``PRECISIONS``.

    Raises:
        ValueError: there is no such engine, or it cannot do this precision, model or device; says what can.
    """
    check_engine(model, accelerate, precision)
    if precision == "int8" and next(model.parameters()).is_cuda:
        raise ValueError("--precision int8 is for CPUs: use fp32 or bf16, or a CPU (--cpu, in Python device='cpu')")
    if accelerate == "auto":
        accelerate = choose(model, precision)
        check_engine(model, accelerate, precision)
    only, there = engines()[accelerate].device, next(model.parameters()).device.type
    if only not in (None, there):
        kind = {"cpu": "CPUs (--cpu, in Python device='cpu')", "cuda": "GPUs"}[only]
        raise ValueError(
            f"--accelerate {accelerate} is for {kind}, the model is on {there}: use --accelerate none there"
        )
    logger.info("engine: %s, %s", accelerate, precision)
    return engines()[accelerate].build(model, special, precision)
