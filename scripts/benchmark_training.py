"""Time training: samples a second, the share of the machine's arithmetic, peak memory, and what mixing costs.

    python scripts/benchmark_training.py --arch mist_base --profile quora --batch-size 64 --out training.json
    python scripts/benchmark_training.py --arch mist_base --encoder-layers 6 --encoder-embed-dim 384 \\
        --encoder-ffn-embed-dim 1536 --precision fp32 bf16 --out minilm.json

Updates by fairseq's own trainer on random sentences, with the MIST loss and without in turn. On a CPU the allocator's
settings matter: `source scripts/setup_env.sh` first. Everything else on the command line goes to fairseq-train. Writes
the result as JSON and tables beside it (.md).
"""

import argparse
import logging
import shlex
import sys
import tempfile
import warnings
from pathlib import Path

import torch

from mist_fairseq.experiments.benchmark.inputs import Entry, read_profile
from mist_fairseq.experiments.benchmark.measuring import machine
from mist_fairseq.experiments.benchmark.training import markdown, measure_memory, time_training, write_batches
from mist_fairseq.experiments.results import provenance, write_result


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--profile", default="quora", help="quora, squad_qg, xsum, long or a YAML file (default: quora)"
    )
    precisions = {"nargs": "+", "default": ["fp32"], "choices": ["fp32", "bf16"]}
    parser.add_argument("--precision", **precisions, help="(default: fp32)")
    parser.add_argument("--batch-size", type=int, nargs="+", default=[64], help="(default: 64)")
    parser.add_argument("--updates", type=int, default=10, help="of each arm (default: %(default)s)")
    parser.add_argument("--warm-up", type=int, default=2, help="updates before the clock counts (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="of the CPU (default: torch's)")
    parser.add_argument("--no-memory", action="store_true", help="do not train anew for the peak memory")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    args, arguments = parser.parse_known_args()
    if min([*args.batch_size, args.updates]) < 1 or args.warm_up < 0:
        parser.error("--batch-size and --updates start at 1, --warm-up at 0")
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore")  # of fairseq's about hydra
    logging.disable(logging.INFO)
    try:
        profile = read_profile(args.profile)
        runs = [run(args, arguments, profile, p, size) for p in args.precision for size in args.batch_size]
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    result = machine() | {"arguments": arguments, "profile": args.profile, "runs": runs} | provenance()
    tables = markdown(result)
    write_result(args.out, result, tables)
    print(tables)


def run(args, arguments: list[str], profile: dict, precision: str, batch_size: int) -> dict:
    """One precision and batch size, for JSON."""
    with tempfile.TemporaryDirectory() as folder:
        write_batches(Path(folder), profile, batch_size)
        entry = Entry("trained", arguments=shlex.join(arguments), precision=precision, data=folder)
        result = time_training(entry, args.updates, args.warm_up)
        if not args.no_memory:
            result["memory"] = measure_memory(entry)
    return result


if __name__ == "__main__":
    main()
