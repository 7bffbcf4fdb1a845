"""Decode a data set in several ways with one checkpoint: BLEU, sentences per second and some outputs.

    python scripts/compare_decodings.py DATA-BIN --path checkpoint_best.pt --subset test --reference test.tgt \\
        --decodings single-pass mist:2 mist:3 mask-predict:3 --out DIR

Writes fairseq-generate's output of each to DIR, and the table as DIR/decodings-SUBSET.json.
"""

import argparse
import json
import random
import sys
from pathlib import Path

from mist_fairseq.evaluation import bleu, generate


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="folder of binarized data")
    parser.add_argument("--path", required=True, help="checkpoint")
    parser.add_argument("--subset", default="test")
    parser.add_argument(
        "--decodings", nargs="+", default=["single-pass", "mist:3", "mask-predict:3"], help="NAME[:ITERATIONS] ..."
    )
    parser.add_argument("--reference", help="raw target file to score against (default: the binarized targets)")
    parser.add_argument("--examples", type=int, default=5, help="outputs to show (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="folder for outputs and the table")
    args, options = parser.parse_known_args()
    options = options or ["--batch-size", "64"]
    rows, generations = [], []
    for name in args.decodings:
        decoding, _, iterations = name.partition(":")
        print(f"decoding {args.subset}: {name}", file=sys.stderr, flush=True)
        log = args.out / f"generate-{args.subset}-{name.replace(':', '-')}.txt"
        decoding_options = ["--decoding", decoding, "--decoding-iterations", iterations or "1"]
        try:
            generation = generate(args.data, args.path, args.subset, log, decoding_options + options)
        except (RuntimeError, ValueError) as error:
            sys.exit(str(error))
        references = generation.references
        if args.reference:
            references = Path(args.reference).read_text(encoding="utf-8").split("\n")[: len(generation.outputs)]
        generations.append(generation)
        rows.append(
            {
                "decoding": decoding,
                "iterations": int(iterations or 1),
                "bleu": round(bleu(generation.outputs, references), 2),
                "sentences_per_second": generation.sentences_per_second,
            }
        )
    table = args.out / f"decodings-{args.subset}.json"
    table.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")

    print(f"\n{'decoding':<14}{'iterations':>11}{'BLEU':>8}{'sentences/s':>13}")
    for row in rows:
        print("{decoding:<14}{iterations:>11}{bleu:>8.2f}{sentences_per_second:>13.1f}".format(**row))
    first = generations[0]
    chosen = sorted(random.Random(1).sample(range(len(first.outputs)), min(args.examples, len(first.outputs))))
    for i in chosen:
        print(f"\nsource     {first.sources[i]}\noutput     {first.outputs[i]}\nreference  {first.references[i]}")


if __name__ == "__main__":
    main()
