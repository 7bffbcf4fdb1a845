"""Rows of data files, written: the formats that ``mist_fairseq.files.tables`` reads."""

import csv
import gzip
import io
import json
from typing import Any, BinaryIO

from mist_fairseq.files.tables import TEXT, Kind, Row, pyarrow_for

_GROUP = 2**14  # rows of a Parquet file's row group


class RowWriter:
    """Writes rows to a file that the caller opened, block by block.

    Each block of a compressed file is a member of its own, so that a file that ends after a block is whole, and may be
    written on. Parquet is whole only after ``close``.

    Args:
        file: opened for bytes.
        kind: of the file.
        columns: what is written of each row. Text writes the first; JSONL, of each row all that it has.
        schema: pyarrow's, of those columns that come from a Parquet file.
        like: for Parquet, values that have the types of other columns. Those of neither have the first block's types.
        begun: the file has rows already, so that TSV and CSV have their column names.
    """

    def __init__(
        self,
        file: BinaryIO,
        kind: Kind,
        columns: list[str],
        schema: Any = None,
        like: Row | None = None,
        begun: bool = False,
    ):
        self._file, self._kind, self._columns = file, kind, columns
        self._begun, self._schema, self._like = begun, schema, like or {}
        self._writer: Any = None  # Parquet's, and the batches of its next row group
        self._batches: list[Any] = []

    def write(self, rows: list[Row]) -> dict[int, str]:
        """Write a block. Gives those rows that cannot be written, by their index in *rows*, with the reason."""
        if self._kind.format == "parquet":
            return self._write_parquet(rows)
        pieces, refused = [] if self._begun else [self._head()], {}
        for i, row in enumerate(rows):
            try:
                pieces.append(self._line(row).encode())
            except (TypeError, ValueError) as error:
                refused[i] = str(error)
        self._begun = True
        self._file.write(self._compressed(b"".join(pieces)))
        return refused

    def close(self) -> None:
        """Write what is left; the file stays open."""
        if not self._begun:
            self.write([])
        if self._kind.format == "parquet":
            self._write_group()
            self._writer.close()

    def _compressed(self, data: bytes) -> bytes:
        if not data or not self._kind.compression:
            return data
        if self._kind.compression == "gz":
            return gzip.compress(data, mtime=0)
        return pyarrow_for(".zst").Codec("zstd").compress(data, asbytes=True)

    def _head(self) -> bytes:
        has_none = self._kind.format in (TEXT, "jsonl")
        return b"" if has_none else self._line(dict(zip(self._columns, self._columns))).encode()

    def _line(self, row: Row) -> str:
        if self._kind.format == "jsonl":
            return json.dumps(row, ensure_ascii=False, default=_plain) + "\n"
        if self._kind.format == TEXT:
            return _separated([_cell(row[self._columns[0]])], "\n")
        self._check_columns(row)
        cells = [_cell(row.get(name)) for name in self._columns]
        if self._kind.format == "tsv":
            return _separated(cells, "\t")
        line = io.StringIO()
        special = any("\r" in cell for cell in cells)  # which is quoted of itself only where it ends a line, too
        csv.writer(line, lineterminator="\n", quoting=csv.QUOTE_ALL if special else csv.QUOTE_MINIMAL).writerow(cells)
        return line.getvalue()

    def _write_parquet(self, rows: list[Row]) -> dict[int, str]:
        pyarrow = pyarrow_for("Parquet")
        if self._writer is None:
            import pyarrow.parquet as parquet

            self._schema = self._types(pyarrow, rows)
            self._writer = parquet.ParquetWriter(self._file, self._schema)
        self._begun, batches, refused = True, [], {}
        try:
            batches.append(self._batch(rows))
        except (TypeError, ValueError):
            for i, row in enumerate(rows):
                try:
                    batches.append(self._batch([row]))
                except (TypeError, ValueError) as error:
                    refused[i] = str(error)
        self._batches += batches
        if sum(map(len, self._batches)) >= _GROUP:
            self._write_group()
        return refused

    def _types(self, pyarrow: Any, rows: list[Row]) -> Any:
        """The schema: of each column its own, that of its value in *like*, or that of its values in the first block."""
        fields = []
        for name in self._columns:
            if self._schema is not None and name in self._schema.names:
                fields.append(self._schema.field(name))
                continue
            values = [self._like[name]] if name in self._like else [row.get(name) for row in rows]
            try:
                kind = pyarrow.array(values).type
            except (TypeError, ValueError) as error:
                raise ValueError(f"column {name!r} has no type that Parquet knows ({error}): write JSONL") from error
            fields.append(pyarrow.field(name, pyarrow.string() if pyarrow.types.is_null(kind) else kind))
        return pyarrow.schema(fields)

    def _batch(self, rows: list[Row]) -> Any:
        for row in rows:
            self._check_columns(row)
        return pyarrow_for("Parquet").RecordBatch.from_pylist(rows, schema=self._schema)

    def _write_group(self) -> None:
        self._writer.write_table(pyarrow_for("Parquet").Table.from_batches(self._batches, self._schema))
        self._batches = []

    def _check_columns(self, row: Row) -> None:
        if other := [name for name in row if name not in self._columns]:
            raise ValueError(f"it has a column {other[0]!r}, which the first row had not: JSONL takes such rows")


def _cell(value: Any) -> str:
    """A value in a format that has texts alone; what is none, as JSON writes it."""
    if isinstance(value, str):
        return value
    return "" if value is None else json.dumps(value, ensure_ascii=False, default=_plain)


def _separated(cells: list[str], separator: str) -> str:
    line = separator.join(cells)
    if "\n" in line or line.count(separator) >= len(cells) or line.endswith("\r"):
        raise ValueError("it has a tab or a line break within a field: CSV, JSONL and Parquet take such rows")
    return line + "\n"


def _plain(value: Any) -> str:
    """What JSON has no type for, such as the dates and decimals of Parquet."""
    if isinstance(value, bytes | bytearray):
        raise TypeError("it has a value of bytes: only Parquet takes such rows")
    return value.isoformat() if hasattr(value, "isoformat") else str(value)
