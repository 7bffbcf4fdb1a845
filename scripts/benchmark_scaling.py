"""Time our own models as work grows: over source length, target length, batch size and iterations.

    python scripts/benchmark_scaling.py --out scaling.json
    python scripts/benchmark_scaling.py --arguments "--task mist --arch mist_base" --precision bf16 --out base-bf16.json

One number changes at a time, all values and models in turn: target 16 for source lengths, source 32 for target
lengths, 14 and 14 for batch sizes and iterations. Random weights and sentences, outputs of prescribed lengths. Writes
the result as JSON, and beside it tables with the lines of least squares and what takes most where (.md) and a plot
(.png).
"""

import argparse
import logging
import sys
import tempfile
import warnings
from pathlib import Path

import torch

from mist_fairseq.engines import PRECISIONS, engines
from mist_fairseq.experiments.benchmark import scaling
from mist_fairseq.experiments.benchmark.measuring import machine
from mist_fairseq.experiments.results import provenance, write_result

MODELS = ["--task mist --arch mist_small", "--task mist --arch mist_base"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    models = {"action": "append", "metavar": '"--task mist --arch ..."'}
    parser.add_argument("--arguments", **models, help="a model; may be repeated (default: mist_small and mist_base)")
    parser.add_argument("--precision", default="fp32", choices=PRECISIONS, help="(default: %(default)s)")
    parser.add_argument("--accelerate", default="auto", choices=["auto", *engines()], help="(default: %(default)s)")
    for name, kind in scaling.KINDS.items():
        shown = " ".join(map(str, kind.values))
        numbers = {"type": int, "nargs": "*", "default": kind.values, "metavar": "N"}
        parser.add_argument(f"--{name}", **numbers, help=f"none leaves the axis out (default: {shown})")
    parser.add_argument("--repeats", type=int, default=15, help="of each value (default: %(default)s)")
    parser.add_argument("--warm-up", type=int, default=1, help="repeats before the clock counts (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="of the CPU (default: torch's)")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    args = parser.parse_args()
    if args.repeats < 1 or args.warm_up < 0:
        parser.error(f"--repeats starts at 1, --warm-up at 0, got {args.repeats} and {args.warm_up}")
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore")  # of fairseq's about hydra, for every model anew
    logging.disable(logging.INFO)
    try:
        with tempfile.TemporaryDirectory() as folder:
            result = run(args, Path(folder)) | provenance()
        tables = scaling.markdown(result)
        write_result(args.out, result, tables)
        print(tables)
        scaling.plot(result, args.out.with_suffix(".png"))
    except (OSError, ValueError, ImportError) as error:
        sys.exit(f"error: {error}")


def run(args, folder: Path) -> dict:
    """Everything that was asked for, for JSON."""
    axes = scaling.make_axes({name: getattr(args, name) for name in scaling.KINDS})
    entries = scaling.make_entries(args.arguments or MODELS, folder, args.precision, args.accelerate)
    scaling.write_works(folder, axes)
    systems = scaling.load_systems(entries, axes)
    measured = [scaling.measure(systems, axis, args.repeats, args.warm_up) for axis in axes]
    return machine() | {"described": scaling.describe_systems(systems), "axes": measured}


if __name__ == "__main__":
    main()
