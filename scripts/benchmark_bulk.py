"""Time a file of many rows through ``mist generate``: rows a second, and what a million cost, by workers.

    python scripts/benchmark_bulk.py released-onnx --texts test.src --workers 1 2 --precision fp32 int8 \\
        --rows 20000 --price-per-hour 0.1 --out bulk.json

N workers of one thread each take turns with one of N threads, for every model, precision and engine. Writes the result
as JSON and a table beside it (.md).
"""

import argparse
import itertools
import sys
from pathlib import Path

from mist_fairseq.experiments.benchmark.bulk import Setup, arrangements, markdown, measure
from mist_fairseq.experiments.benchmark.serving import machine
from mist_fairseq.experiments.evaluation import read_texts
from mist_fairseq.experiments.results import provenance, write_result
from mist_fairseq.generate.decoding import Decoding


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL", help="what mist export wrote, --to onnx or --to folder")
    parser.add_argument("--texts", type=Path, required=True, help="file, one text a line, taken over and over again")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="(default: 1 2)")
    parser.add_argument("--precision", nargs="+", default=["fp32"], help="(default: fp32)")
    parser.add_argument("--accelerate", nargs="+", default=["auto"], help="(default: auto)")
    parser.add_argument("--decoding", default="single-pass", help="(default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=64, help="(default: %(default)s)")
    parser.add_argument("--rows", type=int, default=20_000, help="of the file (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each (default: %(default)s)")
    parser.add_argument("--price-per-hour", type=float, default=0.0, help="of the machine, in any currency")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    args = parser.parse_args()
    if min([*args.workers, args.rows, args.rounds, args.batch_size]) < 1 or not args.price_per_hour >= 0:
        parser.error("--workers, --rows, --rounds and --batch-size start at 1, --price-per-hour at 0")
    try:
        texts, decoding = read_texts(args.texts), Decoding(args.decoding)
        every = itertools.product(args.models, args.precision, args.accelerate, arrangements(args.workers))
        setups = [Setup(*each) for each in every]
        runs = measure(setups, texts, args.rows, args.rounds, args.batch_size, decoding)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    shown = {"rows": args.rows, "texts": len(texts), "rounds": args.rounds, "batch_size": args.batch_size}
    shown |= {"decoding": args.decoding, "price_per_hour": args.price_per_hour}
    result = shown | machine() | {"runs": runs} | provenance()
    tables = markdown(result)
    write_result(args.out, result, tables)
    print(tables)


if __name__ == "__main__":
    main()
