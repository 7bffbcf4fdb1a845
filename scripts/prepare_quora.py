"""Make paraphrase data from Quora's question pairs: the duplicates.

    python scripts/prepare_quora.py quora_duplicate_questions.tsv --out DIR

The default sizes are those in which the 50K split after Gupta et al. 2018 is handed around. There is no list of its
pairs: figures on another draw compare only roughly.

--split disjoint, the default, puts no question into two splits. --split published draws pair by pair, as that split
looks: training has 46 % of its test sources, and of 37 % of its test pairs both questions. Use it to stand beside
published figures. Both count the overlap.
"""

import argparse

from mist_fairseq.experiments.preparation.pair_files import add_output_arguments, run
from mist_fairseq.experiments.preparation.quora import DRAWS, prepare


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tsv", help="quora_duplicate_questions.tsv")
    for split, size in (("train", 47_000), ("valid", 3_000), ("test", 2_000)):
        parser.add_argument(f"--{split}-size", type=int, default=size, help="number of pairs (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the draw (default: %(default)s)")
    parser.add_argument("--split", choices=DRAWS, default="disjoint", help="(default: %(default)s)")
    add_output_arguments(parser)
    args = parser.parse_args()
    sizes = args.train_size, args.valid_size, args.test_size
    run(lambda files: prepare(files, args.tsv, *sizes, args.seed, args.split), args.out, args.overwrite)


if __name__ == "__main__":
    main()
