"""Engines run a model's source and target pass, for inference only, with the same outputs.

An engine is a class in a module of this package, with the methods of ``generate.decoding.Engine`` and a line of
``@register``; nothing else names it.
"""

import importlib
import importlib.util
import logging
import pkgutil
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


_ENGINES: dict[str, _Registered] = {}


def register(name: str, precisions: tuple[str, ...], encoder_only: bool = False) -> Callable[[C], C]:
    """Make a class an engine.

    Args:
        name: what ``--accelerate`` calls it.
        precisions: which it can do.
        encoder_only: whether it runs an ``Encoder`` only, and no ``EncoderDecoder``.
    """

    def register_class(engine: C) -> C:
        _ENGINES[name] = _Registered(engine, precisions, encoder_only)
        return engine

    return register_class


def engines() -> dict[str, _Registered]:
    """Every engine by the name that ``--accelerate`` takes. Imports torch."""
    for module in pkgutil.iter_modules(__path__, f"{__name__}."):
        importlib.import_module(module.name)
    return dict(sorted(_ENGINES.items()))  # in whichever order the modules were imported


def choose(model: Any, precision: str) -> str:
    """What ``auto`` stands for: on a CPU ONNX Runtime where it is installed, not too old and able, else PyTorch."""
    import torch

    from mist_fairseq.engines.onnx_runtime import is_supported
    from mist_fairseq.mist.encoder import Encoder

    weight = next(model.parameters())
    able = isinstance(model, Encoder) and precision in engines()["onnxruntime"].precisions
    on_cpu = weight.device.type == "cpu" and weight.dtype == torch.float32  # fairseq's --fp16 leaves no fp32 weights
    installed = importlib.util.find_spec("onnx") is not None and is_supported()
    return "onnxruntime" if able and on_cpu and installed else "none"


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
    from mist_fairseq.mist.encoder import Encoder

    known = engines()
    if accelerate not in ("auto", *known):
        raise ValueError(f"--accelerate is {accelerate!r}, expected one of {', '.join(('auto', *known))}")
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}, expected one of {', '.join(PRECISIONS)}")
    name = choose(model, precision) if accelerate == "auto" else accelerate
    if precision not in known[name].precisions:
        if precision == "int8" and not isinstance(model, Encoder):
            raise ValueError("--precision int8 is for mist_* architectures: use fp32 or bf16")
        able = " or ".join(other for other, engine in known.items() if precision in engine.precisions)
        raise ValueError(f"--accelerate {name} has no --precision {precision}: use --accelerate {able}")
    if known[name].encoder_only and not isinstance(model, Encoder):
        raise ValueError(f"--accelerate {name} is for mist_* architectures: use --accelerate compile")
    logger.info("engine: %s, %s", name, precision)
    return known[name].build(model, special, precision)
