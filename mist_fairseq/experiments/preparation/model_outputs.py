"""Training data that a trained model had a part in: static mixing (Tables 4 and 5) and distillation."""

import argparse
from collections.abc import Callable
from pathlib import Path

from mist_fairseq.experiments.evaluation import generate
from mist_fairseq.experiments.preparation.pair_files import SIDES, SPLITS, PairFiles, add_output_arguments, run
from mist_fairseq.text.lines import lines_of_file
from mist_fairseq.text.tokenizer import SEP


def static_mix(files: PairFiles, data: Path, hypotheses: list[list[str]]):
    """Write the pairs in *data*, and those for training once more with ``pseudo target [SEP] source`` as source."""
    pairs = _read(data, len(hypotheses))
    _write(files, pairs)
    for (pseudo, *_), (source, target) in zip(hypotheses, pairs["train"]):
        files.add("train", f"{pseudo} {SEP} {source}", target)


def distill(files: PairFiles, data: Path, hypotheses: list[list[str]], originals: bool):
    """Write the pairs in *data*, with the teacher's outputs to each source in the place of its target.

    Sequence-level knowledge distillation (Kim and Rush 2016): a target has fewer ways to be said, and a model without
    autoregression mixes them up less (Gu et al. 2018, Zhou et al. 2020). Empty outputs are left out. *originals* keeps
    the targets beside them.
    """
    pairs = _read(data, len(hypotheses))
    _write(files, pairs if originals else pairs | {"train": []})
    for outputs, (source, _) in zip(hypotheses, pairs["train"]):
        for output in dict.fromkeys(outputs):
            if output:
                files.add("train", source, output)
            else:
                files.skipped["empty output"] += 1


def _read(data: Path, outputs: int) -> dict[str, list[tuple[str, str]]]:
    """Return the pairs by split; ValueError unless there are as many for training as *outputs*."""
    pairs = {}
    for split in SPLITS:
        sources, targets = (list(lines_of_file(data / f"{split}.{side}")) for side in SIDES)
        if len(sources) != len(targets):
            lines = f"{data / split}.src has {len(sources):,} lines and {data / split}.tgt has {len(targets):,}"
            raise ValueError(f"{lines}, expected as many")
        pairs[split] = list(zip(sources, targets))
    if len(pairs["train"]) != outputs:
        numbers = f"{outputs:,} sources with outputs but {len(pairs['train']):,} training pairs"
        raise ValueError(f"{numbers} in {data}: the binarized data must come from this folder")
    return pairs


def _write(files: PairFiles, pairs: dict[str, list[tuple[str, str]]]):
    for split, those in pairs.items():
        for pair in those:
            files.add(split, *pair)


def add_model_arguments(parser: argparse.ArgumentParser, model: str):
    """Add what ``run_with_model`` needs; *model* is what the help calls it."""
    parser.add_argument("--data", type=Path, required=True, help="folder of raw text")
    parser.add_argument("--binarized", required=True, help="folder of its binarized data")
    parser.add_argument("--path", required=True, help=f"checkpoint of {model}")
    add_output_arguments(parser)


def run_with_model(args: argparse.Namespace, options: list[str], prepare: Callable[[PairFiles, list[list[str]]], None]):
    """Let the model answer all training sources, with *options* of fairseq-generate, and *prepare* a folder of it."""

    def with_outputs(files: PairFiles):
        log = Path(f"{args.out}.generate.txt")
        try:
            generation = generate(args.binarized, args.path, "train", log, options)
        except RuntimeError as error:
            raise ValueError(error) from error  # run() makes one line of it
        prepare(files, generation.hypotheses)
        log.unlink()

    run(with_outputs, args.out, args.overwrite)
