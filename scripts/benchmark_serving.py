"""Time the server under load, with batching and without, and check that everyone gets their own answer.

    python scripts/benchmark_serving.py released-onnx --out results/serving/quora.json
    python scripts/benchmark_serving.py released --texts test.src --decoding mist --concurrency 1 64 --out serving.json
    python scripts/benchmark_serving.py released-onnx --out serving.json --server --threads 1 --max-wait 10

Starts both servers on free ports; clients in this process take turns at them, each with one request on its way at a
time. Answers are compared with what the same text gets alone. Writes the result as JSON and a table beside it (.md).
Everything after --server goes to python -m mist_fairseq.serve. Ends with status 1 if a request was lost or answered
with another's text.
"""

import argparse
import logging
import random
import sys
from pathlib import Path

from mist_fairseq.experiments.benchmark.serving import ARMS, machine, markdown, measure, server_command
from mist_fairseq.experiments.evaluation import read_texts
from mist_fairseq.experiments.results import provenance, write_result
from mist_fairseq.generate.decoding import DECODINGS

_WORDS = """how what why where when who can do does is the a best way to learn guitar english computer science money
weight phone india school music language book job write read speak fast good in of for and my your from with""".split()


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("folder", metavar="DIR", help="a model, as the server takes it")
    parser.add_argument("--texts", type=Path, help="file, one text a line (default: 500 made of random words)")
    parser.add_argument("--limit", type=int, default=500, help="take so many lines (default: %(default)s)")
    parser.add_argument("--decoding", default="single-pass", choices=DECODINGS, help="(default: %(default)s)")
    parser.add_argument("--iterations", type=int, help="of the decoding (default: the server's)")
    clients = {"type": int, "nargs": "+", "default": [1, 4, 16, 64], "metavar": "N"}
    parser.add_argument("--concurrency", **clients, help="clients (default: 1 4 16 64)")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement (default: 10)")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--server", nargs=argparse.REMAINDER, default=[], help="options of the server")
    args = parser.parse_args()
    if min([*args.concurrency, args.limit]) < 1 or args.seconds <= 0:
        parser.error("--concurrency and --limit start at 1, --seconds above 0")
    logging.disable(logging.INFO)
    try:
        result = run(args) | machine() | provenance()
        tables = markdown(result)
        write_result(args.out, result, tables)
        print(tables)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    for load in result["runs"]:
        for example in load["examples"]:
            print(f"{load['server']}, {load['concurrency']} clients: {example}", file=sys.stderr)
    sys.exit(any(load["lost"] or load["swapped"] for load in result["runs"]))


def run(args) -> dict:
    """Everything that was asked for, for JSON."""
    if args.texts:
        texts = read_texts(args.texts)[: args.limit]
    else:
        rng = random.Random(0)
        texts = [" ".join(rng.choices(_WORDS, k=rng.randint(5, 15))) + "?" for _ in range(args.limit)]
    options = {"decoding": args.decoding}
    if args.iterations is not None:
        options["iterations"] = args.iterations
    commands = {name: server_command(args.folder, *args.server, *arm) for name, arm in ARMS.items()}
    described = {
        "model": Path(args.folder).resolve().name,
        "texts": len(texts),
        "options": options,
        "server_options": args.server,
        "seconds": args.seconds,
    }
    return described | {"runs": measure(commands, texts, options, args.concurrency, args.seconds)}


if __name__ == "__main__":
    main()
