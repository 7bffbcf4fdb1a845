"""Write results/README.md: the paper's tables with our figures beside them.

    python scripts/report.py [--results DIR] [--check]

Reads DIR/paper.json and what scripts/compare_decodings.py wrote with the labels task, arm, init, weights, data, updates
and training, copied to DIR/runs/NAME.json. DIR/findings.md comes first; DIR/convergence-*, latency-*.json,
significance-*.json and *.md are shown or linked. With --check nothing is written, and the exit status is 1 if
DIR/README.md is not up to date.
"""

import argparse
import sys
from pathlib import Path

from mist_fairseq.experiments.report import check, write


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    results = Path(__file__).parent.parent / "results"
    parser.add_argument("--results", type=Path, default=results, metavar="DIR", help="(default: the repository's)")
    parser.add_argument("--check", action="store_true", help="only tell whether DIR/README.md is up to date")
    args = parser.parse_args()
    try:
        if args.check:
            check(args.results)
        else:
            print(write(args.results))
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
