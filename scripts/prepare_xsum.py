"""Make summarization data from XSum, as its authors released it or as JSON lines (plain or .gz).

python scripts/prepare_xsum.py --documents bbc-summary-data --split XSum-TRAINING-DEV-TEST-SPLIT-90-5-5.json --out DIR
python scripts/prepare_xsum.py --json-lines train.json validation.json test.json --out DIR
"""

import argparse

from mist_fairseq.experiments.preparation.pair_files import add_output_arguments, run
from mist_fairseq.experiments.preparation.xsum import prepare_documents, prepare_json_lines


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    inputs = parser.add_mutually_exclusive_group(required=True)
    inputs.add_argument("--documents", metavar="FOLDER", help="with a file ID.summary for every article; needs --split")
    inputs.add_argument(
        "--json-lines",
        nargs=3,
        metavar=("TRAIN", "VALID", "TEST"),
        help='files with {"document": ..., "summary": ...} a line',
    )
    parser.add_argument("--split", metavar="JSON", help="the ids in train, validation and test")
    add_output_arguments(parser)
    args = parser.parse_args()
    if bool(args.documents) != bool(args.split):
        parser.error("--documents and --split belong together")
    if args.documents:
        run(lambda files: prepare_documents(files, args.documents, args.split), args.out, args.overwrite)
    else:
        run(lambda files: prepare_json_lines(files, args.json_lines), args.out, args.overwrite)


if __name__ == "__main__":
    main()
