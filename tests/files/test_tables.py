"""Files that csv, json, gzip and pyarrow write are read as they read them; what cannot be read keeps its place."""

import csv
import gzip
import json
import subprocess
import sys
import tracemalloc

import pyarrow
import pyarrow.parquet as parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mist_fairseq.files import tables
from mist_fairseq.files.tables import BadRow, Kind, open_rows

AWKWARD = "a\u2028b\x85c\x0bd\x1ce\u2029 \x00"  # none of it ends a line
FIELD = st.text(st.characters(codec="utf-8"))


def read(path, kind=None):
    return list(open_rows(path, kind))


def write(path, content: bytes):
    path.write_bytes(content)
    return path


# -- what is in them ----------------------------------------------------------------------------------------------


def test_lines_end_at_newlines_alone(tmp_path):
    content = f"\ufeff{AWKWARD}\n\r\nx\ry\r\n\tlast".encode()
    expected = [AWKWARD, "", "x\ry", "\tlast"]
    assert read(write(tmp_path / "q.txt", content)) == [{"text": text} for text in expected]
    jsonl = "\n\n".join(json.dumps({"a": text}, ensure_ascii=False) for text in expected)
    assert read(write(tmp_path / "q.jsonl", jsonl.encode() + b"\n \n")) == [{"a": text} for text in expected]
    tsv = read(write(tmp_path / "q.tsv", f'id\tq\n\n1\t"{AWKWARD}\n2\t\n'.encode()))
    assert tsv == [{"id": "1", "q": f'"{AWKWARD}'}, {"id": "2", "q": ""}]


@settings(max_examples=40)
@given(st.lists(st.tuples(FIELD, FIELD)), st.sampled_from(["\n", "\r\n"]))
def test_csv_is_what_the_csv_module_writes(tmp_path_factory, rows, end):
    path = tmp_path_factory.mktemp("csv") / "q.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator=end, quoting=csv.QUOTE_ALL).writerows([("a", 'b,"\n'), *rows])
    assert read(path) == [{"a": a, 'b,"\n': b} for a, b in rows]


def test_blank_lines(tmp_path):
    """They are texts where a text may stand alone, else nothing."""
    for name in ("a.csv", "a.tsv"):
        assert read(write(tmp_path / name, b"q\n\nx\n\n")) == [{"q": ""}, {"q": "x"}, {"q": ""}]
    assert read(write(tmp_path / "b.csv", b"q,r\n\nx,y\n\n")) == [{"q": "x", "r": "y"}]


def test_parquet(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "_BATCH", 3)
    rows = [{"q": f"{i}\n", "n": i, "of": [{"x": None if i % 2 else "y"}]} for i in range(10)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "q.parquet", row_group_size=4)
    table = open_rows(tmp_path / "q.parquet")
    assert table.columns == ["q", "n", "of"] and table.schema.field("n").type == pyarrow.int64()
    assert table.position() == 0 and next(table.rows) == rows[0]
    assert table.position() == 0.1 and list(table) == rows[1:] and table.position() == 1


@pytest.mark.parametrize("name", ["txt", "tsv", "csv", "jsonl"])
def test_compressed_files_of_several_members(tmp_path, name):
    lines = [f'{{"q": "{i}"}}' if name == "jsonl" else f"{i}" for i in range(5000)]
    start = "" if name in ("txt", "jsonl") else "q\n"
    halves = [(start + "\n".join(lines[:7]) + "\n").encode(), "\n".join(lines[7:]).encode()]
    plain = read(write(tmp_path / f"q.{name}", b"".join(halves)))
    assert len(plain) == 5000 and list(plain[-1].values()) == ["4999"]
    codec = pyarrow.Codec("zstd")
    for end, compress in (("gz", gzip.compress), ("zst", lambda half: codec.compress(half, asbytes=True))):
        content = b"".join(map(compress, halves))
        path = write(tmp_path / f"q.{name}.{end}", content)
        table = open_rows(path)
        assert list(table) == plain and table.position() == 1
        assert read(write(tmp_path / f"other.{end}", content), name) == plain
        assert read(write(tmp_path / "other", content), f"{name}.{end}") == plain
        for damaged in (content[:-9], content[: len(content) // 2], b"\x00" + content[1:]):
            with pytest.raises(ValueError, match=r"q\.\w+\.\w+ is damaged: "):
                read(write(path, damaged))


def test_standard_input():
    script = "from mist_fairseq.files.tables import open_rows\nt = open_rows('-', 'csv')\nprint(t.position(), list(t))"
    command = [sys.executable, "-c", script]
    assert subprocess.run(command, input=b"q\nx\n", capture_output=True).stdout == b"None [{'q': 'x'}]\n"


@pytest.mark.parametrize("name", ["q.jsonl.gz", "q.csv", "q.txt.zst"])
def test_a_large_file_is_not_held(tmp_path, name):
    block = b"q\n" + b"%0300d\n" % 7 * 6_000 if name == "q.csv" else b'{"q": "%0300d"}\n' % 7 * 6_000
    compress = {"gz": gzip.compress, "zst": lambda data: pyarrow.Codec("zstd").compress(data, asbytes=True)}
    path = write(tmp_path / name, compress.get(name.rpartition(".")[2], bytes)(block))
    table = open_rows(path)
    next(table.rows)
    tracemalloc.start()
    try:
        assert sum(1 for _ in table) == 5_999
        assert tracemalloc.get_traced_memory()[1] < 900_000  # of 2 MB
    finally:
        tracemalloc.stop()


# -- what cannot be read ------------------------------------------------------------------------------------------


def test_a_bad_row_has_its_place_and_its_reason(tmp_path):
    jsonl = b'{"q": "a"}\n{"q": \n[1]\n\n\xff\n{"q": "\\ud800"}\n' + b"[" * 100_000 + b'\n{"q": "\\ud83d\\ude00"}\n'
    first, cut, array, undecoded, half, deep, last = read(write(tmp_path / "q.jsonl", jsonl))
    assert first == {"q": "a"} and last == {"q": "\U0001f600"}
    assert (cut.number, cut.raw) == (2, '{"q": ') and cut.reason.startswith("it is not JSON: ")
    assert array == BadRow(3, "it is not a JSON object but a list", "[1]")
    assert (undecoded.number, undecoded.raw) == (4, r"\xff")
    assert half == BadRow(5, "it has half of a surrogate pair, which is no character", r'{"q": "\ud800"}')
    assert deep.number == 6
    text = read(write(tmp_path / "q.txt", "ä\n".encode() + b"b\xe4\n"))
    assert text == [{"text": "ä"}, BadRow(2, "it is not UTF-8: byte 0xe4 after 1 characters", r"b\xe4")]
    tsv = read(write(tmp_path / "q.tsv", b"a\tb\n1\n1\t2\t3\n\xff\t2\n1\t2\n"))
    assert [getattr(row, "reason", row) for row in tsv] == [
        "it has 1 fields, expected 2",
        "it has 3 fields, expected 2",
        "it is not UTF-8: byte 0xff after 0 characters",
        {"a": "1", "b": "2"},
    ]


def test_bad_rows_of_csv(tmp_path):
    limit = csv.field_size_limit()
    rows = b'1\n"x"y,2\n1,"\xff\n"\n1,"' + b"z" * limit + b'z"\n"a\n",2\n1,"open\n'
    short, quote, undecoded, long, good, unclosed = read(write(tmp_path / "q.csv", b"a,b\n" + rows))
    assert short == BadRow(1, "it has 1 fields, expected 2", "1")
    assert quote.reason.startswith("it is not CSV: ") and quote.raw == '"x"y,2'
    assert undecoded.raw == '1,"\\xff\n"' and undecoded.reason.startswith("it is not UTF-8: byte 0xff")
    assert f"field larger than field limit ({limit})" in long.reason
    assert good == {"a": "a\n", "b": "2"}
    assert unclosed.number == 6 and "unexpected end of data" in unclosed.reason


def test_bad_rows_of_parquet(tmp_path):
    binary = pyarrow.array([b"a", b"\xff", b"c"])
    text = pyarrow.Array.from_buffers(pyarrow.string(), 3, binary.buffers())
    parquet.write_table(pyarrow.table({"q": text}), tmp_path / "q.parquet")
    first, bad, last = read(tmp_path / "q.parquet")
    assert (first, last) == ({"q": "a"}, {"q": "c"}) and bad.number == 2 and "utf-8" in bad.reason


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("q.csv", b"", "does not begin with a line of column names"),
        ("q.tsv", b"a\tb\ta\n", "names the column 'a' twice: rename one"),
        ("q.txt", "x".encode("utf-16"), "is UTF-16, expected UTF-8"),
        ("q.csv", b"\xff\n", "q.csv cannot be read: it is not UTF-8"),
        ("q.parquet", b"nothing", "is no Parquet file"),
        ("q.dat", b"", "does not tell its format: expected txt, tsv, csv, jsonl or parquet"),
        ("csv", b"", "the name .* does not tell its format"),
        ("q.gz", b"", "does not tell its format"),
        ("q.parquet.gz", b"", "Parquet compresses by itself"),
    ],
)
def test_files_that_are_refused(tmp_path, name, content, message):
    with pytest.raises(ValueError, match=message):
        read(write(tmp_path / name, content))


def test_a_line_has_an_end(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "_LONGEST", 100)
    assert read(write(tmp_path / "q.txt", b"x" * 98 + b"\n")) == [{"text": "x" * 98}]
    with pytest.raises(ValueError, match="has a line of more than 100 bytes"):
        read(write(tmp_path / "q.txt", b"x" * 101))


def test_kinds():
    assert Kind.of("a/b.c/q.JSONL.GZ") == ("jsonl", "gz") and Kind.of("q.ndjson") == ("jsonl", "")
    assert Kind.of("-", "text.zst") == ("text", "zst") and Kind.of("q.src.gz", "text") == ("text", "gz")
    with pytest.raises(ValueError, match="'xml' is no format"):
        Kind.of("q.csv", "xml")
    with pytest.raises(ValueError, match="the name '-' does not tell its format"):
        Kind.of("-")


def test_pyarrow_is_named_where_it_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for name in ("q.parquet", "q.jsonl.zst"):
        with pytest.raises(ModuleNotFoundError, match=r"needs pyarrow: pip install 'mist-fairseq\[tables\]'"):
            read(write(tmp_path / name, b""))
    assert read(write(tmp_path / "q.csv", b"q\nx\n")) == [{"q": "x"}]


def test_json_is_read_as_json_reads_it(tmp_path):
    rows = [{"a": 1.5, "b": [None, True, {"c": "\u2028"}], "d": 10**30}, {}]
    assert read(write(tmp_path / "q.jsonl", "\n".join(map(json.dumps, rows)).encode())) == rows
