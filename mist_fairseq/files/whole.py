"""Writing a file so that it is there whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None  # type: ignore[assignment]


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Give a temporary file that replaces *path* if no error comes; BlockingIOError: another process writes it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".tmp")
    if partial.is_symlink():  # through which another file would be written
        partial.unlink()
    with open(partial, "ab") as held:  # the lock of a killed process is gone with it
        hold(held, path)
        try:
            yield partial
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def hold(file: IO[bytes], path: str | Path):
    """Lock an open file, of which *path* will be made, until it is closed; BlockingIOError: another process has it."""
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        message = f"{path} is being written by another process: wait for its end, or choose another file"
        raise BlockingIOError(error.errno, message) from error


def write_text(path: str | Path, text: str):
    """Write a text file whole or not at all."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")
