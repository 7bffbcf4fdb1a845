"""Time any systems side by side: the Speed columns of the paper's tables, on your machine.

    python scripts/benchmark_latency.py systems.yaml --batch-size 1 16 --out results/latency/quora.json
    python scripts/benchmark_latency.py examples/baselines/paper_sizes.yaml --synthetic quora --out quora.json
    python scripts/benchmark_latency.py data-bin --system a=a.pt --system b=b.pt:precision=bf16 --out latency.json

All systems are loaded into one process and take turns, so that a noisy machine disturbs them alike: compare ratios, not
milliseconds of different runs. Warm, each answers five batches at its turn, after the first once more; cold, one. The
first system is what the others' speed is compared with, and --over names more: --over "Transformer 12-1, CTranslate2
int8, greedy" is what one would put online. A system that fails is reported with its error, and the others go on. Writes
the result as JSON, tables beside it (.md) and, if the file names a reference, scores and a plot of quality over latency
(.png).

A file of systems (see examples/baselines):

    data: data-bin                 # for all systems without their own
    reference: test.tgt            # raw text, for scores; with source: and protocol: of scripts/score.py
    systems:
      - {name: Transformer, group: AR, path: transformer/checkpoint_best.pt, options: {beam: 4}}
      - {name: MIST, path: mist/checkpoint_best.pt}
      - {name: MIST x 3, path: mist/checkpoint_best.pt, options: {decoding: mist, decoding_iterations: 3}}

Keys of a system: name, path or arguments (fairseq-train's, for random weights), group (AR, Semi-NAR, NAR), engine
(fairseq, onnx, ctranslate2, huggingface), precision (fp32, bf16, int8), options (fairseq's names), data, passes.
"""

import argparse
import logging
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
import yaml

from mist_fairseq.experiments.benchmark.floor import Rates
from mist_fairseq.experiments.benchmark.inputs import Entry, check_names, read_entries, read_profile, write_data
from mist_fairseq.experiments.benchmark.latency import MODES, Benchmark, markdown, plot
from mist_fairseq.experiments.evaluation import read_lines
from mist_fairseq.experiments.results import provenance, write_result
from mist_fairseq.scoring.scores import METRICS, PROTOCOLS


def read_system(text: str) -> Entry:
    """Read ``NAME=CHECKPOINT[:OPTION=VALUE,...]``."""
    name, _, rest = text.partition("=")
    path, _, options = rest.partition(":")
    if not path or (options and "=" not in options):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=CHECKPOINT[:OPTION=VALUE,...]")
    pairs = dict(option.split("=", 1) for option in options.split(",") if option)
    keys = {key: pairs.pop(key) for key in ("group", "precision", "engine") if key in pairs}
    return Entry(name, path, options={key: yaml.safe_load(value) for key, value in pairs.items()}, **keys)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("systems", type=Path, help="YAML file, or binarized data for --system")
    metavar = "NAME=CHECKPOINT[:OPTION=VALUE,...]"
    parser.add_argument("--system", type=read_system, action="append", metavar=metavar, help="instead of a file")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these systems of the file")
    parser.add_argument("--over", nargs="+", default=[], metavar="NAME", help="compare speed with these systems, too")
    parser.add_argument("--batch-size", type=int, nargs="+", default=[1], help="(default: 1)")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES[:1], help="(default: warm)")
    parser.add_argument("--sentences", type=int, default=200, help="(default: %(default)s)")
    parser.add_argument("--threads", type=int, help="of the CPU (default: torch's)")
    parser.add_argument("--forced", action="store_true", help="every output as long as its reference")
    parser.add_argument(
        "--synthetic", metavar="PROFILE", help="random data of quora, squad_qg, xsum, long or a YAML file"
    )
    parser.add_argument("--profile", action="store_true", help="where our own systems' time goes")
    parser.add_argument("--floor", action="store_true", help="what our own systems' matrix products take at least")
    parser.add_argument("--no-memory", action="store_true", help="do not load every system once more for its memory")
    parser.add_argument("--metric", default="bleu-4", help="of the plot (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    args = parser.parse_args()
    if min([*args.batch_size, args.sentences]) < 1:
        parser.error("--batch-size and --sentences start at 1")
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore")  # of fairseq's about hydra, for every system anew
    logging.disable(logging.INFO)
    try:
        with tempfile.TemporaryDirectory() as folder:
            result = run(args, Path(folder)) | provenance()
        tables = markdown(result)
        write_result(args.out, result, tables)
        print(tables)
        if result.get("scores"):
            plot(result, args.metric, args.out.with_suffix(".png"))
    except (OSError, ValueError, ImportError) as error:
        sys.exit(f"error: {error}")
    sys.exit(any("error" in content for content in result["described"].values()))


def read_systems(args) -> tuple[list[Entry], dict]:
    """The systems to measure, and the file's settings."""
    if args.system:
        entries, settings = args.system, {}
        for entry in entries:
            entry.data = str(args.systems)
        check_names(entries, "--system")
    else:
        entries, settings = read_entries(args.systems)
    if unknown := {*(args.only or []), *args.over} - {entry.name for entry in entries}:
        raise ValueError(f"{args.systems} has no system {', '.join(sorted(unknown))}")
    if args.only:
        entries = [entry for entry in entries if entry.name in [*args.only, *args.over]]
    return entries, settings


def run(args, folder: Path) -> dict:
    """Everything that was asked for, for JSON."""
    entries, settings = read_systems(args)
    subset = settings.get("subset", "test")
    if args.synthetic:
        write_data(folder, read_profile(args.synthetic), args.sentences, subset)
        for entry in entries:
            entry.folder, entry.data = str(folder), ""
    reference, source, protocol = None, None, settings.get("protocol", "plain")
    if settings.get("reference") and not args.synthetic:  # what is wrong with it is said before anything is timed
        reference = read_lines(settings["reference"])
        source = read_lines(settings["source"]) if settings.get("source") else None
        metrics = settings.get("metrics", [args.metric])
        if protocol not in PROTOCOLS or not set(metrics) <= set(METRICS):
            raise ValueError(
                f"{args.systems}: protocol {protocol!r}, metrics {metrics!r}; expected one of {', '.join(PROTOCOLS)} "
                f"and some of {', '.join(METRICS)}"
            )
    benchmark = Benchmark(entries, subset, forced=args.forced or bool(args.synthetic), over=args.over)
    chosen = benchmark.choose(args.sentences)
    result: dict = {"synthetic": args.synthetic, "runs": []}
    for mode in args.modes:
        before = benchmark.rates(mode) if args.floor else {}
        runs = [benchmark.time(chosen, size, mode) for size in args.batch_size]
        result["runs"] += runs
        if args.floor:
            # The machine may be slower or faster than it was: the mean of both.
            now = benchmark.rates(mode).items()
            rates = {name: Rates(*np.mean([before[name], one], axis=0).tolist()) for name, one in now}
            result.setdefault("rates", {})[mode] = {name: one._asdict() for name, one in rates.items()}
            for size, timed in zip(args.batch_size, runs):
                timed["floor"] = benchmark.floor(chosen, size, rates)
    if args.profile:
        result["parts"] = benchmark.parts(chosen, args.batch_size[0])
    if reference is not None:
        result["scores"] = benchmark.scores(reference, source, protocol, settings.get("metrics"))
    if not args.no_memory:
        result["memory"] = benchmark.memory(chosen, args.batch_size[0])
    return benchmark.describe() | result


if __name__ == "__main__":
    main()
