"""A file of rows through a model: what is read, what is answered, what is written."""

import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mist_fairseq.bulk.output import Progress, ResumableOutput
from mist_fairseq.bulk.workers import Answers, Model, answer_all
from mist_fairseq.files.exported import SUMS, digest
from mist_fairseq.files.row_writer import RowWriter
from mist_fairseq.files.tables import STANDARD, TEXT, BadRow, Kind, Row, Table, open_rows
from mist_fairseq.generate.text_generator import Text

_CHUNK = 512  # rows that go to a worker at once, at least
_BATCHES = 8  # as many of a chunk at least, which sorts its texts by length into batches


@dataclass(frozen=True)
class Job:
    """What ``mist generate`` is to do."""

    model: Model
    input: str = STANDARD
    output: str = STANDARD
    input_format: str | None = None  #: as of ``Kind.of``
    output_format: str | None = None
    fields: tuple[str, ...] = (TEXT,)  #: columns with the texts; several are read as one, with [SEP] between
    prefix: str = ""  #: of the names of the columns that are added
    errors: str | None = None  #: JSONL file for bad rows; without it the first one ends the run
    shard: tuple[int, int] = (1, 1)  #: which part, from 1, of how many
    workers: int = 1  #: processes
    resume: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.shard[0] <= self.shard[1]:
            raise ValueError(f"--shard is {self.shard[0]}/{self.shard[1]}: the first of 4 parts is 1/4, the last 4/4")
        if self.shard[1] > 1 and self.input == STANDARD:
            raise ValueError("--shard counts the rows first, which standard input has no time for: give a file")
        if self.errors in (self.input, self.output):
            raise ValueError(f"--errors is {self.errors}, which is another file already: choose one of its own")
        if self.kind.format == TEXT and self.model.decoding.nbest > 1:
            raise ValueError("a text file has no place for several answers: write JSONL, Parquet, CSV or TSV")

    @property
    def input_kind(self) -> Kind:
        """Of the input, by default text where it is standard input."""
        return Kind.of(self.input, self.input_format or (TEXT if self.input == STANDARD else None))

    @property
    def kind(self) -> Kind:
        """Of the output, by default the input's where it is standard output."""
        if self.output != STANDARD or self.output_format:
            return Kind.of(self.output, self.output_format)
        return Kind(self.input_kind.format if self.input_kind.format != "parquet" else "jsonl")

    def settings(self) -> dict[str, Any]:
        """All on which the output depends."""
        sums = Path(self.model.folder, SUMS)
        size = Path(self.input).stat().st_size if Path(self.input).is_file() else None
        model = {"model": self.model.folder, "checksums of the model": digest(sums) if sums.is_file() else None}
        rows: dict[str, Any] = {
            "input": self.input,
            "size of the input": size,
            "input format": self.input_kind,
            "shard": self.shard,
        }
        rows |= {"field": self.fields, "output format": self.kind, "prefix": self.prefix}
        options = {name: value for name, value in self.model.options.items() if name != "threads"}
        given = model | rows | asdict(self.model.decoding) | options | {"batch size": self.model.batch_size}
        return json.loads(json.dumps(given))  # as it comes back: tuples are lists


@dataclass
class Chunk:
    """Rows that go to a worker at once."""

    rows: dict[int, Row | BadRow] = field(default_factory=dict)  #: by their number in the input
    texts: list[Text] = field(default_factory=list)  #: of those that are not bad
    share: float | None = None  #: of the input that is read


def run(job: Job, report: Callable[[Progress, float | None, int], None] = lambda *_: None) -> Progress:
    """Do the job.

    *report* is told after each chunk what is done, the number of the last row as far as it is known or can be guessed,
    and how many rows the chunk has.

    Raises:
        ChildProcessError: a worker died.
        FileExistsError: a file is there that would be replaced.
        ImportError, OSError: a file cannot be read or written, the model not loaded.
        ValueError: something is wrong with a file, an option, or a row; says what, and what to do.
    """
    first, last = _bounds(job)
    resumable = job.kind.format != "parquet"
    output = ResumableOutput(job.output, resumable, job.errors, job.settings(), first, job.resume, job.overwrite)
    if output.is_done:
        return output.progress
    table = open_rows(job.input, str(job.input_kind))
    if table.columns is not None:
        _check_columns(job, table.columns)
    with output, closing(answer_all(_chunks(job, table, output.progress.row, last), job.model, job.workers)) as chunks:
        sink = _Sink(job, table, output)
        for chunk, answers in chunks:
            sink.write(chunk, answers)
            total = chunk.share and max(chunk.rows) / chunk.share
            report(output.progress, total if last is None else last, len(chunk.rows))
        sink.close()
        output.finish()
    return output.progress


def _bounds(job: Job) -> tuple[int, int | None]:
    """The numbers of the row before the job's first and of its last, None for that of the input."""
    part, parts = job.shard
    if parts == 1:
        return 0, None
    number = sum(1 for _ in open_rows(job.input, str(job.input_kind)))
    return number * (part - 1) // parts, number * part // parts


def _check_columns(job: Job, columns: list[str]) -> None:
    if lacks := [name for name in job.fields if name not in columns]:
        raise ValueError(f"{job.input} has no column {lacks[0]!r}, expected of --field: it has {', '.join(columns)}")
    if job.kind.format != TEXT:
        _check_names(job, columns)


def _check_names(job: Job, columns: Any) -> None:
    if taken := [name for name in _names(job) if name in columns]:
        raise ValueError(f"it has a column {taken[0]!r} already: give --prefix, which begins the names of new columns")


def _names(job: Job) -> list[str]:
    """The columns that are added: one each in JSONL and Parquet, else one for each answer."""
    names = [f"{job.prefix}{name}" for name in ("output", "score", "length")]
    nbest = job.model.decoding.nbest
    if nbest == 1 or job.kind.format in ("jsonl", "parquet"):
        return names
    return [f"{name}_{rank}" for name in names for rank in range(1, nbest + 1)]


def _chunks(job: Job, table: Table, after: int, last: int | None) -> Iterator[Chunk]:
    size = max(_CHUNK, _BATCHES * job.model.batch_size)
    numbered = itertools.islice(enumerate(table, start=1), after, last)
    while some := dict(itertools.islice(numbered, size)):
        chunk = Chunk(some, share=table.position())
        for number, row in some.items():
            try:
                if not isinstance(row, BadRow):
                    chunk.texts.append(_text_of(job, row))
            except ValueError as error:
                chunk.rows[number] = _bad(number, row, error)
        yield chunk


def _text_of(job: Job, row: Row) -> Text:
    """The text of a row, or its texts; ValueError: it has none, or a column that is to be added."""
    for name in job.fields:
        if name not in row:
            raise ValueError(f"it has no {name!r}: it has {', '.join(row) or 'nothing'}")
        if not isinstance(row[name], str):
            raise ValueError(f"its {name!r} is {type(row[name]).__name__}, expected a text")
    if job.kind.format != TEXT:
        _check_names(job, row)
    texts = tuple(row[name] for name in job.fields)
    return texts[0] if len(texts) == 1 else texts


def _bad(number: int, row: Any, reason: object) -> BadRow:
    return BadRow(number, str(reason), json.dumps(row, ensure_ascii=False, default=str))


class _Sink:
    """Writes what comes back of a chunk, and what is wrong with its rows."""

    def __init__(self, job: Job, table: Table, output: ResumableOutput):
        self._job, self._table, self._output = job, table, output
        self._names, self._text = _names(job), job.kind.format == TEXT
        self._writer: RowWriter | None = None

    def write(self, chunk: Chunk, answers: list[Answers]) -> None:
        rows, bad = self._merged(chunk, answers)
        if rows:
            self._writer = self._writer or self._start(list(next(iter(rows.values()))))
            numbers = list(rows)
            for i, reason in self._writer.write(list(rows.values())).items():
                bad.append(_bad(numbers[i], chunk.rows[numbers[i]], reason))
        self._write_bad(sorted(bad, key=lambda row: row.number))
        self._output.commit(max(chunk.rows), len(bad), sum(each.cut for each in answers))

    def close(self) -> None:
        """Write what is left, at least the names of the columns if they are known."""
        writer = self._writer or self._start([*(self._table.columns or ()), *self._names])
        writer.close()

    def _start(self, columns: list[str]) -> RowWriter:
        progress = self._output.progress
        progress.columns = progress.columns or (self._names[:1] if self._text else columns)
        nbest = self._job.model.decoding.nbest
        like = dict(zip(self._names, ("", 0.0, 0) if nbest == 1 else ([""], [0.0], [0])))
        if self._table.columns is not None and self._table.schema is None:
            like = dict.fromkeys(self._table.columns, "") | like
        given = self._output.output, self._job.kind, progress.columns, self._table.schema, like
        return RowWriter(*given, begun=progress.output_bytes > 0)

    def _merged(self, chunk: Chunk, answers: list[Answers]) -> tuple[dict[int, Row], list[BadRow]]:
        """Rows with their answers, by number, and bad ones, which in a text file leave an empty line."""
        rows: dict[int, Row] = {}
        bad, answered = [], iter(answers)
        for number, row in chunk.rows.items():
            if isinstance(row, BadRow):
                bad.append(row)
                if self._text:
                    rows[number] = {self._names[0]: ""}
            else:
                added = self._columns(next(answered))
                rows[number] = added if self._text else {**row, **added}
        return rows, bad

    def _columns(self, answers: Answers) -> Row:
        columns: list[Any] = [list(column) for column in zip(*answers.best)] or [[], [], []]
        nbest = self._job.model.decoding.nbest
        if nbest == 1:
            columns = [column[0] for column in columns]
        elif len(self._names) > 3:
            columns = [value for column in columns for value in column + [None] * (nbest - len(column))]
        return dict(zip(self._names, columns))

    def _write_bad(self, bad: list[BadRow]) -> None:
        for row in bad:
            if self._output.errors is None:
                where = f"row {row.number:,} of {'standard input' if self._job.input == STANDARD else self._job.input}"
                advice = "--errors FILE takes such rows while the others go on"
                raise ValueError(f"{where}: {row.reason}: {row.raw[:200]}. {advice}")
            about = json.dumps({"row": row.number, "reason": row.reason, "raw": row.raw}, ensure_ascii=False)
            self._output.errors.write(about.encode("utf-8", "backslashreplace") + b"\n")
