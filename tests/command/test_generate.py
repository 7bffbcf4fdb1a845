"""The command line of ``mist generate``."""

import gzip
import json
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import pytest

from mist_fairseq import OnnxGenerator
from mist_fairseq.bulk.output import Progress
from mist_fairseq.command import generate, main
from mist_fairseq.command.generate import Shown, _parser, job_of
from mist_fairseq.generate.decoding import Decoding
from mist_fairseq.release.folder import save_folder
from mist_fairseq.release.onnx_folder import save_onnx
from tests.helpers import tiny_released

WORDS = ["--banned", "a b", "--banned", "c", "--required", "d", "--min-score", "0"]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    folder = str(tmp_path_factory.mktemp("generate") / "onnx")
    save_onnx(tiny_released(), folder)
    return folder


def job(*arguments):
    return job_of(_parser().parse_args(list(map(str, arguments))))


def test_options_become_a_job(folder, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)))
    given = ["--model", folder, "--input", "a.csv", "--output", "b.jsonl.gz"]
    one = job(*given, "--field", "x", "--field", "y", "--shard", "2/3", "--decoding", "mist", "--no-distinct", *WORDS)
    assert one.fields == ("x", "y") and one.shard == (2, 3) and one.kind == ("jsonl", "gz")
    assert one.model.decoding == Decoding("mist", distinct=False, min_score=0.0, banned=["a b", "c"], required=["d"])
    assert (one.workers, one.model.options) == (6, {"threads": 1})
    for options, workers, threads in (
        (("--workers", 2), 2, 3),
        (("--threads", 3), 2, 3),
        (("--threads", 12), 1, 12),
        (("--device", "cuda:1"), 1, 6),
        (("--device", "cpu", "--precision", "int8"), 6, 1),
    ):
        made = job(*given, *options)
        assert (made.workers, made.model.options["threads"]) == (workers, threads), options
    assert made.model.options["precision"] == "int8"


def test_all_options_of_decoding_are_there():
    defaults = _parser().parse_args(["--model", "m"])
    given = {option.name: getattr(defaults, option.name) for option in fields(Decoding)}
    assert {name: value for name, value in given.items() if value} == {
        option.name: option.default for option in fields(Decoding) if option.default
    }
    help_text = " ".join(_parser().format_help().replace("-\n", "-").split())
    for option in fields(Decoding):
        assert f"--{option.name.replace('_', '-')}" in help_text and option.metadata["help"][:20] in help_text


def test_a_pytorch_folder_has_a_worker_a_core_where_there_is_no_gpu(tmp_path, monkeypatch):
    save_folder(tiny_released(), str(tmp_path), "")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)))
    assert job("--model", tmp_path).workers == 4
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    assert job("--model", tmp_path).workers == 1


@pytest.mark.parametrize(
    "options, message",
    [
        (("--batch-size", 0), "error: --batch-size is 0, expected a whole number of at least 1"),
        (("--workers", 0), "error: --workers is 0, expected a whole number of at least 1"),
        (("--threads", 0, "--workers", 1), "error: --threads is 0, expected a whole number of at least 1"),
        (("--decoding", "quick"), "error: decoding is 'quick', expected one of single-pass"),
        (("--nbest", 2), "error: a text file has no place for several answers"),
        (("--precision", "fp8", "--workers", 1), "error: precision is 'fp8', expected fp32 or int8"),
        (("--input", "none.csv"), "No such file or directory: 'none.csv'"),
        (("--resume",), "error: --resume cannot go on with standard output"),
        (("--format", "xml"), "error: 'xml' is no format"),
    ],
)
def test_what_cannot_work(folder, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    Path("q.txt").touch()
    with pytest.raises(SystemExit) as ended:
        main(["generate", "--model", folder, "--input", "q.txt", *map(str, options)])
    assert message in str(ended.value.code)


def test_usage(folder, capsys):
    for wrong in (["--shard", "2"], ["--resume", "--overwrite"]):
        with pytest.raises(SystemExit):
            main(["generate", "--model", folder, *wrong])
    assert "'2' is not I/N, such as 1/4" in capsys.readouterr().err


def test_the_command_as_it_is_started(folder, tmp_path):
    """Standard input to standard output, and a file by two workers; neither torch nor fairseq is loaded."""
    texts = ["how can i learn", "", "what is it"]
    expected = OnnxGenerator.from_pretrained(folder, threads=1).generate(texts)
    piped = subprocess.run(
        [sys.executable, "-m", "mist_fairseq", "generate", "--model", folder, "--workers", "1"],
        input="\n".join(texts),
        cwd=ROOT,
        text=True,
        capture_output=True,
    )
    assert piped.stdout.split("\n") == [*expected, ""] and piped.stderr.startswith("standard output: 3 rows in 0:00:")
    path, out = tmp_path / "q.jsonl.gz", tmp_path / "out.jsonl"
    path.write_bytes(gzip.compress("".join(json.dumps({"q": text}) + "\n" for text in [*texts, 5]).encode()))
    files = ["--input", str(path), "--output", str(out), "--errors", str(tmp_path / "bad"), "--field", "q"]
    script = "import sys, mist_fairseq.command as c\nif __name__ == '__main__':\n c.main(sys.argv[1:])\n"
    script += " print([name for name in ('torch', 'fairseq') if name in sys.modules])"
    command = [sys.executable, "-c", script, "generate", "--model", folder, *files, "--workers", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "[]\n" and "out.jsonl: 4 rows in" in done.stderr and "1 bad rows are in" in done.stderr
    assert [json.loads(line)["output"] for line in out.read_text().splitlines()] == expected


def test_progress(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(generate.time, "monotonic", lambda: now[0])
    shown = Shown()
    for now[0], row, last in ((10.0, 100, None), (40.0, 400, 1000.4), (41.0, 410, 1000.0)):
        shown.update(Progress(row, bad=2), last, row - shown.rows)
    assert capsys.readouterr().err == "row 400 of about 1,000, 10 rows/s, 0:01:00 left, 2 bad\n"
    monkeypatch.setattr(sys, "stderr", SimpleNamespace(isatty=lambda: True, write=print, flush=lambda: None))
    shown = Shown()
    now[0] += 1
    shown.update(Progress(5), None, 5)
    shown.end("done")
    assert capsys.readouterr().out == "\r\033[Krow 5, 5 rows/s\n\n\r\033[Kdone\n\n\n"


def test_a_reader_that_has_enough(folder, tmp_path):
    path = tmp_path / "q.txt"
    path.write_text("what is it\n" * 3000)
    command = f"{sys.executable} -m mist_fairseq generate --model {folder} --workers 1 --input {path} | head -1"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert len(done.stdout.splitlines()) == 1 and "Traceback" not in done.stderr and "error" not in done.stderr
