"""What all experiments do with a result: say where it comes from, write it whole or not at all, draw it."""

import json
import platform
import shlex
import subprocess
import sys
from pathlib import Path

from mist_fairseq.extras import install_line
from mist_fairseq.files.whole import whole_file, write_text


def provenance() -> dict[str, str | None]:
    """The running command, and the commit if this is a git checkout, with a + if files were changed since."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = None
    return {"command": shlex.join(["python", *sys.argv]), "commit": commit}


def processor() -> str:
    """The processor's name, from /proc/cpuinfo where there is one."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown processor"


def write_json(path: Path, content: dict):
    """Write a JSON file whole or not at all."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def write_result(path: Path, content: dict, tables: str):
    """Write a result as JSON and its tables beside it as Markdown."""
    write_json(path, content)
    write_text(path.with_suffix(".md"), tables)


def new_figure(width: float, height: float):
    """Return an empty figure, inches wide and high. It needs matplotlib (or ModuleNotFoundError), but no display."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"no module {error.name!r}, which drawing needs: {install_line('plot')}") from error
    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure, path: Path):
    """Write a figure whole or not at all, in the format that the file's name ends in."""
    with whole_file(path) as partial:
        figure.savefig(partial, dpi=150, format=path.suffix[1:])
