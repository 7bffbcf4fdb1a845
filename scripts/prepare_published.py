"""Make the data folder of a recipe from the files that other authors published.

    python scripts/prepare_published.py train.json dev.json test.json --out DIR
    python scripts/prepare_published.py train valid test --pieces --out DIR

The first takes JSON lines, {"src": ..., "tgt": ...}, texts or lists of tokens, to which the authors of MIST
(kongds/MIST) have links for SQuAD, XSum and Quora; SQuAD's src is "answer [SEP] passage". The second takes train.src
beside train.tgt and so on: the preprocessed Quora of DA-Transformer (thu-coai/DA-Transformer), and for SQuAD and XSum
GLGE's org_data, which needs no --pieces unless DA-Transformer's script has made tokenized_train, tokenized_dev,
tokenized_test of it.

Splits, order and texts stay as published. Pieces have lost case and accents: they are for uncased encoders, and
references for scores are better taken from data without pieces.
"""

import argparse

from mist_fairseq.experiments.preparation.pair_files import add_output_arguments, run
from mist_fairseq.experiments.preparation.published import prepare


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for split in ("train", "valid", "test"):
        parser.add_argument(split, help="a file of JSON lines, plain or .gz, or what stands before .src and .tgt")
    parser.add_argument(
        "--pieces", action="store_true", help='texts are pieces of BERT\'s WordPiece, "star ##ling": join them'
    )
    add_output_arguments(parser)
    args = parser.parse_args()
    paths = [args.train, args.valid, args.test]
    run(lambda files: prepare(files, paths, args.pieces), args.out, args.overwrite)


if __name__ == "__main__":
    main()
