"""What is written is read as it was, by the readers here and by those of other packages."""

import csv
import datetime
import gzip
import itertools
import json
from decimal import Decimal

import pyarrow
import pyarrow.parquet as parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mist_fairseq.files import row_writer
from mist_fairseq.files.row_writer import RowWriter
from mist_fairseq.files.tables import Kind, open_rows

TEXT = st.text(st.characters(codec="utf-8"))
LINE = st.text(st.characters(codec="utf-8", exclude_characters="\n\r\t"))
DAY = datetime.date(2024, 2, 29)
COLUMNS = ["a", "b c", "ä"]


def write(path, blocks, columns=COLUMNS, **options) -> list[dict]:
    with open(path, "wb") as file:
        writer = RowWriter(file, Kind.of(path), columns, **options)
        refused = [writer.write(block) for block in blocks]
        writer.close()
    return refused


def read(path) -> list:
    return list(open_rows(path))


def rows_of(texts):
    return st.lists(st.fixed_dictionaries(dict.fromkeys(COLUMNS, texts)))


@pytest.mark.parametrize("name", ["q.tsv", "q.csv", "q.jsonl", "q.jsonl.gz", "q.tsv.zst", "q.csv.gz", "q.parquet"])
def test_round_trip(tmp_path_factory, name):
    @settings(max_examples=20)
    @given(st.lists(rows_of(LINE if "tsv" in name else TEXT), max_size=3))
    def check(blocks):
        path = tmp_path_factory.mktemp("rows") / name
        assert not any(write(path, blocks, like=dict.fromkeys(COLUMNS, "")))
        assert read(path) == list(itertools.chain(*blocks))

    check()


@settings(max_examples=20)
@given(st.lists(LINE))
def test_text(tmp_path_factory, texts):
    path = tmp_path_factory.mktemp("text") / "q.txt"
    write(path, [[{"output": text, "score": 1} for text in texts]], ["output"])
    assert path.read_bytes() == "".join(text + "\n" for text in texts).encode()
    assert read(path) == [{"text": text} for text in texts]


def test_other_readers(tmp_path):
    rows = [{"a": "x,y\r", "b c": "\u2028", "ä": '"\n'}, {"a": "", "b c": "", "ä": "z"}]
    write(tmp_path / "q.csv", [rows])
    with open(tmp_path / "q.csv", newline="", encoding="utf-8") as file:
        assert list(csv.DictReader(file)) == rows
    write(tmp_path / "q.parquet", [rows])
    assert parquet.read_table(tmp_path / "q.parquet").to_pylist() == rows
    write(tmp_path / "q.jsonl.gz", [rows])
    lines = gzip.decompress((tmp_path / "q.jsonl.gz").read_bytes()).decode().split("\n")[:-1]
    assert [json.loads(line) for line in lines] == rows


@pytest.mark.parametrize("name", ["q.csv", "q.jsonl.gz", "q.tsv.zst", "q.txt"])
def test_a_file_that_ends_after_a_block_is_written_on(tmp_path, name):
    path, blocks = tmp_path / name, [[{"a": str(10 * i + j)} for j in range(4)] for i in range(3)]
    write(path, blocks, ["a"])
    whole = path.read_bytes()
    write(path, blocks[:2], ["a"])
    with open(path, "ab") as file:
        writer = RowWriter(file, Kind.of(path), ["a"], begun=True)
        writer.write(blocks[2])
        writer.close()
    assert path.read_bytes() == whole and len(read(path)) == 12


def test_empty_files(tmp_path):
    for name, content in (("q.txt", b""), ("q.jsonl.gz", b""), ("q.csv", "a,b c,ä\n".encode())):
        write(tmp_path / name, [], like={})
        assert (tmp_path / name).read_bytes() == content
    write(tmp_path / "q.parquet", [], like={"a": 1, "b c": [0.5]})
    assert parquet.read_schema(tmp_path / "q.parquet").field("a").type == pyarrow.int64()


VALUES = {"a": 1.5, "b c": [None, {"x": True}], "ä": None}


def test_values_that_are_no_texts(tmp_path):
    write(tmp_path / "q.csv", [[VALUES]])
    assert read(tmp_path / "q.csv") == [{"a": "1.5", "b c": '[null, {"x": true}]', "ä": ""}]
    write(tmp_path / "q.parquet", [[VALUES], [VALUES]])
    assert read(tmp_path / "q.parquet") == [VALUES] * 2
    write(tmp_path / "q.jsonl", [[{"a": DAY, "b": Decimal("0.10")}]])
    assert read(tmp_path / "q.jsonl") == [{"a": "2024-02-29", "b": "0.10"}]


def test_parquet_keeps_its_types_and_has_large_row_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(row_writer, "_GROUP", 7)
    schema = pyarrow.schema([("n", pyarrow.int8()), ("t", pyarrow.float32()), ("left", pyarrow.string())])
    blocks = [[{"n": i, "t": 0.5, "o": []} for i in range(k, k + 3)] for k in range(0, 12, 3)]
    write(tmp_path / "q.parquet", blocks, ["n", "t", "o"], schema=schema, like={"o": [1]})
    file = parquet.ParquetFile(tmp_path / "q.parquet")
    assert list(map(str, file.schema_arrow.types))[:2] == ["int8", "float"]
    assert file.schema_arrow.field("o").type.value_type == pyarrow.int64()
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [9, 3]
    assert read(tmp_path / "q.parquet") == list(itertools.chain(*blocks))


@pytest.mark.parametrize(
    "name, row, reason",
    [
        ("q.tsv", {"a": "x\ty"}, "it has a tab or a line break within a field"),
        ("q.tsv", {"a": "x\ny"}, "it has a tab or a line break within a field"),
        ("q.tsv", {"ä": "x\r"}, "it has a tab or a line break within a field"),
        ("q.txt", {"a": "x\ny"}, "it has a tab or a line break within a field"),
        ("q.csv", {"d": "x"}, "it has a column 'd', which the first row had not"),
        ("q.parquet", {"d": "x"}, "it has a column 'd', which the first row had not"),
        ("q.parquet", {"a": 1}, "Expected bytes, got a 'int' object"),
        ("q.jsonl", {"a": b"x"}, "it has a value of bytes: only Parquet takes such rows"),
        ("q.jsonl", {"a": "\ud800"}, "surrogates not allowed"),
    ],
)
def test_rows_that_are_refused_leave_the_others(tmp_path, name, row, reason):
    good = dict.fromkeys(COLUMNS, "x")
    ((refused),) = write(tmp_path / name, [[good, row, good]], like=good)
    assert list(refused) == [1] and reason in refused[1]
    assert read(tmp_path / name) == [{"text": "x"} if name == "q.txt" else good] * 2


def test_a_column_of_several_types(tmp_path):
    with pytest.raises(ValueError, match="column 'a' has no type that Parquet knows .*: write JSONL"):
        write(tmp_path / "q.parquet", [[{"a": 1}, {"a": "x"}]], ["a"])
