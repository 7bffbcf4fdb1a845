"""Running scripts in this process, and reading what those of the preparation made."""

import logging
import runpy
import signal
import sys
import warnings
from pathlib import Path

SCRIPTS = Path(__file__).parents[3] / "scripts"


def run_script(monkeypatch, name: str, *arguments) -> object:
    """Run a script with arguments; its exit status or error message, None for success."""
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with warnings.catch_warnings():
            runpy.run_path(str(SCRIPTS / name), run_name="__main__")
    except SystemExit as end:
        return end.code
    finally:
        signal.signal(signal.SIGTERM, handler)
        logging.disable(logging.NOTSET)


def lines(path: Path) -> list[str]:
    """The lines of a data file; every one is ended."""
    text = path.read_bytes().decode("utf-8")
    assert text == "" or text.endswith("\n")
    assert text.splitlines() == text.split("\n")[:-1]  # all readers count alike
    return text.split("\n")[:-1]


def pairs(folder: Path, split: str) -> list[tuple[str, str]]:
    """(source, target) of a split."""
    return list(zip(lines(folder / f"{split}.src"), lines(folder / f"{split}.tgt"), strict=True))
