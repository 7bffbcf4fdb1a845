"""Sizes, limits and special tokens: what is fixed before a model is built. Needs no torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of the special tokens, under BERT's names."""

    pad: int
    unk: int
    cls: int
    sep: int
    mask: int

    @property
    def never_predicted(self) -> tuple[int, int, int]:
        """Ids that no target contains: [PAD], [CLS] and [MASK]."""
        return self.pad, self.cls, self.mask
