"""Source and target pass through torch.compile."""

from typing import Any

import torch

from mist_fairseq.mist.encoder import TokenHead


class CompiledEncoder(TokenHead):
    """An encoder's passes, compiled at their first use for all lengths; weights are constants, packed for the CPU.

    torch.compile needs a C++ compiler on a CPU, and half a minute at the first batch.

    Args:
        encoder: ``Encoder`` or ``EncoderDecoder``; later changes of its weights go unnoticed.
    """

    def __init__(self, encoder: torch.nn.Module):
        self.config = encoder.config
        options: dict[str, Any] = {"freezing": True} if next(encoder.parameters()).device.type == "cpu" else {}

        def compiled(method):
            return torch.compile(method, dynamic=True, options=options)

        self.encode_source = compiled(encoder.encode_source)
        self.decode_target = compiled(encoder.decode_target)
        self.token_logits = compiled(encoder.token_logits)
        self.length_logits = encoder.length_logits
        if hasattr(encoder, "encode_and_guess"):
            self.encode_and_guess = encoder.encode_and_guess
