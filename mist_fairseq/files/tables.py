r"""Rows of data files: text, TSV, CSV, JSONL and Parquet; all but Parquet also as .gz and .zst.

A line ends with \n or \r\n and with nothing else: U+2028 and the like are text. A *text* file has a column ``text``.
In TSV a field has no quotes, tabs or line breaks; in CSV (RFC 4180) it may have them within quotes. Both begin with a
line of column names. Blank lines are skipped, but where they are an empty text: in text and in files of one column.

Parquet and .zst need pyarrow, which is imported for them alone.
"""

import codecs
import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Self

from mist_fairseq.extras import install_line
from mist_fairseq.files.reading import check_mark

Row = dict[str, Any]

TEXT = "text"  # the column of a text file
STANDARD = "-"  # the path of standard input and output

_FORMATS = {"txt": TEXT, TEXT: TEXT, "tsv": "tsv", "csv": "csv", "jsonl": "jsonl", "ndjson": "jsonl"}
_FORMATS |= {"parquet": "parquet"}
_BATCH = 1024  # rows of Parquet that are held at once
_BUFFER = 2**20  # bytes
_LONGEST = 2**26  # bytes of a line


class Kind(NamedTuple):
    """What a file holds."""

    format: str  #: text, tsv, csv, jsonl or parquet
    compression: str = ""  #: gz or zst

    def __str__(self) -> str:
        return ".".join(filter(None, self))

    @classmethod
    def of(cls, path: str | Path, given: str | None = None) -> Self:
        """Read it off a path's name, or off *given*, such as ``jsonl`` or ``csv.gz``; ValueError: neither tells."""
        *names, last = (given or Path(path).name).lower().split(".")
        compression = last if last in ("gz", "zst") else ""
        if compression and names:
            *names, last = names
        if last not in _FORMATS or not (names or given):
            known = "txt, tsv, csv, jsonl or parquet, all but the last also with .gz or .zst"
            what = f"{given!r} is no format" if given else f"the name {str(path)!r} does not tell its format"
            raise ValueError(f"{what}: expected {known}")
        if _FORMATS[last] == "parquet" and (compression or str(path) == STANDARD):
            raise ValueError("Parquet compresses by itself and has no .gz, .zst or stream: give a file's name")
        if given and not compression and str(path).endswith((".gz", ".zst")):
            compression = str(path).rpartition(".")[2]
        return cls(_FORMATS[last], compression)


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be read."""

    number: int  #: in the file, from 1
    reason: str
    raw: str  #: as it stands in the file; bytes that are no UTF-8 as ``\\xff``


@dataclass
class Table:
    """An open file: an iterator over its rows, in which each has its place, bad or not."""

    rows: Iterator[Row | BadRow]
    columns: list[str] | None  #: None in JSONL, where each row has its own
    position: Callable[[], float | None]  #: the share of the file that was read, from 0 to 1; None of a stream
    schema: Any = None  #: pyarrow's, of Parquet

    def __iter__(self) -> Iterator[Row | BadRow]:
        return self.rows


def open_rows(path: str | Path, kind: str | None = None) -> Table:
    """Open a file, or standard input (``-``), of which bounded memory is used.

    *kind* is as of ``Kind.of``. A row that cannot be read comes as a ``BadRow``, and does not end the file.

    Raises:
        OSError: the file cannot be read.
        ModuleNotFoundError: it needs pyarrow.
        ValueError: it is damaged, UTF-16, has no column names or one twice; while rows are read, too.
    """
    form, compression = Kind.of(path, kind)
    if form == "parquet":
        return _open_parquet(path)
    file = sys.stdin.buffer if str(path) == STANDARD else open(path, "rb")  # noqa: SIM115 - closed with its last line
    lines = _lines(file, compression, path)
    columns, parse = [TEXT], _parse_json if form == "jsonl" else lambda line: {TEXT: _chomp(line)}
    records: Iterator[tuple[str, Any]] = ((line, line) for line in lines)
    if form in ("csv", "tsv"):
        records = _csv_records(lines) if form == "csv" else ((line, _chomp(line).split("\t")) for line in lines)
        columns, parse = _header(next(records, None), path), lambda fields: _named(columns, fields)
    size = Path(path).stat().st_size if Path(path).is_file() else 0

    def position() -> float | None:
        return None if not size else 1.0 if file.closed else file.tell() / size

    return Table(_rows(records, parse), None if form == "jsonl" else columns, position)


def _lines(file: BinaryIO, compression: str, path: str | Path) -> Iterator[str]:
    r"""The lines of a file with their ends; bytes that are not UTF-8 become half surrogates, which ``_valid`` finds."""
    try:
        with file:
            stream: Any = file
            if compression == "gz":
                stream = gzip.GzipFile(fileobj=file)
            elif compression == "zst":  # zstandard's reader takes a file without its end for a whole one
                stream = io.BufferedReader(pyarrow_for(".zst").CompressedInputStream(file, "zstd"), _BUFFER)
            check_mark(start := stream.readline(_LONGEST), path)
            line = start.removeprefix(codecs.BOM_UTF8)
            while line:
                if len(line) == _LONGEST:
                    raise ValueError(f"{path} has a line of more than {_LONGEST:,} bytes: is it what was expected?")
                yield line.decode("utf-8", "surrogateescape")
                line = stream.readline(_LONGEST)
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def _csv_records(lines: Iterator[str]) -> Iterator[tuple[str, Any]]:
    """Records as they stand in the file, with their fields or with what is wrong."""
    taken: list[str] = []
    reader = csv.reader((taken.append(line) or line for line in lines), strict=True)  # type: ignore[func-returns-value]
    while True:
        taken.clear()
        try:
            fields: Any = next(reader) or [""]
        except StopIteration:
            return
        except csv.Error as error:
            fields = error
        yield "".join(taken), fields


def _rows(records: Iterator[tuple[str, Any]], parse: Callable[[Any], Row | None]) -> Iterator[Row | BadRow]:
    """Each record as ``parse`` reads it; it gives None for a blank line."""
    number = 1
    for raw, given in records:
        try:
            row: Row | BadRow | None = parse(given)
            if row is not None:
                _valid(raw)
        except (RecursionError, ValueError) as error:
            shown = _chomp(raw).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
            row = BadRow(number, str(error), shown)
        if row is not None:
            yield row
            number += 1


def _valid(text: str) -> None:
    try:
        text.isascii() or text.encode()
    except UnicodeEncodeError as error:
        byte = ord(text[error.start]) - 0xDC00
        raise ValueError(f"it is not UTF-8: byte 0x{byte:02x} after {error.start:,} characters") from None


def _chomp(line: str) -> str:
    return line[:-1].removesuffix("\r") if line.endswith("\n") else line


def _named(columns: list[str], fields: Any) -> Row | None:
    if isinstance(fields, Exception):
        raise ValueError(f"it is not CSV: {fields}")
    if fields == [""] and len(columns) > 1:
        return None
    if len(fields) != len(columns):
        raise ValueError(f"it has {len(fields)} fields, expected {len(columns)}")
    return dict(zip(columns, fields))


def _parse_json(line: str) -> Row | None:
    if line.isspace():
        return None
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"it is not JSON: {error}") from None
    if not isinstance(row, dict):
        raise ValueError(f"it is not a JSON object but a {type(row).__name__}")
    if "\\u" in line:
        try:
            json.dumps(row, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError("it has half of a surrogate pair, which is no character") from None
    return row


def _header(record: tuple[str, Any] | None, path: str | Path) -> list[str]:
    if record is None or isinstance(record[1], Exception):
        raise ValueError(f"{path} does not begin with a line of column names{f': {record[1]}' if record else ''}")
    try:
        _valid(record[0])
    except ValueError as error:
        raise ValueError(f"the column names of {path} cannot be read: {error}") from None
    if twice := [name for name in record[1] if record[1].count(name) > 1]:
        raise ValueError(f"{path} names the column {twice[0]!r} twice: rename one")
    return record[1]


def _open_parquet(path: str | Path) -> Table:
    pyarrow = pyarrow_for("Parquet")
    import pyarrow.parquet as parquet

    try:
        file = parquet.ParquetFile(path, buffer_size=_BUFFER)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{path} is no Parquet file: {error}") from error
    total, read = file.metadata.num_rows, 0

    def rows() -> Iterator[Row | BadRow]:
        nonlocal read
        with file:
            for batch in file.iter_batches(_BATCH):
                try:
                    found: list[Row | BadRow] = batch.to_pylist()
                except ValueError:
                    found = [_of_parquet(batch, i, read) for i in range(len(batch))]
                for row in found:
                    read += 1
                    yield row

    columns = list(file.schema_arrow.names)
    if twice := [name for name in columns if columns.count(name) > 1]:
        raise ValueError(f"{path} names the column {twice[0]!r} twice: rename one")
    return Table(rows(), columns, lambda: read / total if total else 1.0, file.schema_arrow)


def _of_parquet(batch: Any, i: int, before: int) -> Row | BadRow:
    try:
        return batch.slice(i, 1).to_pylist()[0]
    except ValueError as error:  # bytes that are not UTF-8, nanoseconds
        return BadRow(before + i + 1, str(error), "")


def pyarrow_for(what: str) -> Any:
    """The package pyarrow; a ModuleNotFoundError says that *what* needs it."""
    try:
        import pyarrow
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{what} needs pyarrow: {install_line('tables')}", name="pyarrow") from error
    return pyarrow
