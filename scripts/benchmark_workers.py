"""Time many texts on one machine, by several processes of few threads and by one of many.

    python scripts/benchmark_workers.py released-onnx --texts test.src --workers 1x2 2x1 --precision int8 \\
        --batch-size 1 16 64 --out workers.json

The arrangements, PROCESSESxTHREADS, take turns. Writes the result as JSON and a table beside it (.md).
"""

import argparse
import sys
from pathlib import Path

from mist_fairseq.experiments.benchmark.serving import machine
from mist_fairseq.experiments.benchmark.workers import Workers, markdown, measure
from mist_fairseq.experiments.evaluation import read_texts
from mist_fairseq.experiments.results import provenance, write_result


def read_workers(text: str) -> Workers:
    """Read ``PROCESSESxTHREADS``."""
    try:
        processes, threads = map(int, text.split("x"))
        return Workers(processes, threads)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not PROCESSESxTHREADS, such as 2x1") from None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="what scripts/export.py --to onnx wrote")
    parser.add_argument("--texts", type=Path, required=True, help="file, one text a line")
    parser.add_argument("--workers", type=read_workers, nargs="+", required=True, metavar="PROCESSESxTHREADS")
    parser.add_argument("--batch-size", type=int, nargs="+", default=[1, 16, 64], help="(default: 1 16 64)")
    parser.add_argument("--precision", choices=["fp32", "int8"], default="fp32", help="(default: %(default)s)")
    parser.add_argument("--accelerate", choices=["auto", "native", "onnxruntime"], default="auto")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each turn (default: 5)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    args = parser.parse_args()
    if min([*args.batch_size, args.rounds]) < 1 or args.seconds <= 0:
        parser.error("--batch-size and --rounds start at 1, --seconds above 0")
    try:
        texts = read_texts(args.texts)
        engine = {"precision": args.precision, "accelerate": args.accelerate}
        given = (args.folder, args.workers, texts, args.batch_size, args.seconds, args.rounds)
        runs = measure(*given, **engine)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    shown = {"model": Path(args.folder).name, "texts": len(texts), "seconds": args.seconds, "rounds": args.rounds}
    result = shown | engine | machine() | {"runs": runs} | provenance()
    tables = markdown(result)
    write_result(args.out, result, tables)
    print(tables)


if __name__ == "__main__":
    main()
