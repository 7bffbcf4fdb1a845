"""Source and target pass as CUDA graphs: one launch for hundreds of kernels."""

import threading
from collections.abc import Callable, Iterable
from functools import cached_property, partial
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from mist_fairseq.engines import register
from mist_fairseq.engines.pytorch import PyTorchEngine, PyTorchState
from mist_fairseq.mist.config import SpecialTokens
from mist_fairseq.mist.encoder import Encoder, SourceState

BUCKET = 16  # lengths are rounded up to a multiple
MOST = 8192  # positions of a pass; more keep a GPU busy without a graph
GRAPHS = 256  # that are kept; the least recently used goes first


class GraphState(PyTorchState):
    """An encoded source.

    Args:
        seen: keys of all layers, then their values, and for a copy head the last hidden states, *Shape:* (2 * layers
            or one more, B, H, S, d).
        tokens: of the sources, *Shape:* (B, S).
        lengths: of the sources, *Shape:* (B).
        length_scores: logits of each target length, *Shape:* (B, classes).
    """

    def __init__(self, seen: Tensor, tokens: Tensor, lengths: Tensor, length_scores: Tensor):
        self.seen, self.length_scores = seen, length_scores
        layers, hidden = len(seen) // 2, seen[-1].transpose(1, 2)  # else a target pass reads its shape alone
        hidden = hidden.flatten(2) if len(seen) % 2 else hidden
        self.source = SourceState(list(seen[:layers]), list(seen[layers : 2 * layers]), hidden, lengths, tokens)

    def select(self, rows: Tensor) -> "GraphState":
        """The state of the sentences *rows* (repeats allowed), *Shape:* (B')."""
        of_rows = (part.index_select(0, rows) for part in (self.source.tokens, self.source.lengths, self.length_scores))
        return GraphState(self.seen.index_select(1, rows), *of_rows)


@register("cudagraph", ("fp32", "bf16"), encoder_only=True, device="cuda")
class CudaGraphEngine(PyTorchEngine):
    """Runs an ``Encoder``'s passes by a graph for each rounded size of a batch, captured at its first use.

    Rows and columns that rounding adds are computed and cut off again. Passes of more than ``MOST`` positions run as
    they are. All graphs compute in the same memory, that of the largest, so one runs at a time, on one stream; their
    inputs are copied in, their results out. One that is larger than all before, by powers of two, replaces all.

    Args:
        encoder: on a GPU; later changes of its weights are seen. All else as of ``PyTorchEngine``.
    """

    _lock = threading.Lock()  # of all engines, as only one graph may be captured at a time

    def __init__(self, encoder: Encoder, special: SpecialTokens, precision: str):
        super().__init__(encoder, special, precision)
        self._config, self._type = encoder.config, encoder.layers[0].qkv.weight.dtype
        self._graphs: dict[tuple, tuple[list[Tensor], Callable[[], None], tuple[Tensor, ...]]] = {}
        self._most = 0  # positions that there is memory for

    def encode(self, tokens: Tensor, lengths: Tensor) -> PyTorchState:
        """Encode sources; see ``generate.decoding.Engine``. The state is as wide as the graph."""
        B, (rows, S) = len(tokens), self._rounded(tokens)
        if rows * S > MOST:
            return super().encode(tokens, lengths)
        with self._lock:
            seen, scores = self._replay("source", rows, S, 0, [tokens, lengths])
            wide = F.pad(tokens, (0, S - tokens.shape[1]), value=self.special.pad)
            return GraphState(seen[:, :B].clone(), wide, lengths, scores[:B].clone())

    def fill(
        self,
        tokens: Tensor,
        lengths: Tensor,
        state: PyTorchState,
        second: bool = False,
        allowed: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Predict every [MASK]; see ``generate.decoding.Engine``. Without a graph if not all tokens are *allowed*."""
        (B, width), S, (rows, T) = tokens.shape, state.source.hidden.shape[1], self._rounded(tokens)
        if not isinstance(state, GraphState) or rows * max(S, T) > MOST or allowed is not None:
            return super().fill(tokens, lengths, state, second, allowed)
        with self._lock:
            given = [tokens, lengths, state.source.tokens, state.source.lengths, state.seen]
            filled, scores = self._replay("second" if second else "target", rows, S, T, given)
            return filled[:B, :width].clone(), scores[:B, :width].clone()

    def prewarm(self, batch_sizes: Iterable[int], source_lengths: Iterable[int], target_lengths: Iterable[int]) -> None:
        """Capture the graphs of all these sizes together, special tokens counted, so that no text waits for that.

        MIST's later passes have sources of S + T + 1 tokens, and fewer sentences.
        """
        sizes = product(batch_sizes, source_lengths, target_lengths)
        for B, S, T in sorted(sizes, key=lambda size: -size[0] * max(size[1:])):  # the largest has room for all others
            source, target = (torch.full((B, size), self.special.mask, device=self.device) for size in (S, T))
            state = self.encode(source, torch.full((B,), S, device=self.device))
            self.fill(target, torch.full((B,), T, device=self.device), state)

    def _replay(self, name: str, rows: int, S: int, T: int, given: list[Tensor]) -> tuple[Tensor, ...]:
        """The results of a pass, from *given* in the first rows and columns of its inputs; the next overwrites them."""
        key = name, rows, S, T
        if key not in self._graphs:
            self._add(*key)
        inputs, replay, outputs = self._graphs[key] = self._graphs.pop(key)  # now the last
        for static, values in zip(inputs, given):
            static[tuple(map(slice, values.shape))].copy_(values)
        replay()
        return outputs

    def _add(self, name: str, rows: int, S: int, T: int) -> None:
        """Capture a pass, and forget another where there are too many."""
        parts, longest = 2 * self._config.layers + self._config.copy_head, max(S, T)
        each = parts * self._config.hidden_size
        if rows * longest > self._most:  # memory of the others would not do: begin anew, with the largest's
            self._graphs.clear()
            self._most, self._pool = rounded(rows * longest, 1), torch.cuda.graph_pool_handle()
            self._room = torch.empty(self._most * each, dtype=self._type, device=self.device)
            self._add("source", self._most // longest, longest, 0)
        while len(self._graphs) >= GRAPHS:
            del self._graphs[next(iter(self._graphs))]
        heads = self._config.heads
        seen = self._room[: rows * S * each].view(parts, rows, heads, S, -1)
        # Rows without a sentence have one token: nothing but masks would give NaN.
        tokens = torch.zeros(rows, T or S, dtype=torch.long, device=self.device)
        lengths, source_lengths = (torch.ones(rows, dtype=torch.long, device=self.device) for _ in range(2))
        if name == "source":
            inputs = [tokens, lengths]
            function = partial(self._encode, seen)
        else:
            source_tokens = torch.zeros(rows, S, dtype=torch.long, device=self.device)
            inputs = [tokens, lengths, source_tokens, source_lengths, seen]
            function = partial(self._fill, name == "second")
        self._graphs[name, rows, S, T] = inputs, *self._capture(partial(function, *inputs))

    @cached_property
    def _stream(self) -> torch.cuda.Stream:
        """Where all are captured, for them to share memory."""
        return torch.cuda.Stream(self.device)

    def _capture(self, function: Callable[[], tuple[Tensor, ...]]) -> tuple[Callable[[], None], tuple[Tensor, ...]]:
        """What computes a function's results anew, and these."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self.device):
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                function()  # libraries choose their kernels and workspaces before the capture
            with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
                outputs = function()
        return graph.replay, outputs

    def _encode(self, seen: Tensor, tokens: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
        state = super().encode(tokens, lengths)
        parts = [*state.source.keys, *state.source.values]
        if self._config.copy_head:
            parts.append(state.source.hidden.unflatten(2, (self._config.heads, -1)).transpose(1, 2).to(seen.dtype))
        torch.cat(parts, out=seen.flatten(0, 1))
        return seen, state.length_scores

    def _fill(
        self,
        second: bool,
        tokens: Tensor,
        lengths: Tensor,
        source_tokens: Tensor,
        source_lengths: Tensor,
        seen: Tensor,
    ) -> tuple[Tensor, ...]:
        state = GraphState(seen, source_tokens, source_lengths, seen.new_empty(0))
        return super().fill(tokens, lengths, state, second)

    def _rounded(self, tokens: Tensor) -> tuple[int, int]:
        """Rows and columns of the graph for *tokens*."""
        rows, size = tokens.shape
        return rounded(rows, 2), min(BUCKET * rounded(-(-size // BUCKET), 3), self._config.max_positions)


def rounded(number: int, bits: int) -> int:
    """*number*, or the next one with zeros after so many binary digits: with two 1, 2, 3, 4, 6, 8, 12, 16, 24."""
    step = 1 << max(0, (number - 1).bit_length() - bits)
    return -(-number // step) * step
