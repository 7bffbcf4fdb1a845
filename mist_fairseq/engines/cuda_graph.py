"""Source and target pass as CUDA graphs: one launch for hundreds of kernels."""

from collections.abc import Callable

import torch
from torch import Tensor

from mist_fairseq.engines import register
from mist_fairseq.engines.pytorch import PyTorchEngine
from mist_fairseq.mist.config import SpecialTokens
from mist_fairseq.mist.encoder import Encoder, SourceState

BUCKET = 16  # lengths are rounded up to a multiple


class Graphed:
    """A function of tensors of fixed shapes, captured once and replayed on other values.

    Args:
        function: of tensors, returns a tuple of tensors; must not wait for the GPU.
        inputs: of the shapes that it will always get.
    """

    def __init__(self, function: Callable, inputs: list[Tensor]):
        self.inputs = [tensor.clone() for tensor in inputs]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):  # libraries choose their kernels and workspaces before the capture
                function(*self.inputs)
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.outputs = function(*self.inputs)

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The outputs, overwritten by the next call."""
        for static, given in zip(self.inputs, inputs):
            static.copy_(given)
        self.graph.replay()
        return self.outputs


@register("cudagraph", ("fp32", "bf16"), encoder_only=True)
class CudaGraphEngine(PyTorchEngine):
    """Runs an ``Encoder``'s passes by a graph for each batch size and bucket of lengths, captured at first use.

    Sources and targets are padded to their bucket, and padding is computed, so that shapes, and nothing else, depend
    on the lengths. The target graph reads the source state from a copy: a batch's own stays valid while others run.

    Args:
        encoder: on a GPU; later changes of its weights are seen. All else as of ``PyTorchEngine``.

    Raises:
        ValueError: it is not on a GPU.
    """

    def __init__(self, encoder: Encoder, special: SpecialTokens, precision: str):
        super().__init__(encoder, special, precision)
        if self.device.type != "cuda":
            raise ValueError(f"--accelerate cudagraph needs a GPU, the model is on the {self.device.type}")
        self.encoder, self.config = encoder, encoder.config
        self.encode_source, self.decode_target = self._encode_source, self._decode_target
        self._graphs: dict[tuple, Graphed] = {}

    def _encode_source(self, tokens: Tensor, lengths: Tensor, index: Tensor) -> SourceState:
        """As ``Encoder.encode_source``; the state is as wide as the bucket."""
        tokens = self._widen(tokens)
        hidden, *seen = self._replay("source", self._source, [tokens, lengths])
        layers = self.config.layers
        seen = [part.clone() for part in seen]
        return SourceState(seen[:layers], seen[layers:], hidden.clone(), lengths)

    def _decode_target(self, tokens: Tensor, lengths: Tensor, index: Tensor, source: SourceState) -> Tensor:
        """As ``Encoder.decode_target``."""
        T = tokens.shape[1]
        inputs = [self._widen(tokens), lengths, source.hidden, source.lengths, *source.keys, *source.values]
        (hidden,) = self._replay("target", self._target, inputs)
        return hidden[:, :T].flatten(0, 1).index_select(0, index)

    def _source(self, tokens: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
        state = self.encoder.encode_source(tokens, lengths, self._all(tokens))
        return state.hidden, *state.keys, *state.values

    def _target(self, tokens, lengths, source_hidden, source_lengths, *seen: Tensor) -> tuple[Tensor]:
        layers = self.config.layers
        source = SourceState(list(seen[:layers]), list(seen[layers:]), source_hidden, source_lengths)
        hidden = self.encoder.decode_target(tokens, lengths, self._all(tokens), source)
        return (hidden.view(*tokens.shape, -1),)

    def _replay(self, name: str, function: Callable, inputs: list[Tensor]) -> tuple[Tensor, ...]:
        precision = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else torch.float32
        key = name, precision, *(tuple(tensor.shape) for tensor in inputs[:3])
        if key not in self._graphs:
            # Autocast's cache of converted weights must not outlive the capture.
            with torch.autocast("cuda", precision, enabled=precision != torch.float32, cache_enabled=False):
                self._graphs[key] = Graphed(function, inputs)
        return self._graphs[key](*inputs)

    def _widen(self, tokens: Tensor) -> Tensor:
        """Padded to a multiple of the bucket; what stands there is masked by the lengths."""
        missing = min(-tokens.shape[1] % BUCKET, self.config.max_positions - tokens.shape[1])
        return torch.nn.functional.pad(tokens, (0, missing)) if missing else tokens

    @staticmethod
    def _all(tokens: Tensor) -> Tensor:
        return torch.arange(tokens.numel(), device=tokens.device)
