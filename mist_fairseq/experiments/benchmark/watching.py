"""Engines around a model's own engine, which clock and watch its passes."""

from typing import Any

import torch
from torch import Tensor

from mist_fairseq.engines.pytorch import PyTorchEngine
from mist_fairseq.experiments.benchmark.measuring import milliseconds

PARTS = ["source pass", "length", "target pass", "overhead"]


class _Around:
    """An engine that leaves all to another one."""

    def __init__(self, engine: Any):
        self.engine = engine

    def asarray(self, values: Any) -> Any:
        return self.engine.asarray(values)

    def encode(self, tokens: Any, lengths: Any) -> Any:
        return self.engine.encode(tokens, lengths)

    def fill(self, tokens: Any, lengths: Any, state: Any) -> tuple[Any, Any]:
        return self.engine.fill(tokens, lengths, state)


class TimedEngine(_Around):
    """Adds up the milliseconds of its passes in ``spent``, by ``PARTS``; a batch's lengths are scored once."""

    def __init__(self, engine: Any):
        super().__init__(engine)
        self.spent = dict.fromkeys(PARTS, 0.0)

    def encode(self, tokens, lengths):
        """Encode sources; see ``generate.decoding.Engine``."""
        elapsed, state = milliseconds(self.engine.encode, tokens, lengths)
        if not self.spent["source pass"]:
            self.spent["length"], _ = milliseconds(lambda: state.length_scores)
        self.spent["source pass"] += elapsed
        return state

    def fill(self, tokens, lengths, state):
        """Predict every [MASK]; see ``generate.decoding.Engine``."""
        elapsed, filled = milliseconds(self.engine.fill, tokens, lengths, state)
        self.spent["target pass"] += elapsed
        return filled


class WatchedEngine(_Around):
    """Keeps of the first sentence the whole output of each pass, special tokens included, *Shape:* (T)."""

    def __init__(self, engine: Any):
        super().__init__(engine)
        self.outputs: list[Tensor] = []

    def fill(self, tokens, lengths, state):
        """Predict every [MASK]; see ``generate.decoding.Engine``."""
        filled, scores = self.engine.fill(tokens, lengths, state)
        self.outputs.append(torch.as_tensor(filled[0]).cpu())
        return filled, scores


class Margins(WatchedEngine):
    """Watches plain PyTorch decide: differences between the two likeliest lengths' and tokens' logits.

    Attributes:
        length: difference of the last sentence's lengths.
        passes: differences in each of its passes by position, infinite where nothing was masked, *Shape:* (T).
    """

    def __init__(self, engine: PyTorchEngine):
        super().__init__(engine)
        self.length, self.passes = 0.0, list[Tensor]()
        lengths, logits = engine.length_logits, engine.token_logits

        def length_logits(source):
            scores = lengths(source)
            best = scores[0].topk(2).values
            self.length, self.passes = float(best[0] - best[1]), []
            return scores

        def token_logits(hidden):
            scores = logits(hidden)
            never = torch.tensor(engine.special.never_predicted, device=scores.device)
            best = scores.float().index_fill(-1, never, float("-inf")).topk(2, dim=-1).values
            self._rows = best[:, 0] - best[:, 1]
            return scores

        engine.length_logits, engine.token_logits = length_logits, token_logits

    def fill(self, tokens, lengths, state):
        """Predict every [MASK]; see ``generate.decoding.Engine``."""
        filled = super().fill(tokens, lengths, state)
        masked = tokens[0] == self.engine.special.mask
        rows = self._rows if len(self._rows) == masked.sum() else self._rows[masked]
        self.passes.append(torch.full(masked.shape, float("inf")).masked_scatter(masked.cpu(), rows.cpu()))
        return filled
