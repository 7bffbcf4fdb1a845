"""Files of a run that may be killed at any moment and goes on where it was.

While it runs, rows are in ``OUT.partial``, which becomes ``OUT`` once all are there; ``OUT.progress`` says up to which
row, and to which byte of the files, all is written. A resumed run cuts the files there and goes on with the next row:
nothing is lost or there twice, whatever was half written.
"""

import json
import math
import os
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

from mist_fairseq.files.reading import read_json
from mist_fairseq.files.tables import STANDARD
from mist_fairseq.files.whole import hold, write_text

_EVERY = 1.0  # seconds between notes of the progress


@dataclass
class Progress:
    """What is written."""

    row: int  #: the number of the last row that was dealt with
    bad: int = 0  #: rows, in the file of errors
    cut: int = 0  #: texts that were longer than the model reads
    columns: list[str] | None = None  #: of the output, once there is a row
    output_bytes: int = 0
    errors_bytes: int = 0
    errors: str | None = None  #: the file of errors


class ResumableOutput:
    """An output and its file of errors, as a context manager that leaves what is needed to go on.

    Args:
        path: of the output; ``-`` is standard output.
        resumable: whether what was written stays as it is when more is written; standard output never is.
        errors: file for bad rows, if any.
        settings: what makes this run's output what it is: only a run with the same goes on with it.
        row: the number of the row before the first.
        resume: go on, or start if there is nothing to go on with.
        overwrite: replace files that are there.

    Raises:
        BlockingIOError: another process writes the output.
        FileExistsError: a file is there, and neither *resume* nor *overwrite* is on.
        ValueError: what is there is of another run, or cannot be resumed.
    """

    output: BinaryIO  #: to which rows are written, within the context
    errors: BinaryIO | None

    def __init__(
        self,
        path: str,
        resumable: bool,
        errors: str | None,
        settings: dict[str, Any],
        row: int,
        resume: bool = False,
        overwrite: bool = False,
    ):
        self._noted = -math.inf  # the time of the last note
        self.path, self._resumable = path, resumable and path != STANDARD
        self._partial, self._notes = Path(f"{path}.partial"), Path(f"{path}.progress")
        self._settings = settings
        self.progress = Progress(row)
        self.is_done = resume and path != STANDARD and Path(path).exists()  #: all is there
        if resume and not self._resumable:
            what = "standard output" if path == STANDARD else "Parquet"
            raise ValueError(f"--resume cannot go on with {what}: write JSONL, CSV, TSV or text, or --shard the input")
        if self.is_done:
            self._notes.unlink(missing_ok=True)
            return
        if resume and self._notes.exists():
            self.progress = self._read_notes(errors)
        if not overwrite:
            new = [path, self._notes] if path != STANDARD and not resume else []
            self._refuse([*new, errors] if errors not in (None, self.progress.errors) else new)
        self.progress.errors = errors

    def _read_notes(self, errors: str | None) -> Progress:
        notes = read_json(self._notes)
        for name, value in self._settings.items():
            if (before := notes["settings"].get(name)) != value:
                given = f"another {name}: {before!r}, now {value!r}"
                raise ValueError(f"{self._partial} is of a run with {given}. Give the same, or --overwrite")
        progress = Progress(**notes["progress"])
        if progress.bad and progress.errors != errors:
            raise ValueError(f"{self._partial} is of a run with --errors {progress.errors}: give the same")
        return progress

    def _refuse(self, files: list[Any]) -> None:
        for file in files:
            if Path(file).exists():
                advice = "--resume goes on, --overwrite starts anew" if file == self._notes else "choose another file"
                what = "of a run that was ended" if file == self._notes else "there already"
                raise FileExistsError(f"{file} is {what}: {advice}, or --overwrite")

    def __enter__(self) -> Self:
        progress, self.errors = self.progress, None
        with ExitStack() as stack:
            self.output = sys.stdout.buffer
            if self.path != STANDARD:
                self.output = stack.enter_context(_open_at(self._partial, progress.output_bytes, self.path))
            if progress.errors:
                errors = _open_at(Path(progress.errors), progress.errors_bytes, progress.errors)
                self.errors = stack.enter_context(errors)
            self._stack = stack.pop_all()
        self.commit(progress.row)
        return self

    def __exit__(self, *_: object) -> None:
        with self._stack:
            if self._resumable and not self.is_done:
                self._note()
        if not self._resumable and self.path != STANDARD:
            self._partial.unlink(missing_ok=True)

    def commit(self, row: int, bad: int = 0, cut: int = 0) -> None:
        """Take down that all rows up to *row* are dealt with, and how many more were bad or cut."""
        progress = self.progress
        progress.row, progress.bad, progress.cut = row, progress.bad + bad, progress.cut + cut
        if self.path == STANDARD:
            self.output.flush()
        if self._resumable:
            progress.output_bytes = self.output.tell()
            progress.errors_bytes = self.errors.tell() if self.errors else 0
            if time.monotonic() - self._noted >= _EVERY:
                self._note()

    def finish(self) -> None:
        """Give the output its name: all is there."""
        self.output.flush()
        if self.path != STANDARD:
            os.fsync(self.output.fileno())
            os.replace(self._partial, self.path)
            self._notes.unlink(missing_ok=True)
        self.is_done = True

    def _note(self) -> None:
        for file in filter(None, (self.output, self.errors)):  # first, or a note may tell of what a crash takes away
            file.flush()
            os.fsync(file.fileno())
        write_text(self._notes, json.dumps({"settings": self._settings, "progress": asdict(self.progress)}))
        self._noted = time.monotonic()


def _open_at(path: Path, size: int, name: str) -> BinaryIO:
    """Open a file to write on after *size* bytes, without what is behind them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = open(path, "r+b" if path.exists() else "w+b")  # noqa: SIM115 - the caller's
    try:
        hold(file, name)
        if file.seek(0, os.SEEK_END) < size:
            raise ValueError(f"{path} is shorter than it was: --resume cannot go on with it, --overwrite starts anew")
        file.truncate(size)
        file.seek(size)
    except BaseException:
        file.close()
        raise
    return file
