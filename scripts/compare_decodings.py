"""Decode a data set in several ways with one checkpoint and score them: Table 6 in one command.

    python scripts/compare_decodings.py DATA-BIN --path checkpoint_best.pt --subset test --protocol quora \\
        --source test.src --reference test.tgt --out DIR

Writes fairseq-generate's output of each decoding to DIR, and scores, speeds and how they came about to
DIR/decodings-SUBSET.json. The first of several protocols is the file's, the others are its "other_protocols". A copy of
the source (lead-1 for XSum) is scored, too, as a decoding of 0 iterations; scripts/score.py says more of both. Each
--label NAME=VALUE goes into that file, too; scripts/report.py reads `task`, `arm`, `init`, `weights`, `data`, `updates`
and `training`. Further options go to fairseq-generate.
"""

import argparse
import logging
import random
import sys
from pathlib import Path
from textwrap import shorten

from mist_fairseq.experiments.evaluation import Generation, generate, read_generation, read_lines
from mist_fairseq.experiments.results import provenance, write_json
from mist_fairseq.scoring.scores import METRICS, PROTOCOLS, Scores, format_table, report_failures, score, with_trivial
from mist_fairseq.text.tokenizer import without_controls

PAPER = ["single-pass", "mist:3", "mist:6", "mask-predict:3", "mask-predict:6"]


def named_value(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


def entries(results: dict[str, Scores], generations: dict[str, Generation]) -> list[dict]:
    """Each decoding's name, iterations, speed and scores; what was not generated took none."""
    made = []
    for name, result in results.items():
        decoding, _, iterations = name.partition(":")
        described = {"decoding": name, "iterations": 0}
        if name in generations:
            speed = generations[name].sentences_per_second
            described = {"decoding": decoding, "iterations": int(iterations or 1), "sentences_per_second": speed}
        made.append(described | result.as_dict())
    return made


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="folder of binarized data")
    parser.add_argument("--path", required=True, help="checkpoint")
    parser.add_argument("--subset", default="test", help="(default: %(default)s)")
    parser.add_argument(
        "--decodings", nargs="+", default=PAPER, metavar="NAME[:ITERATIONS]", help=f"(default: {' '.join(PAPER)})"
    )
    parser.add_argument("--source", required=True, help="raw source file")
    parser.add_argument("--reference", required=True, help="raw target file")
    parser.add_argument("--protocol", nargs="+", choices=PROTOCOLS, default=["plain"], help="of scripts/score.py")
    parser.add_argument("--metrics", nargs="+", choices=METRICS, help="instead of the protocols'")
    parser.add_argument("--sentence-encoder", metavar="DIR", help="for similarity, as of scripts/score.py")
    parser.add_argument("--confidence", action="store_true", help="confidence intervals and paired significance")
    parser.add_argument("--only", choices=["generate", "score"], help="score: what is in --out already")
    parser.add_argument("--examples", type=int, default=5, help="outputs to show (default: %(default)s)")
    parser.add_argument(
        "--label",
        type=named_value,
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=VALUE",
        help="what this is a result of",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for outputs and scores")
    args, options = parser.parse_known_args()
    options = options or ["--batch-size", "64"]
    logging.getLogger("sacrebleu").setLevel(logging.WARNING)
    generations = {}
    try:
        sources, references = read_lines(args.source), read_lines(args.reference)
        for name in args.decodings:
            decoding, _, iterations = name.partition(":")
            log = args.out / f"generate-{args.subset}-{name.replace(':', '-')}.txt"
            if args.only == "score":
                generations[name] = read_generation("\n".join(read_lines(log)))
                if generations[name].sentences_per_second is None:
                    raise ValueError(f"{log} is without its closing line: decode again")
                continue
            print(f"decoding {args.subset}: {name}", file=sys.stderr, flush=True)
            decoding_options = ["--decoding", decoding, "--decoding-iterations", iterations or "1"]
            generations[name] = generate(args.data, args.path, args.subset, log, decoding_options + options)
        if args.only == "generate":
            return
        outputs = {name: generation.outputs for name, generation in generations.items()}
        scored = {}
        for name in args.protocol:
            how = {"protocol": PROTOCOLS[name], "metrics": args.metrics, "sentence_encoder": args.sentence_encoder}
            systems = with_trivial(outputs, sources, PROTOCOLS[name])
            scored[name] = score(systems, references, sources, confidence=args.confidence, **how)
    except (OSError, RuntimeError, ValueError) as error:
        sys.exit(f"error: {error}")
    found = [{"protocol": name, "decodings": entries(results, generations)} for name, results in scored.items()]
    others = {"other_protocols": found[1:]} if len(found) > 1 else {}
    content = {**dict(args.label), "subset": args.subset, **provenance(), **found[0], **others}
    write_json(args.out / f"decodings-{args.subset}.json", content)
    for protocol, results in scored.items():
        print(f"{protocol}:\n{format_table(results)}" if others else format_table(results))
    speeds = ", ".join(f"{name} {generation.sentences_per_second:.1f}" for name, generation in generations.items())
    print(f"sentences/s: {speeds}")
    first = next(iter(outputs.values()))
    for i in sorted(random.Random(1).sample(range(len(first)), min(args.examples, len(first)))):
        source, output, reference = map(without_controls, (shorten(sources[i], 300), first[i], references[i]))
        print(f"\nsource     {source}\noutput     {output}\nreference  {reference}")
    sys.exit(any(list(map(report_failures, scored.values()))))


if __name__ == "__main__":
    main()
