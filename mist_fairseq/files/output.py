"""Files that are there whole or not at all, and Markdown tables."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None  # type: ignore[assignment]


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Gives a file to write to, which takes the place of *path* if the block ends well. Makes the folder.

    Raises:
        BlockingIOError: another process is writing *path*.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".tmp")
    if partial.is_symlink():  # through which another file would be written
        partial.unlink()
    with open(partial, "ab") as held:
        _hold(held, path)
        try:
            yield partial
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def _hold(file, path: Path):
    """Keep other processes from writing *path* as long as *file* is open; a killed process holds nothing."""
    if fcntl is None:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        message = f"{path} is being written by another process: wait for its end, or choose another file"
        raise BlockingIOError(error.errno, message) from error


def markdown_table(heads: list[str], lines: Iterable[list[str]]) -> str:
    """A table of GitHub's Markdown; vertical bars in cells are escaped, line breaks become spaces."""
    rows = [[" ".join(cell.replace("|", r"\|").split()) for cell in row] for row in [heads, *lines]]
    rows.insert(1, ["---"] * len(heads))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
