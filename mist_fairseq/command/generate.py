"""``mist generate``: a file of texts through a model.

    mist generate --model released-onnx --precision int8 --input q.jsonl --field query --output out.jsonl
    mist generate --model released-onnx --input pairs.csv.gz --field answer --field passage --output out.parquet
    mist generate --model released-onnx < questions.txt > answers.txt

Reads text (one a line), TSV, CSV, JSONL and Parquet, all but Parquet also as .gz and .zst, and writes them: the input's
columns, and output, score and length. Plain text gives plain text. Rows keep their order, and files of any size go
through in bounded memory.
"""

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import fields
from datetime import timedelta
from types import NoneType
from typing import Any, get_args

from mist_fairseq.bulk.job import Job, run
from mist_fairseq.bulk.output import Progress
from mist_fairseq.bulk.workers import Model
from mist_fairseq.engines import gpu_number
from mist_fairseq.files.tables import STANDARD, TEXT
from mist_fairseq.generate.decoding import Decoding, whole_number
from mist_fairseq.hub.loading import find_model

_LOADING = ("precision", "accelerate", "device", "threads")
_FILES = ("input", "output", "prefix", "errors", "shard", "resume", "overwrite")
_ENDINGS = "txt, tsv, csv, jsonl or parquet, all but the last also with .gz or .zst"


def main(arguments: list[str] | None = None) -> None:
    """Generate for the file that the command line names."""
    args = _parser().parse_args(arguments)
    shown = Shown()
    try:
        job = job_of(args)
        done = run(job, shown.update)
    except BrokenPipeError:  # who reads standard output has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except KeyboardInterrupt:
        shown.end("ended by Ctrl-C" + (", --resume goes on" if args.output != STANDARD else ""))
        sys.exit(128 + signal.SIGINT)
    except (ImportError, OSError, ValueError) as error:
        shown.end()
        sys.exit(f"error: {error}")
    shown.end(summary(job, done, shown))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mist generate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, metavar="DIR", help="in PyTorch or ONNX, or its name on the hub")
    files = parser.add_argument_group("files")
    files.add_argument("--input", default=STANDARD, metavar="FILE", help="(default: standard input)")
    files.add_argument("--output", default=STANDARD, metavar="FILE", help="(default: standard output)")
    files.add_argument("--format", metavar="NAME", help=f"of the input, where its name does not tell: {_ENDINGS}")
    files.add_argument("--output-format", metavar="NAME", help="likewise of the output")
    field = "column with the text; several are read as one, with [SEP] between, such as an answer and its passage"
    files.add_argument("--field", action="append", metavar="COLUMN", help=f"{field} (default: {TEXT})")
    files.add_argument("--prefix", default="", help="of the names of the columns that are added")
    files.add_argument("--errors", metavar="FILE", help="JSONL for bad rows; without it the first one ends the run")
    going = files.add_mutually_exclusive_group()
    going.add_argument("--resume", action="store_true", help="go on where a run was ended, or start")
    going.add_argument("--overwrite", action="store_true", help="replace files that are there")
    shard = (
        "of the rows, cut into N parts of like sizes, part I alone, the first is 1: the outputs, one after the other"
    )
    files.add_argument("--shard", type=_shard, default=(1, 1), metavar="I/N", help=f"{shard}, are that of the whole")
    engine = parser.add_argument_group("engine")
    engine.add_argument("--precision", help="fp32, bf16, int8, as far as the model has them (default: the model's)")
    engine.add_argument("--accelerate", help="engine, as far as the model has it (default: the model's)")
    engine.add_argument("--device", help="auto, cpu, cuda or cuda:N (default: the model's, in ONNX cpu, else auto)")
    engine.add_argument("--workers", type=int, metavar="N", help="processes (default: one a core, on a GPU one)")
    engine.add_argument("--threads", type=int, metavar="N", help="of each worker (default: the cores are shared out)")
    batch = "texts that a worker generates at once (default: %(default)s)"
    engine.add_argument("--batch-size", type=int, default=Model.batch_size, metavar="N", help=batch)
    decoding = parser.add_argument_group("decoding")
    for option in fields(Decoding):
        kinds = [kind for kind in get_args(option.type) or [option.type] if kind is not NoneType]
        shown: dict[str, Any] = {"type": kinds[0], "metavar": "N" if kinds[0] in (int, float) else "NAME"}
        if kinds[0] is bool:
            shown = {"action": argparse.BooleanOptionalAction}
        elif option.type == Sequence[str]:
            shown = {"action": "append", "metavar": "WORDS"}
        help_text = option.metadata["help"] + (" (default: %(default)s)" if option.default else "")
        flag = f"--{option.name.replace('_', '-')}"
        decoding.add_argument(flag, default=option.default or None, help=help_text, **shown)
    return parser


def _shard(text: str) -> tuple[int, int]:
    try:
        part, parts = map(int, text.split("/"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not I/N, such as 1/4") from None
    return part, parts


def job_of(args: argparse.Namespace) -> Job:
    """What the command line asks for; ValueError or OSError: it cannot be done."""
    options = {name: getattr(args, name) for name in _LOADING if getattr(args, name) is not None}
    whole_number("--batch-size", args.batch_size)
    given = {option.name: getattr(args, option.name) for option in fields(Decoding)}
    decoding = Decoding(**{name: value for name, value in given.items() if value is not None})
    folder, is_onnx = find_model(args.model, args.precision)
    cores = len(os.sched_getaffinity(0))
    workers = args.workers
    if workers is None:
        workers = 1 if _on_gpu(is_onnx, options) else max(1, cores // options.get("threads", 1))
    whole_number("--workers", workers)
    options.setdefault("threads", max(1, cores // workers))
    return Job(
        Model(folder, options, decoding, args.batch_size),
        **{name: getattr(args, name) for name in _FILES},
        input_format=args.format,
        output_format=args.output_format,
        fields=tuple(args.field or [TEXT]),
        workers=workers,
    )


def _on_gpu(is_onnx: bool, options: dict[str, Any]) -> bool:
    device = options.get("device", "cpu" if is_onnx else "auto")
    if device != "auto":
        return gpu_number(device) is not None
    if is_onnx:
        import onnxruntime

        return "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    from mist_fairseq.engines import choose_device

    chosen = choose_device(device, options.get("accelerate", "auto"), options.get("precision", "fp32"))
    return gpu_number(chosen) is not None


class Shown:
    """The progress on standard error: a line that changes on a terminal, else one now and then."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._every = 0.5 if self._terminal else 30.0  # seconds
        self._start = self._last = time.monotonic()
        self.rows = 0  #: dealt with since the start

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._start

    def update(self, progress: Progress, last: float | None, done: int) -> None:
        """Show what is done: *done* more rows; *last* is the number of the last row, as far as it is known."""
        self.rows += done
        if time.monotonic() - self._last < self._every:
            return
        self._last = time.monotonic()
        rate = self.rows / self.seconds
        parts = [f"row {progress.row:,}", f"{rate:,.0f} rows/s"]
        if last:
            left = max(0.0, last - progress.row) / rate
            parts = [f"row {progress.row:,} of about {last:,.0f}", parts[1], f"{_time(left)} left"]
        if progress.bad:
            parts.append(f"{progress.bad:,} bad")
        self._print(", ".join(parts), "" if self._terminal else "\n")

    def end(self, text: str = "") -> None:
        """Say how it ended, in place of the progress."""
        self._print(text, "\n" if text else "")

    def _print(self, text: str, end: str) -> None:
        print("\r\033[K" * self._terminal + text, end=end, file=sys.stderr, flush=True)


def _time(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def summary(job: Job, done: Progress, shown: Shown) -> str:
    """How a run ended, in a line or two."""
    if not shown.rows and job.resume:
        return f"{job.output}: all was there already"
    rate = f"{shown.rows / shown.seconds:,.0f} rows/s" if shown.seconds else "at once"
    name = "standard output" if job.output == STANDARD else job.output
    lines = [f"{name}: {shown.rows:,} rows in {_time(shown.seconds)}, {rate}"]
    if done.bad:
        lines.append(f"{done.bad:,} bad rows are in {job.errors}")
    if done.cut:
        lines.append(f"{done.cut:,} texts were longer than the model reads and lost their ends")
    return "\n".join(lines)
