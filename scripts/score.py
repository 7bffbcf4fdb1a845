"""Score outputs against the raw target file, as the paper does.

    python scripts/score.py --protocol quora --source test.src --reference test.tgt OUTPUT [NAME=OUTPUT ...]

An OUTPUT is a text file with one output a line, or what fairseq-generate printed. With several, each is compared with
the first by paired bootstrap. Protocols say what is done to the texts and which metrics are computed:

    squad_qg, quora   lower, words, rejoin-quora, collapse-repeats; bleu-1 ... bleu-4, meteor15, rouge-l, sacrebleu;
                      outputs with equal sources are one, with several references
    xsum              lower, words, collapse-repeats, rejoin-xsum; rouge155-1, rouge155-2, rouge155-l, sacrebleu
    plain             lower; rouge-l, sacrebleu

sacrebleu is what its command line gives with -lc: line by line, without steps. meteor15 needs Java and rouge155 Perl;
where they are missing the other scores still come, and the exit status is 1.
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from mist_fairseq.evaluation import read_lines, read_outputs
from mist_fairseq.scoring.scores import METRICS, PLAIN, PROTOCOLS, Scores, score
from mist_fairseq.scoring.steps import STEPS

PROTOCOLS = {**PROTOCOLS, "plain": PLAIN}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("outputs", nargs="+", metavar="OUTPUT", help="FILE or NAME=FILE")
    parser.add_argument("--reference", required=True, help="raw target file")
    parser.add_argument("--source", help="raw source file")
    parser.add_argument("--protocol", choices=PROTOCOLS, default="plain", help="(default: %(default)s)")
    parser.add_argument("--metrics", nargs="+", choices=METRICS, help="instead of the protocol's")
    parser.add_argument("--steps", nargs="*", choices=STEPS, help="on outputs, instead of the protocol's")
    parser.add_argument("--reference-steps", nargs="*", choices=STEPS, help="on references, instead of the protocol's")
    parser.add_argument("--confidence", action="store_true", help="confidence intervals and paired significance")
    parser.add_argument("--json", type=Path, help="write the scores there, too")
    args = parser.parse_args()
    changes = {"steps": args.steps, "reference_steps": args.reference_steps, "metrics": args.metrics}
    changes = {name: value for name, value in changes.items() if value is not None}
    protocol = dataclasses.replace(PROTOCOLS[args.protocol], **changes)
    files = dict(item.split("=", 1) if "=" in item else (Path(item).stem, item) for item in args.outputs)
    if len(files) < len(args.outputs):
        sys.exit("outputs have equal names: give them as NAME=FILE")
    try:
        systems = {name: read_outputs(path) for name, path in files.items()}
        sources = read_lines(args.source) if args.source else None
        results = score(systems, read_lines(args.reference), sources, protocol=protocol, confidence=args.confidence)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(table(results, protocol.metrics))
    if args.json:
        content = {
            "protocol": args.protocol,
            **{name: value for name, value in dataclasses.asdict(protocol).items() if name != "metrics"},
            "systems": {name: result.as_dict() for name, result in results.items()},
        }
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    failed = {metric: why for result in results.values() for metric, why in result.failed.items()}
    for metric, why in failed.items():
        print(f"error: no {metric}: {why}", file=sys.stderr)
    sys.exit(bool(failed))


def table(results: dict[str, Scores], metrics: list[str]) -> str:
    """A row a metric, a column a system."""
    names = list(results)
    width = max(24, *(len(name) + 2 for name in names))
    lines = [f"{'':<12}" + "".join(f"{name:>{width}}" for name in names)]
    for metric in metrics:
        lines.append(f"{metric:<12}" + "".join(f"{cell(results[name], metric):>{width}}" for name in names))
    lines.append(f"{'texts':<12}" + "".join(f"{results[name].segments:>{width},}" for name in names))
    signatures = next(iter(results.values())).signatures
    lines += [f"{metric}: {signatures[metric]}" for metric in metrics if metric in signatures]
    if any(result.p_values for result in results.values()):
        lines.append(f"p: of the difference to {names[0]}, paired bootstrap")
    return "\n".join(lines)


def cell(result: Scores, metric: str) -> str:
    """Score, half the width of its confidence interval, p."""
    if metric not in result.values:
        return "-"
    text = f"{result.values[metric]:.2f}"
    if metric in result.intervals:
        low, high = result.intervals[metric]
        text += f" ± {(high - low) / 2:.2f}"
    if metric in result.p_values:
        text += f" p={result.p_values[metric]:.3f}"
    return text


if __name__ == "__main__":
    main()
