"""Folders of files that are written whole."""

import json
from collections.abc import Callable
from pathlib import Path

from mist_fairseq.output import whole_file

CONFIG = "config.json"


def write_folder(
    folder: str, config: dict, files: dict[str, Callable[[Path], object]], overwrite: bool = False
) -> list[str]:
    """Write files and, last, ``config.json``: a folder that is only half written has none.

    Args:
        folder: to write to; made if it is not there.
        config: content of ``config.json``.
        files: by their names, what writes them to a path.
        overwrite: replace files that are there.

    Returns:
        The names of the files.

    Raises:
        FileExistsError: the folder has such files already.
    """
    path, names = Path(folder), [CONFIG, *files]
    there = [name for name in names if (path / name).exists()]
    if there and not overwrite:
        raise FileExistsError(
            f"{folder} has {', '.join(there)} already: choose another folder or allow to overwrite it (--overwrite)"
        )
    (path / CONFIG).unlink(missing_ok=True)
    for name, write in files.items():
        with whole_file(path / name) as partial:
            write(partial)
    with whole_file(path / CONFIG) as partial:
        partial.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return names


def text(content: str) -> Callable[[Path], object]:
    """What writes a text."""
    return lambda path: path.write_text(content, encoding="utf-8")
