"""Rows through a real model: what is written is what the generator answers, row by row, in every format."""

import csv
import json
import os
import random
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mist_fairseq import OnnxGenerator
from mist_fairseq.bulk import job as bulk
from mist_fairseq.bulk import workers
from mist_fairseq.bulk.job import Job, run
from mist_fairseq.bulk.workers import Answer, Answers, Model
from mist_fairseq.files.row_writer import RowWriter
from mist_fairseq.files.tables import Kind, open_rows
from mist_fairseq.generate.decoding import Decoding

ROOT = Path(__file__).parents[2]
BAD = [4, 78, 200]  # the numbers of the bad rows of ``questions``


@pytest.fixture
def job(folder, tmp_path, questions):
    """Makes jobs."""
    model = Model(folder, {"threads": 1}, batch_size=4)
    files = {"input": str(questions), "output": str(tmp_path / "out.jsonl"), "errors": str(tmp_path / "bad")}
    return partial(Job, model=model, fields=("q",), **files)


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(bulk, "_CHUNK", 16)
    monkeypatch.setattr(bulk, "_BATCHES", 1)


def rows_of(path) -> list[dict]:
    return list(open_rows(path))


# -- what is written ----------------------------------------------------------------------------------------------


def test_every_row_has_its_answer(job, questions, small_chunks):
    done = run(job())
    lines = questions.read_text().split("\n")
    good = [json.loads(line) for number, line in enumerate(lines, start=1) if number not in BAD]
    generator = OnnxGenerator.from_pretrained(job().model.folder, threads=1)
    expected = generator.generate([row["q"] for row in good], return_scores=True)
    for row, question, output in zip(rows_of(job().output), good, expected, strict=True):
        score = pytest.approx(output.score, abs=1e-4)
        assert row == {**question, "output": output.text, "score": score, "length": len(output.tokens)}
        assert list(row) == ["id", "q", "output", "score", "length"]
    bad = rows_of_json(job().errors)
    assert [row["row"] for row in bad] == BAD and bad[0]["raw"] == lines[3]
    assert [row["reason"].partition(":")[0] for row in bad] == [
        "it is not JSON",
        "it has no 'q'",
        "its 'q' is int, expected a text",
    ]
    assert (done.row, done.bad, done.cut) == (200, 3, 1)


def rows_of_json(path) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text().split("\n")[:-1]]


def test_pairs(job, questions, tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_text("passage,answer\nhow can you learn,the guitar\n,\n")
    run(job(input=str(path), fields=("answer", "passage")))
    generator = OnnxGenerator.from_pretrained(job().model.folder, threads=1)
    assert [row["output"] for row in rows_of(job().output)] == generator.generate(
        [("the guitar", "how can you learn"), ("", "")]
    )


@pytest.mark.parametrize("end", ["csv", "tsv.gz", "parquet", "jsonl.zst", "txt"])
@pytest.mark.parametrize("start", ["csv", "parquet", "tsv.zst", "jsonl"])
def test_formats(job, tmp_path, start, end):
    """All of them have the same rows."""
    rows = [{"id": str(i), "q": text} for i, text in enumerate(["how can i", "what", "who do you", "it is"])]
    source, out = tmp_path / f"in.{start}", tmp_path / f"out.{end}"
    with open(source, "wb") as file:
        writer = RowWriter(file, Kind.of(source), ["id", "q"])
        writer.write(rows)
        writer.close()
    run(job(input=str(source)))
    expected = rows_of(job().output)
    assert [{"id": row["id"], "q": row["q"]} for row in expected] == rows
    run(job(input=str(source), output=str(out), overwrite=True))
    if end == "txt":
        assert rows_of(out) == [{"text": row["output"]} for row in expected]
    elif end in ("csv", "tsv.gz"):
        assert rows_of(out) == [{name: str(value) for name, value in row.items()} for row in expected]
    else:
        assert rows_of(out) == expected


def test_plain_text_keeps_its_lines(job, tmp_path):
    """A bad line leaves an empty one."""
    (tmp_path / "q.txt").write_bytes(b"how can i\n\xff\n\nwhat is it")
    run(job(input=str(tmp_path / "q.txt"), output=str(tmp_path / "out.txt"), fields=("text",)))
    answers = OnnxGenerator.from_pretrained(job().model.folder, threads=1).generate(["how can i", "what is it"])
    assert (tmp_path / "out.txt").read_text() == f"{answers[0]}\n\n\n{answers[1]}\n"
    assert [row["row"] for row in rows_of_json(job().errors)] == [2]


def test_several_answers(job, tmp_path):
    path = tmp_path / "q.tsv"
    path.write_text("q\nhow can i\nwhat is it\n")
    model = replace(job().model, decoding=Decoding(nbest=3, min_score=-6.2))
    run(replace(job(input=str(path)), model=model))
    lists = rows_of(job().output)
    number = [len(row["output"]) for row in lists]
    assert all(len(row["score"]) == len(row["length"]) == n for row, n in zip(lists, number)) and max(number) <= 3
    assert all(row["score"] == sorted(row["score"], reverse=True) for row in lists)
    run(replace(job(input=str(path), output=str(tmp_path / "out.csv"), overwrite=True), model=model))
    with open(tmp_path / "out.csv", newline="") as file:
        named = list(csv.DictReader(file))
    assert list(named[0]) == ["q", *(f"{name}_{i}" for name in ("output", "score", "length") for i in (1, 2, 3))]
    for row, lists_of_row, n in zip(named, lists, number):
        for name in ("output", "score", "length"):
            cells = [row[f"{name}_{i}"] for i in (1, 2, 3)]
            assert cells == [str(value) for value in lists_of_row[name]] + [""] * (3 - n)


def test_no_answer_has_no_score(job, tmp_path):
    (tmp_path / "q.txt").write_text("how can i\n")
    model = replace(job().model, decoding=Decoding(min_score=-0.1))
    run(replace(job(input=str(tmp_path / "q.txt"), fields=("text",)), model=model))
    assert rows_of(job().output) == [{"text": "how can i", "output": "", "score": None, "length": 0}]


def test_columns_that_are_there_already(job, tmp_path):
    (tmp_path / "q.csv").write_text("q,score\nwhat,1\n")
    with pytest.raises(ValueError, match="it has a column 'score' already: give --prefix"):
        run(job(input=str(tmp_path / "q.csv")))
    run(job(input=str(tmp_path / "q.csv"), prefix="new_", overwrite=True))
    (row,) = rows_of(job().output)
    assert list(row) == ["q", "score", "new_output", "new_score", "new_length"] and row["score"] == "1"
    (tmp_path / "q.jsonl").write_text('{"q": "what"}\n{"q": "it", "length": 3}\n')
    run(job(input=str(tmp_path / "q.jsonl"), overwrite=True))
    assert len(rows_of(job().output)) == 1
    assert "it has a column 'length' already" in rows_of_json(job().errors)[0]["reason"]


def test_rows_that_the_output_cannot_have(job, tmp_path):
    (tmp_path / "q.jsonl").write_text('{"q": "what"}\n{"q": "it", "more": 3}\n{"q": "who"}\n')
    run(job(input=str(tmp_path / "q.jsonl"), output=str(tmp_path / "out.csv")))
    assert [row["q"] for row in rows_of(tmp_path / "out.csv")] == ["what", "who"]
    (bad,) = rows_of_json(job().errors)
    assert bad["row"] == 2 and "it has a column 'more'" in bad["reason"] and bad["raw"] == '{"q": "it", "more": 3}'


@pytest.mark.parametrize("name, content", [("a.csv", "q,a\n"), ("a.jsonl", ""), ("a.txt", "")])
def test_no_rows(job, tmp_path, name, content):
    (tmp_path / name).write_text(content)
    fields = ("text",) if name == "a.txt" else ("q",)
    for end in ("csv", "jsonl", "txt", "parquet"):
        out = str(tmp_path / f"out.{end}")
        assert run(job(input=str(tmp_path / name), output=out, fields=fields, overwrite=True)).row == 0
        assert rows_of(out) == []
    assert (tmp_path / "out.csv").read_text().endswith("output,score,length\n")


# -- what is refused ----------------------------------------------------------------------------------------------


def test_the_first_bad_row_ends_a_run_without_errors(job, tmp_path):
    alone = replace(job(), errors=None)
    with pytest.raises(ValueError, match=r"^row 4 of .*q.jsonl: it is not JSON: .* --errors FILE takes such rows"):
        run(alone)
    assert not Path(alone.output).exists()
    run(job(resume=True))  # with --errors it goes on
    assert len(rows_of(alone.output)) == 197


@pytest.mark.parametrize(
    "options, message",
    [
        ({"fields": ("query",)}, "has no column 'query', expected of --field: it has text"),
        ({"shard": (0, 4)}, "--shard is 0/4: the first of 4 parts is 1/4, the last 4/4"),
        ({"shard": (5, 4)}, "--shard is 5/4"),
        ({"shard": (1, 2), "input": "-", "input_format": "text"}, "standard input has no time for"),
        ({"output": "-", "resume": True}, "--resume cannot go on with standard output"),
        ({"output": "out.parquet", "resume": True}, "--resume cannot go on with Parquet"),
        ({"output": "out"}, "the name 'out' does not tell its format"),
        ({"errors": "in.txt"}, "--errors is in.txt, which is another file already"),
    ],
)
def test_what_cannot_work(job, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    Path("in.txt").write_text("how\n")
    with pytest.raises(ValueError, match=message):
        run(job(**{"input": "in.txt", "fields": ("text",), **options}))
    assert os.listdir() == ["in.txt"]


def test_several_answers_are_no_text(job):
    with pytest.raises(ValueError, match="a text file has no place for several answers"):
        replace(job(output="out.txt"), model=replace(job().model, decoding=Decoding(nbest=2)))


def test_files_that_are_there(job, tmp_path):
    run(job())
    with pytest.raises(FileExistsError, match="out.jsonl is there already: choose another file, or --overwrite"):
        run(job())
    other = str(tmp_path / "other.jsonl")
    with pytest.raises(FileExistsError, match="bad is there already: choose another file, or --overwrite"):
        run(job(output=other))
    before = Path(job().output).read_bytes()
    assert run(job(resume=True)).row == 0 and Path(job().output).read_bytes() == before
    run(job(overwrite=True))
    assert Path(job().output).read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["bad", "out.jsonl"]


def test_a_run_is_resumed_as_it_was_begun(job, tmp_path, monkeypatch):
    """Also where no row was bad so far."""
    (tmp_path / "q.jsonl").write_text('{"q": "what is it"}\n' * 5)
    begun = job(input=str(tmp_path / "q.jsonl"))
    with monkeypatch.context() as patch:
        patch.setattr(bulk, "_CHUNK", 2)
        patch.setattr(bulk, "_BATCHES", 0)
        with pytest.raises(KeyboardInterrupt):
            run(begun, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    for wrong, message in (
        (replace(begun, fields=("query",)), r"another field: \['q'\], now \['query'\]. Give the same, or --overwrite"),
        (replace(begun, shard=(1, 2)), "another shard"),
        (replace(begun, model=replace(begun.model, decoding=Decoding("mist"))), "another decoding: 'single-pass', now"),
        (
            replace(begun, model=replace(begun.model, options={"precision": "int8"})),
            "another precision: None, now 'int8'",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            run(replace(wrong, resume=True))
    with pytest.raises(FileExistsError, match="out.jsonl.progress is of a run that was ended: --resume goes on"):
        run(replace(begun, errors=None))
    told = []
    run(replace(begun, resume=True), lambda *each: told.append(each[1:]))
    assert told == [(5, 3)] and len(rows_of(begun.output)) == 5


def test_an_output_that_lost_rows_is_not_gone_on_with(job, tmp_path):
    with pytest.raises(ValueError, match="row 4 "):
        run(replace(job(), errors=None))
    notes = Path(f"{job().output}.progress")
    content = json.loads(notes.read_text())
    content["progress"]["output_bytes"] = 10**6
    notes.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="out.jsonl.partial is shorter than it was"):
        run(job(resume=True))


# -- shards -------------------------------------------------------------------------------------------------------


@settings(max_examples=15)
@given(st.integers(0, 40), st.integers(1, 9))
def test_shards_are_the_whole(tmp_path_factory, rows, parts):
    """With a stand-in for the model."""
    folder = tmp_path_factory.mktemp("shards")
    (folder / "q.txt").write_text("".join(f"{i}\n" for i in range(rows)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers.Model, "load", lambda model: None)
        patch.setattr(
            workers.Model, "answer", lambda model, _, texts: [Answers([Answer(t, 0.0, 1)], False) for t in texts]
        )
        patch.setattr(bulk, "_CHUNK", 3)
        patch.setattr(bulk, "_BATCHES", 0)
        joined, sizes = [], []
        for part in range(1, parts + 1):
            one = Job(Model("", {}), str(folder / "q.txt"), str(folder / f"{part}.jsonl"), shard=(part, parts))
            run(one)
            joined += rows_of(one.output)
            sizes.append(len(rows_of(one.output)))
    assert [row["output"] for row in joined] == [str(i) for i in range(rows)]
    assert max(sizes) - min(sizes) <= 1


def test_numbers_of_bad_rows_are_of_the_whole(job, tmp_path):
    found = []
    for part in (1, 2, 3):
        out = str(tmp_path / f"{part}.jsonl")
        run(job(output=out, errors=f"{out}.bad", shard=(part, 3)))
        found += [row["row"] for row in rows_of_json(f"{out}.bad")]
    assert found == BAD


# -- killed -------------------------------------------------------------------------------------------------------

SCRIPT = """
import sys
from mist_fairseq.bulk import job as bulk, output, workers
bulk._CHUNK, bulk._BATCHES, output._EVERY = 8, 1, 0
if __name__ == "__main__":
    job = eval(sys.argv[1], vars(bulk) | vars(workers) | {"Job": bulk.Job})
    bulk.run(job)
"""


def start(job) -> subprocess.Popen:
    command = [sys.executable, "-c", SCRIPT, repr(job)]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)


def rows_noted(job) -> int:
    try:
        return json.loads(Path(f"{job.output}.progress").read_text())["progress"]["row"]
    except FileNotFoundError:
        return 0


def kill_after(job, rows: int):
    """SIGKILL once so many more rows are dealt with, unless the end comes first."""
    target, process = rows_noted(job) + rows, start(job)
    while process.poll() is None and rows_noted(job) < target:
        time.sleep(0.001)
    time.sleep(random.uniform(0, 0.01))
    process.kill()
    process.communicate(timeout=60)


@pytest.mark.parametrize("end, kills", [("jsonl", (1, 60)), ("csv.gz", (40,))])
def test_a_killed_run_goes_on_where_it_was(job, tmp_path, monkeypatch, end, kills):
    monkeypatch.setattr(bulk, "_CHUNK", 8)
    monkeypatch.setattr(bulk, "_BATCHES", 1)
    whole = job(output=str(tmp_path / f"whole.{end}"), errors=str(tmp_path / "whole.bad"))
    run(whole)
    killed = job(output=str(tmp_path / f"out.{end}"), resume=True)
    for rows in kills:
        kill_after(killed, rows)
        assert not Path(killed.output).exists() and 0 < rows_noted(killed) < 200
    with open(f"{killed.output}.partial", "ab") as file:
        file.write(b'{"half')  # as a kill within a write leaves it
    run(killed)
    assert Path(killed.output).read_bytes() == Path(whole.output).read_bytes()
    assert Path(killed.errors).read_bytes() == Path(whole.errors).read_bytes()
    assert sorted(os.listdir(tmp_path)) == sorted(["bad", f"out.{end}", "whole.bad", f"whole.{end}"])
