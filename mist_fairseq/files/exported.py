"""Exported folders: a ``config.json``, other files and their checksums."""

import json
from collections.abc import Callable
from pathlib import Path

from mist_fairseq.files.checksums import SUMS, check_sums, write_sums
from mist_fairseq.files.reading import read_json
from mist_fairseq.files.whole import whole_file

CONFIG = "config.json"
_AGAIN = "export the model again with scripts/export.py"


def write_folder(
    folder: str, config: dict, files: dict[str, Callable[[Path], object]], overwrite: bool = False
) -> list[str]:
    """Write files, their checksums and, last, ``config.json``: a folder that is only half written has none.

    *files* has for each file's name a function that writes it to a path. Returns the names of all files.

    Raises:
        FileExistsError: the folder has such files already, and *overwrite* is off.
    """
    path, names = Path(folder), [CONFIG, *files, SUMS]
    there = [name for name in names if (path / name).exists()]
    if there and not overwrite:
        raise FileExistsError(
            f"{folder} has {', '.join(there)} already: choose another folder or allow to overwrite it (--overwrite)"
        )
    (path / CONFIG).unlink(missing_ok=True)
    for name, write in files.items():
        with whole_file(path / name) as partial:
            write(partial)
    write_sums(path, files)
    with whole_file(path / CONFIG) as partial:
        partial.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return names


def text(content: str) -> Callable[[Path], object]:
    """A function that writes a text to a path."""
    return lambda path: path.write_text(content, encoding="utf-8")


def read_config(folder: str | Path, kind: str, version: int, files: list[str], advice: str) -> dict:
    """The ``config.json`` of an exported folder, whose ``format`` and version must be *kind* and *version*.

    *files* are the others that must be there, with the right checksums. *advice* is for the message: what to do with a
    folder of another kind.

    Raises:
        FileNotFoundError: the folder or one of its files is missing.
        ValueError: the folder is of another kind or version, or a file is damaged; says what is there instead.
    """
    path = Path(folder) / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no {CONFIG}: {_AGAIN}")
    config = read_json(path)
    if not isinstance(config, dict) or config.get("format") != kind:
        given = config.get("format", config.get("model_type")) if isinstance(config, dict) else config
        raise ValueError(f"{path} is not what is needed: its format is {given!r}, expected {kind!r}. {advice}")
    if config.get("version") != version:
        raise ValueError(
            f"{path} has version {config.get('version')!r}, this mist_fairseq reads version {version}: {_AGAIN}"
        )
    for name in (SUMS, *files):
        if not (Path(folder) / name).is_file():
            raise FileNotFoundError(f"{folder} has no {name}: {_AGAIN}")
    check_sums(folder, files, _AGAIN)
    return config
