"""Guesses of a target's length before the model has told it, from what it told of earlier sentences."""

import torch
from torch import Tensor


class LengthGuesser:
    """Counts which target lengths went with which source lengths, and guesses the most frequent.

    Wrong guesses cost time, never change an output.

    Args:
        number: of guesses a sentence.
        longest: limits of source and target, special tokens counted.
        shortest: target, likewise.

    Attributes:
        hits, total: how many sentences' lengths were among the guesses, of how many.
    """

    NEARBY = 2  # sources that are longer or shorter by so much count, too

    def __init__(self, number: int, longest: tuple[int, int], shortest: int = 2):
        source, target = longest
        self.number = min(number, target - shortest + 1)
        self.shortest = shortest
        # Before anything is seen, the likeliest target is as long as the source without [CLS].
        lengths = torch.arange(target + 1)
        distance = (lengths + 1 - torch.arange(source + 1)[:, None]).abs()
        self.counts = 1e-3 / (1 + distance)  # (source + 1, target + 1)
        self.counts[:, :shortest] = float("-inf")
        self.hits = self.total = 0

    def guess(self, source_lengths: Tensor) -> Tensor:
        """*Shapes:* (B) -> (B, K), likeliest first."""
        return self.counts[source_lengths].topk(self.number, dim=1).indices

    def learn(self, source_lengths: Tensor, lengths: Tensor):
        """The model said *lengths*. *Shapes:* (B), (B)."""
        for source, target in zip(source_lengths.tolist(), lengths.tolist()):
            self.counts[max(0, source - self.NEARBY) : source + self.NEARBY + 1, target] += 1
            self.counts[source, target] += 1
