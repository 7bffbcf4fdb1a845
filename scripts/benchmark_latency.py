"""Time checkpoints side by side: MIST costs nothing at inference.

    python scripts/benchmark_latency.py DATA-BIN --out latency.json \\
        --system "no mixing=a/checkpoint_best.pt" --system "MIST=b/checkpoint_best.pt" \\
        --system "MIST x 3=b/checkpoint_best.pt:decoding=mist,decoding_iterations=3"

A system is NAME=CHECKPOINT[:OPTION=VALUE,...] with options of the task. All systems take turns at each batch, so that
a noisy machine disturbs them alike: compare ratios, not milliseconds of different runs.
"""

import argparse
import json
import sys
from pathlib import Path

from mist_fairseq.benchmark import System, measure
from mist_fairseq.evaluation import provenance


def read_system(text: str) -> System:
    """NAME=CHECKPOINT[:OPTION=VALUE,...]"""
    name, _, rest = text.partition("=")
    path, _, options = rest.partition(":")
    if not path or (options and "=" not in options):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=CHECKPOINT[:OPTION=VALUE,...]")
    pairs = dict(option.split("=", 1) for option in options.split(",") if option)
    return System(name, path, {key: int(value) if value.isdigit() else value for key, value in pairs.items()})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="folder of binarized data")
    parser.add_argument("--system", type=read_system, action="append", required=True, metavar="NAME=CHECKPOINT")
    parser.add_argument("--subset", default="test", help="(default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=1, help="(default: %(default)s)")
    parser.add_argument("--sentences", type=int, default=200, help="(default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    args = parser.parse_args()
    if len({system.name for system in args.system}) < len(args.system):
        sys.exit("error: two systems have the same name")
    try:
        result = measure(args.system, args.data, args.subset, batch_size=args.batch_size, sentences=args.sentences)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    result.update(provenance())
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"{'':<24}{'ms mean':>9}{'median':>9}{'p90':>9}{'tokens':>8}{'passes':>8}  times as fast as the first")
    for name, found in result["systems"].items():
        ms, (low, high) = found["milliseconds"], found["speed_up_interval"]
        print(
            f"{name:<24}{ms['mean']:>9.2f}{ms['median']:>9.2f}{ms['p90']:>9.2f}{found['tokens_per_sentence']:>8.1f}"
            f"{found['passes_per_sentence']:>8.2f}  {found['speed_up']:.2f} ({low:.2f} - {high:.2f})"
        )


if __name__ == "__main__":
    main()
