"""Score outputs against the raw target file, as the paper does.

    python scripts/score.py --protocol quora --source test.src --reference test.tgt OUTPUT [NAME=OUTPUT ...]

An OUTPUT is a text file with one output a line, or what fairseq-generate printed. With several, each is compared with
the first by paired bootstrap. With --source, all protocols but plain add a system that needs no model: a copy of the
source, for XSum the source's first sentence (lead-1). Protocols say what is done to the texts and which metrics are
computed:

    squad_qg, quora   lower, words, rejoin-quora, collapse-repeats; bleu-1 ... bleu-4, meteor15, rouge-l, sacrebleu;
                      outputs with equal sources are one, with several references
    xsum              lower, words, collapse-repeats, rejoin-xsum; rouge155-1, rouge155-2, rouge155-l, sacrebleu
    authors-squad_qg, authors-quora, authors-xsum
                      as the authors' code does it: words, collapse-repeats-authors, and for Quora rejoin-quora-authors,
                      for XSum rejoin-xsum; references are the Penn Treebank's tokens, for XSum as they are, with
                      rouge-package-1, -2, -l. Outputs that are copies and words that are new are counted in all
                      protocols that have the sources: ibleu, source-bleu, copies, novel-1, -2, distinct-1, -2
    plain             lower; all metrics but the package's; with --source grouped, too: on tokenized files this is what
                      the question-generation script computes

sacrebleu is what its command line gives with -lc: line by line, without steps. --sentence-encoder adds similarity, the
cosine of output and reference, and source-similarity. meteor15 needs Java, rouge155 Perl and the similarities
sentence-transformers; where they are missing the other scores still come, and the exit status is 1.
"""

import argparse
import dataclasses
import logging
import sys
from pathlib import Path

from mist_fairseq.experiments.evaluation import read_lines, read_outputs
from mist_fairseq.experiments.results import provenance, write_json
from mist_fairseq.scoring.scores import METRICS, PROTOCOLS, format_table, report_failures, score, with_trivial
from mist_fairseq.scoring.steps import STEPS


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("outputs", nargs="*", metavar="OUTPUT", help="FILE or NAME=FILE")
    parser.add_argument("--reference", required=True, help="raw target file")
    parser.add_argument("--source", help="raw source file")
    parser.add_argument("--protocol", choices=PROTOCOLS, default="plain", help="(default: %(default)s)")
    parser.add_argument("--metrics", nargs="+", choices=METRICS, help="instead of the protocol's")
    parser.add_argument("--steps", nargs="*", choices=STEPS, help="on outputs, instead of the protocol's")
    parser.add_argument("--reference-steps", nargs="*", choices=STEPS, help="on references, instead of the protocol's")
    parser.add_argument("--sentence-encoder", metavar="DIR", help="as of scripts/get_pretrained.py minilm-l6 DIR")
    parser.add_argument("--confidence", action="store_true", help="confidence intervals and paired significance")
    parser.add_argument("--json", type=Path, help="write the scores there, too")
    args = parser.parse_args()
    logging.getLogger("sacrebleu").setLevel(logging.WARNING)
    changes = {"steps": args.steps, "reference_steps": args.reference_steps}
    changes = {name: value for name, value in changes.items() if value is not None}
    if args.protocol == "plain":
        changes["group"] = args.source is not None
    protocol = dataclasses.replace(PROTOCOLS[args.protocol], **changes)
    named = ("=" in item and not Path(item).exists() for item in args.outputs)
    files = dict(item.split("=", 1) if name else (Path(item).stem, item) for item, name in zip(args.outputs, named))
    if len(files) < len(args.outputs):
        sys.exit("outputs have equal names: give them as NAME=FILE")
    try:
        systems = {name: read_outputs(path) for name, path in files.items()}
        sources = read_lines(args.source) if args.source else None
        systems = with_trivial(systems, sources, protocol)
        if not systems:
            raise ValueError("nothing to score: give an OUTPUT")
        how = {"protocol": protocol, "confidence": args.confidence, "sentence_encoder": args.sentence_encoder}
        results = score(systems, read_lines(args.reference), sources, metrics=args.metrics, **how)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(format_table(results))
    if args.json:
        content = {
            "protocol": args.protocol,
            **provenance(),
            **{name: value for name, value in dataclasses.asdict(protocol).items() if name != "metrics"},
            "systems": {name: result.as_dict() for name, result in results.items()},
        }
        write_json(args.json, content)
    sys.exit(report_failures(results))


if __name__ == "__main__":
    main()
