"""Properties that hold whatever the input: each target takes bytes, and raises an AssertionError if one does not hold.

hypothesis tries them in ``test_targets.py``, atheris, guided by coverage, with ``scripts/fuzz.sh``.
"""

import importlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

# Those that need neither torch nor fairseq come first; they are what atheris runs.
_MODULES = {
    "dictionary": (
        "vocabulary",
        "saved_dictionary",
        "sentencepiece_model",
        "tokenizer_config",
        "tokenizer_json",
        "text",
        "ids",
    ),
    "preparation": (
        "quora",
        "squad",
        "squad_lists",
        "xsum_json_lines",
        "xsum_documents",
        "published_pairs",
        "own_tables",
        "static_mix",
        "gzip_lines",
    ),
    "readers": ("bart_dictionary", "generation", "training_log", "result_files", "systems", "requests"),
}
TARGETS = {name: module for module, names in _MODULES.items() for name in names}
GUIDED = [name for name, module in TARGETS.items() if module != "readers"]

SEPARATOR = b"\n=====\n"  # between the files of one input


@dataclass
class Target:
    """A property and where to start from.

    Attributes:
        check: raises an AssertionError, or whatever the code under test should not have raised.
        seeds: usual inputs, and those that were found to break something.
        pieces: what such inputs are made of.
    """

    check: Callable[[bytes], None]
    seeds: list[bytes]
    pieces: list[bytes]


def load(name: str) -> Target:
    """A target by its name."""
    module = importlib.import_module(f"{__name__}.{TARGETS[name]}")
    seeds, pieces = module.START[name]
    return Target(getattr(module, name), seeds, pieces)


@cache
def scratch() -> Path:
    """A folder that lives as long as the process."""
    return Path(_folder().name)


@cache
def _folder() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="mist-fuzz-")


def files(data: bytes, names: list[str]) -> list[str]:
    """Paths of files with the parts of an input; missing parts are empty files. Each target has a folder of its own."""
    parts = data.split(SEPARATOR, len(names) - 1)
    folder = scratch() / Path(names[0]).stem
    paths = [folder / name for name in names]
    folder.mkdir(exist_ok=True)
    for path, part in zip(paths, [*parts, *[b""] * len(names)]):
        path.write_bytes(part)
    return [str(path) for path in paths]


def refuses(error: Exception, paths: list[str], *others: str):
    """An error that a user understands: it says which file it is about, or one of *others*."""
    message = str(error)
    assert any(known in message for known in (*paths, *others)), f"names no file: {error!r}"
