"""What an engine's rounding does to the outputs: compares engines and precisions on a trained model and real data.

    python scripts/compare_engines.py data-bin --path checkpoint.pt --sentences 1000 --reference test.tgt \\
        --engines onnxruntime:fp32 onnxruntime:int8 none:bf16 onnx:fp32 --out engines.json

PyTorch in fp32 and every engine (NAME:PRECISION; onnx is the model as scripts/export.py --to onnx writes it, run
without torch) generate the first thousand sentences, one at a time. The table counts the outputs that differ, and of
these the near-ties: PyTorch itself had two tokens, or two lengths, within 1e-4 wherever the first pass that differs
differs. With a reference it has scores, too.
"""

import argparse
import logging
import sys
import warnings
from pathlib import Path

import torch

from mist_fairseq.experiments.benchmark.equality import compare, markdown
from mist_fairseq.experiments.evaluation import read_lines
from mist_fairseq.experiments.results import provenance, write_result
from mist_fairseq.generate.decoding import DECODINGS, Decoding
from mist_fairseq.scoring.scores import METRICS, PROTOCOLS


def read_engine(text: str) -> tuple[str, str]:
    """Read ``NAME:PRECISION``."""
    name, _, precision = text.partition(":")
    if not name or not precision or ":" in precision:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME:PRECISION")
    return name, precision


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="binarized data")
    parser.add_argument("--path", required=True, help="checkpoint")
    parser.add_argument("--engines", type=read_engine, nargs="+", required=True, metavar="NAME:PRECISION")
    parser.add_argument("--subset", default="test", help="(default: %(default)s)")
    parser.add_argument("--sentences", type=int, default=1000, help="from the first on (default: %(default)s)")
    parser.add_argument("--reference", type=Path, help="raw text, for scores")
    parser.add_argument("--source", type=Path, help="raw text, where the protocol needs it")
    parser.add_argument("--protocol", choices=PROTOCOLS, default="plain", help="(default: %(default)s)")
    parser.add_argument("--metric", nargs="+", choices=METRICS, default=["bleu-4"], help="(default: bleu-4)")
    parser.add_argument("--decoding", choices=DECODINGS, default="single-pass", help="(default: %(default)s)")
    parser.add_argument("--iterations", type=int, help="passes over the target (default: 1 for single-pass, else 3)")
    parser.add_argument("--threads", type=int, help="of the CPU (default: torch's)")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write, with a table beside it (.md)")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.INFO)
    if args.threads:
        torch.set_num_threads(args.threads)
    try:
        reference, source = (read_lines(path) if path else None for path in (args.reference, args.source))
        decoding, protocol = Decoding(args.decoding, args.iterations), PROTOCOLS[args.protocol]
        given = args.engines, args.subset, args.sentences, reference, source, protocol, args.metric, decoding
        result = compare(args.data, args.path, *given)
        result |= {"decoding": decoding.decoding, "iterations": decoding.passes, "protocol": args.protocol}
        table = markdown(result)
        write_result(args.out, result | provenance(), table)
        print(table)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
