"""Static mixing (Tables 4 and 5): pseudo targets of a trained model, mixed into the training data once and for all."""

from pathlib import Path

from mist_fairseq.experiments.preparation.files import SIDES, SPLITS, PairFiles
from mist_fairseq.text.lines import lines_of_file
from mist_fairseq.text.tokenizer import SEP


def static_mix(files: PairFiles, data: Path, pseudo_targets: list[str]):
    """Write the originals and, for training, each once more as ``Y_p [SEP] X`` with the same target.

    Args:
        files: where to.
        data: folder of raw text.
        pseudo_targets: a trained model's output for each training source.

    Raises:
        ValueError: not as many pseudo targets as training pairs, unequal numbers of lines, or one that is not UTF-8.
    """
    texts = {split: [list(lines_of_file(data / f"{split}.{side}")) for side in SIDES] for split in SPLITS}
    for split, (sources, targets) in texts.items():
        if len(sources) != len(targets):
            raise ValueError(
                f"{data / split}.src has {len(sources):,} lines and {data / split}.tgt has {len(targets):,}, expected "
                "as many"
            )
        for source, target in zip(sources, targets):
            files.add(split, source, target)
    if files.kept["train"] != len(pseudo_targets):
        raise ValueError(
            f"{len(pseudo_targets):,} pseudo targets but {files.kept['train']:,} training pairs in {data}: "
            "the binarized data must come from this folder"
        )
    for pseudo, source, target in zip(pseudo_targets, *texts["train"]):
        files.add("train", f"{pseudo} {SEP} {source}", target)
