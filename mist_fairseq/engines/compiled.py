"""The two passes through torch.compile."""

from typing import Any

import torch

from mist_fairseq.engines import register
from mist_fairseq.engines.pytorch import PyTorchEngine
from mist_fairseq.mist.config import SpecialTokens


@register("compile", ("fp32", "bf16"))
class CompiledEngine(PyTorchEngine):
    """Compiles the passes at their first use for all lengths; weights are constants, packed for the CPU.

    torch.compile needs a C++ compiler on a CPU, and half a minute at the first batch.

    Args:
        model: later changes of its weights go unnoticed; all else as of ``PyTorchEngine``.
    """

    def __init__(self, model: Any, special: SpecialTokens, precision: str):
        super().__init__(model, special, precision)
        options: dict[str, Any] = {"freezing": True} if self.device.type == "cpu" else {}
        for name in ("encode_source", "decode_target", "token_logits"):
            compiled = torch.compile(getattr(model, name), dynamic=True, fullgraph=True, options=options)
            setattr(self, name, compiled)
