"""Make answer-aware question generation data from SQuAD v1.1: "answer [SEP] passage" to the question.

    python scripts/prepare_squad_qg.py --train train-v1.1.json --dev dev-v1.1.json --out DIR

trains on the official training file and divides the official dev file at random into validation and test halves (Zhao
et al. 2018). For the articles of Du et al. 2017 add --split-lists FOLDER, with their doclist-{train,dev,test}.txt.
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
