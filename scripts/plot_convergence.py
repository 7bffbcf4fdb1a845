"""Draw a validation score over updates and over training time, for any number of trainings.

    python scripts/plot_convergence.py --run "no mixing=train-nomix.log" --run "MIST=train-mist.log" \\
        --metric rouge_l --out convergence.png --json convergence.json

A log is what fairseq-train --log-format json prints (nohup ... > train.log 2>&1) or writes with --log-file. A resumed
training's logs are given in order: NAME=first.log,second.log. Prints each run's best score, and when it reaches the
best of the first run.
"""

import argparse
import sys
from pathlib import Path

from mist_fairseq.experiments.results import write_json
from mist_fairseq.experiments.training_log import TrainingLog, draw, summary, table


def named_run(text: str) -> tuple[str, list[str]]:
    name, _, paths = text.partition("=")
    if not name or not paths:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=LOG[,LOG...]")
    return name, paths.split(",")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=named_run, action="append", required=True, metavar="NAME=LOG[,LOG...]")
    parser.add_argument("--metric", default="bleu", help="for instance bleu, rouge_l, loss (default: %(default)s)")
    parser.add_argument("--out", required=True, help="figure to write: .png, .pdf or .svg")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args()
    try:
        curves = [TrainingLog(paths).curve(name, args.metric) for name, paths in args.run]
        rows = summary(curves, args.metric)
        print(table(rows, args.metric))
        if args.json:
            write_json(args.json, {"metric": args.metric, "runs": rows})
        draw(curves, args.metric, args.out)
    except (OSError, ValueError, ImportError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
