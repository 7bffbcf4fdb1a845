"""Static mixing (Tables 4 and 5): pseudo targets of a trained model, mixed into the training data once and for all."""

from pathlib import Path

from mist_fairseq.experiments.preparation.pair_files import SIDES, SPLITS, PairFiles
from mist_fairseq.text.lines import lines_of_file
from mist_fairseq.text.tokenizer import SEP


def static_mix(files: PairFiles, data: Path, pseudo_targets: list[str]):
    """Write the pairs in *data*, and those for training once more with ``pseudo target [SEP] source`` as source."""
    texts = {split: [list(lines_of_file(data / f"{split}.{side}")) for side in SIDES] for split in SPLITS}
    for split, (sources, targets) in texts.items():
        if len(sources) != len(targets):
            lines = f"{data / split}.src has {len(sources):,} lines and {data / split}.tgt has {len(targets):,}"
            raise ValueError(f"{lines}, expected as many")
        for source, target in zip(sources, targets):
            files.add(split, source, target)
    if files.kept["train"] != len(pseudo_targets):
        numbers = f"{len(pseudo_targets):,} pseudo targets but {files.kept['train']:,} training pairs"
        raise ValueError(f"{numbers} in {data}: the binarized data must come from this folder")
    for pseudo, source, target in zip(pseudo_targets, *texts["train"]):
        files.add("train", f"{pseudo} {SEP} {source}", target)
