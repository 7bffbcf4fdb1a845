"""Static mixing (Tables 4 and 5): pseudo targets of a trained model, mixed into the training data once and for all."""

from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

from mist_fairseq.data.dictionary import SEP
from mist_fairseq.preparation.files import SIDES, SPLITS, PairFiles, open_text


def static_mix(files: PairFiles, data: Path, pseudo_targets: list[str]):
    """Write the originals and, for training, each once more as ``Y_p [SEP] X`` with the same target.

    Args:
        files: where to.
        data: folder of raw text.
        pseudo_targets: a trained model's output for each training source.

    Raises:
        ValueError: not as many pseudo targets as training pairs, or unequal numbers of lines.
    """
    for split in SPLITS:
        for source, target in _pairs(data, split):
            files.add(split, source, target)
    if files.kept["train"] != len(pseudo_targets):
        raise ValueError(
            f"{len(pseudo_targets):,} pseudo targets but {files.kept['train']:,} training pairs in {data}: "
            "the binarized data must come from this folder"
        )
    for pseudo, (source, target) in zip(pseudo_targets, _pairs(data, "train")):
        files.add("train", f"{pseudo} {SEP} {source}", target)


def _pairs(data: Path, split: str) -> Iterator[tuple[str, str]]:
    source_path, target_path = (data / f"{split}.{side}" for side in SIDES)
    with open_text(source_path) as sources, open_text(target_path) as targets:
        for source, target in zip_longest(sources, targets):
            if source is None or target is None:
                raise ValueError(f"{source_path} and {target_path} have different numbers of lines")
            yield source.removesuffix("\n"), target.removesuffix("\n")
