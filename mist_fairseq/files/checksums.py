"""``SHA256SUMS``: the checksums of a folder's files, in the form that ``sha256sum -c SHA256SUMS`` reads."""

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

from mist_fairseq.files.whole import whole_file

SUMS = "SHA256SUMS"

_LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")


def digest(path: str | Path) -> str:
    """The SHA-256 of a file, as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_sums(folder: str | Path, names: Iterable[str]):
    """Write the checksums of files in a folder."""
    lines = [f"{digest(Path(folder) / name)}  {name}\n" for name in names]
    with whole_file(Path(folder) / SUMS) as partial:
        partial.write_text("".join(lines), encoding="utf-8")


def check_sums(folder: str | Path, names: Iterable[str], advice: str):
    """Compare files with the ``SHA256SUMS`` beside them. A folder without that file is not checked.

    *advice* is for the message: what to do about a damaged file.

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
        raise ValueError(f"{path} is damaged (line {matches.index(None) + 1}): {advice}")
    sums = {match.group(2): match.group(1) for match in matches if match}
    for name in names:
        file = Path(folder) / name
        if name not in sums:
            raise ValueError(f"{path} does not name {name}: {advice}")
        if digest(file) != sums[name]:
            raise ValueError(f"{file} is damaged, or is not the file that {SUMS} beside it was written for: {advice}")
