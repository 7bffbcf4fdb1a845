"""The command ``mist``. Each subcommand is a module that is imported when it is asked for."""

import argparse
import importlib
import sys

import mist_fairseq
from mist_fairseq.extras import install_line

# Subcommand -> module whose ``main`` it is, what it does, and the extra that brings what it needs.
SUBCOMMANDS = {
    "generate": ("mist_fairseq.command.generate", "answer all texts of a file", "runtime"),
    "serve": ("mist_fairseq.serve.command", "answer texts over HTTP, with a page to try the model", "serve"),
    "export": ("mist_fairseq.command.export", "make a checkpoint a folder that stands alone, or ONNX", "onnxruntime"),
    "download": (
        "mist_fairseq.command.download",
        "fetch a pre-trained encoder, or a model of the Hugging Face hub",
        "train",
    ),
    "info": ("mist_fairseq.command.info", "tell what a model is: sizes, limits, precisions, files", "runtime"),
}


def main(arguments: list[str] | None = None) -> None:
    """Run a subcommand with its arguments, by default those of the command line."""
    given = sys.argv[1:] if arguments is None else arguments
    lines = [f"  {name:10}{about}" for name, (_, about, _) in SUBCOMMANDS.items()]
    parser = argparse.ArgumentParser(
        prog="mist",
        usage="mist SUBCOMMAND [options]",
        description="\n".join(["Non-autoregressive text generation with BERT-like encoders.", "", *lines]),
        epilog="mist SUBCOMMAND --help tells its options.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("subcommand", choices=SUBCOMMANDS, help=argparse.SUPPRESS)
    parser.add_argument("--version", action="version", version=f"mist_fairseq {mist_fairseq.__version__}")
    name = parser.parse_args(given[:1]).subcommand
    module, _, extra = SUBCOMMANDS[name]
    try:
        importlib.import_module(module).main(given[1:])
    except ModuleNotFoundError as error:
        sys.exit(f"error: mist {name} needs the package {error.name}: {install_line(extra)}")
