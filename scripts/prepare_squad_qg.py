"""Make answer-aware question generation data from SQuAD v1.1: "answer [SEP] passage" to the question.

    python scripts/prepare_squad_qg.py --train train-v1.1.json --dev dev-v1.1.json --split-lists FOLDER --out DIR
    python scripts/prepare_squad_qg.py --train train-v1.1.json --dev dev-v1.1.json --out DIR

The first splits as Du et al. 2017, whose repository (xinyadu/nqg) has the FOLDER: articles of the official training
file are for training or testing, the official dev file for validation. So does GLGE (Liu et al. 2020), from which the
paper has autoregressive rows of its Table 1. The second trains on the official training file and divides the
questions of the official dev file at random into validation and test halves: Zhou et al. 2017, and one of the two
splits of Zhao et al. 2018, which the paper's text names. examples/squad_qg/README.md tells how this is known.
"""

import argparse

from mist_fairseq.experiments.preparation.pair_files import add_output_arguments, run
from mist_fairseq.experiments.preparation.squad_qg import prepare


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", required=True, metavar="JSON", help="train-v1.1.json")
    parser.add_argument("--dev", required=True, metavar="JSON", help="dev-v1.1.json")
    parser.add_argument(
        "--split-lists",
        nargs="+",
        default=[],
        metavar="PATH",
        help="folder with doclist-{train,dev,test}.txt, or three such files in this order: one article title a line",
    )
    parser.add_argument("--seed", type=int, default=1, help="of the random halves (default: %(default)s)")
    add_output_arguments(parser)
    args = parser.parse_args()
    run(lambda files: prepare(files, args.train, args.dev, args.split_lists, args.seed), args.out, args.overwrite)


if __name__ == "__main__":
    main()
