"""Make the data folder of a recipe from a table of your own: TSV, CSV, JSON lines or Parquet, also .gz and .zst.

    python scripts/prepare_pairs.py --data pairs.tsv --source-field query --target-field rewrite --out DIR

TSV and CSV begin with a line of column names. Validation and test set are drawn by --seed. All rows with the same
--group-field (a user, a document), or without one with the same source in any case, come into the same split, so that
no test source is among the training data; --at-random draws row by row.

Equal pairs are kept once. counts.json, which is also printed, has what was left out and why, the lengths, and how much
of the other splits is in the training set.
"""

import argparse
import re

from mist_fairseq.experiments.preparation.pair_files import add_output_arguments, run
from mist_fairseq.experiments.preparation.pairs import MOST, SHARE, Columns, Limits, prepare
from mist_fairseq.text.tokenizer_files import load_tokenizer


def size(text: str) -> float:
    if re.fullmatch(r"0*[1-9]\d*", text):
        return int(text)
    if re.fullmatch(r"0?\.\d*[1-9]\d*", text):
        return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is neither a number from 1 nor a share such as 0.05")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, metavar="FILE", help="the table; its name tells the format")
    parser.add_argument(
        "--source-field",
        required=True,
        nargs="+",
        action="extend",
        metavar="COLUMN",
        help="what the model reads; several, such as an answer and its passage, with [SEP] in between",
    )
    parser.add_argument("--target-field", required=True, metavar="COLUMN", help="what the model writes")
    together = parser.add_mutually_exclusive_group()
    together.add_argument("--group-field", metavar="COLUMN", help="rows that have it in common stay together")
    together.add_argument("--at-random", action="store_true", help="draw row by row; a source may be in several splits")
    for name in ("valid", "test"):
        many = f"pairs, or a share below 1 of all (default: {SHARE}, at most {MOST:,})"
        parser.add_argument(f"--{name}", type=size, metavar="N", help=many)
    parser.add_argument("--seed", type=int, default=1, help="of the draw (default: %(default)s)")
    parser.add_argument("--max-source", type=int, metavar="N", help="leave out pairs with a longer source")
    parser.add_argument("--max-target", type=int, metavar="N", help="leave out pairs with a longer target")
    parser.add_argument(
        "--unit", choices=("words", "characters"), default="words", help="of lengths (default: %(default)s)"
    )
    parser.add_argument("--vocab", metavar="PATH", help="a vocabulary or its folder: lengths are in tokens of it")
    add_output_arguments(parser)
    args = parser.parse_args()
    columns = Columns(args.source_field, args.target_field, args.group_field)
    draw = {"valid": args.valid, "test": args.test, "seed": args.seed, "at_random": args.at_random}

    def prepare_pairs(files):
        limits = Limits(args.max_source, args.max_target, args.unit)
        if args.vocab:
            limits = Limits(args.max_source, args.max_target, "tokens", load_tokenizer(args.vocab))
        prepare(files, args.data, columns, **draw, limits=limits)

    run(prepare_pairs, args.out, args.overwrite)


if __name__ == "__main__":
    main()
