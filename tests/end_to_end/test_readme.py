"""The examples of the README's section "Doors", as they stand there, on a small model."""

import re
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest

from tests.end_to_end.conftest import ROOT
from tests.end_to_end.warm import environment

RUN = "examples/quickstart/run"  # where the quickstart leaves what the examples use


@pytest.fixture(scope="module")
def blocks() -> list[tuple[str, str]]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text[text.index("\n## Doors\n") : text.index("\n## Install\n")]
    return re.findall(r"^```(\w+)\n(.*?)^```$", section, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory, trained, data) -> Path:
    folder = tmp_path_factory.mktemp("quickstart")
    (folder / "checkpoints").mkdir()
    shutil.copy(trained[0], folder / "checkpoints" / "checkpoint_best.pt")
    shutil.copytree(data, folder / "data-bin")
    return folder


def start(code: str, folder: Path, **options) -> subprocess.Popen:
    """One example in this environment, without its installations."""
    lines = [line for line in code.replace(RUN, str(folder)).splitlines() if not line.startswith("pip install")]
    command = ["bash", "-euo", "pipefail", "-c", "\n".join(lines)]
    return subprocess.Popen(command, cwd=ROOT, env=environment(), text=True, stdout=subprocess.PIPE, **options)


def run(code: str, folder: Path) -> str:
    process = start(code, folder, stderr=subprocess.STDOUT)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def find(blocks, content: str, language: str = "bash") -> str:
    (code,) = [code for kind, code in blocks if content in code and kind == language]
    return code


def test_every_door_works_as_written(blocks, run_folder):
    assert len(blocks) == 5
    interactive = run(find(blocks, "fairseq-interactive"), run_folder)
    expected = [line.split("\t")[2] for line in interactive.splitlines() if line.startswith("H-0\t")]
    assert len(expected) == 3

    assert (run_folder / "model").as_posix() in run(find(blocks, "--to folder"), run_folder)
    python = find(blocks, "MistGenerator.from_pretrained", "python").replace("'", '"')
    printed = run(f"python -c '{python}'", run_folder).splitlines()
    assert [text in printed[-1] for text in expected] == [True] * 3

    onnx = run(find(blocks, "--to onnx"), run_folder).splitlines()
    (single,) = [line.split("\t")[2] for line in run(one_best(blocks), run_folder).splitlines() if line[:2] == "H-"]
    assert onnx[-1] == repr([single])

    code = find(blocks, "mist_fairseq.serve")
    serve(code, run_folder, single)
    serve(code.replace("run/onnx", "run/model"), run_folder, single)


def one_best(blocks) -> str:
    return find(blocks, "fairseq-interactive").replace("--length-beam 3 --nbest 3", "")


def serve(code: str, folder: Path, expected: str):
    """The server's example: it starts, and the other line asks it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    server, ask = [line for line in code.splitlines() if not line.startswith("pip install")]
    assert "8000" in ask and server.startswith("python -m mist_fairseq.serve")
    process = start(f"exec {server.split('#')[0]} --port {port}", folder, stderr=subprocess.PIPE)
    try:
        assert process.stdout.readline() == f"listening on http://127.0.0.1:{port}\n"
        deadline, answer = time.monotonic() + 30, ""
        while not answer and time.monotonic() < deadline:
            asking = start(ask.replace("8000", port), folder)
            answer, _ = asking.communicate(timeout=60)
        assert f'"text":"{expected}"' in answer
    finally:
        process.terminate()
        process.communicate(timeout=60)
    assert process.returncode == 0
