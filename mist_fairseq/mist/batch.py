"""What training hands from part to part: a batch, and what is predicted of it.

Dimensions as in ``mist.encoder``.
"""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


@dataclass
class Batch:
    """Sentence pairs. A GPU would wait if it had to read the flat positions off the lengths; the collater knows them.

    Attributes:
        src_tokens: ``[CLS] X [SEP]``, right-padded, *Shape:* (B, S).
        src_lengths: *Shape:* (B).
        target_tokens: ``Y [SEP]``, right-padded, *Shape:* (B, T).
        target_lengths: *Shape:* (B).
        ids: of the sentences, for the random choices of glancing, *Shape:* (B).
        src_index, target_index, mixed_index: flat positions to compute in source, target and mixed source, *Shapes:*
            (N_S), (N), (N_M).
    """

    src_tokens: Tensor
    src_lengths: Tensor
    target_tokens: Tensor
    target_lengths: Tensor
    ids: Tensor
    src_index: Tensor
    target_index: Tensor
    mixed_index: Tensor

    def targets(self) -> Tensor:
        """The tokens of all targets in a row. -> (N)."""
        return self.target_tokens.flatten().index_select(0, self.target_index)


class Guess(NamedTuple):
    """What a pass predicts.

    Attributes:
        tokens: the text, right-padded, *Shape:* (B, its longest).
        lengths: of the texts, *Shape:* (B).
        seen: what is predicted in place of each target token, *Shape:* (B, T).
        places: the position of each target token, *Shape:* (B, T).
    """

    tokens: Tensor
    lengths: Tensor
    seen: Tensor
    places: Tensor
