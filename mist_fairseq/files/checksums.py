"""``SHA256SUMS``: what a folder's files were when they were written, as ``sha256sum -c SHA256SUMS`` reads it."""

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

from mist_fairseq.files.output import whole_file

SUMS = "SHA256SUMS"

_LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")


def digest(path: str | Path) -> str:
    """The SHA-256 of a file, as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_sums(folder: str | Path, names: Iterable[str]):
    """Write the sums of a folder's files."""
    lines = [f"{digest(Path(folder) / name)}  {name}\n" for name in names]
    with whole_file(Path(folder) / SUMS) as partial:
        partial.write_text("".join(lines), encoding="utf-8")


def check_sums(folder: str | Path, names: Iterable[str], otherwise: str):
    """Compare files with the sums beside them; without any, nothing is compared.

    Args:
        folder: the folder.
        names: of the files that are needed.
        otherwise: what to do about a damaged one.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file or ``SHA256SUMS`` itself is damaged; names it.
    """
    path = Path(folder) / SUMS
    if not path.is_file():
        return
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    matches = [_LINE.fullmatch(line) for line in lines]
    if None in matches:
        raise ValueError(f"{path} is damaged (line {matches.index(None) + 1}): {otherwise}")
    sums = {match.group(2): match.group(1) for match in matches if match}
    for name in names:
        file = Path(folder) / name
        if name not in sums:
            raise ValueError(f"{path} does not name {name}: {otherwise}")
        if digest(file) != sums[name]:
            raise ValueError(f"{file} is damaged or not the one that {SUMS} beside it is of: {otherwise}")
