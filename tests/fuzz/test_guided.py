"""The targets without torch under atheris, each with a bounded number of inputs; ``scripts/fuzz.sh`` goes on longer."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz import GUIDED

ROOT = Path(__file__).parents[2]

pytest.importorskip("atheris", reason="no atheris, which is for Linux and Python 3.11 to 3.13")


@pytest.mark.parametrize("name", GUIDED)
def test_inputs_that_reach_new_code(name, tmp_path):
    scratch = tmp_path / "scratch"  # libFuzzer ends the process before it could remove it
    scratch.mkdir()
    command = [sys.executable, "-m", "tests.fuzz", name, str(tmp_path), "-runs=300", "-seed=1"]
    environment = {**os.environ, "TMPDIR": str(scratch)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, errors="replace")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Done 300 runs" in done.stderr
