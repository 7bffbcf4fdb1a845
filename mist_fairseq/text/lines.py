"""Lines of text files: one rule for all that read any."""

import codecs
from collections.abc import Iterable, Iterator
from pathlib import Path

from mist_fairseq.files.reading import check_mark


def lines_of_file(path: str | Path) -> Iterator[str]:
    r"""Read the lines of a text file one after the other, without their ends.

    Only \n ends a line, or \r\n, so that line i of a source belongs to line i of its target whoever reads them; a
    lone \r, U+2028 and the like are text. The last line needs no end. A byte order mark is no text.

    Raises:
        ValueError: a line is not UTF-8; names the file and the line. Those before it have come by then. Or the file
            begins with the mark of UTF-16.
    """
    with open(path, "rb") as file:
        yield from decoded(file, path)


def decoded(lines: Iterable[bytes], name: str | Path) -> Iterator[str]:
    """Decode lines as a binary file gives them, by the same rule; *name* is what errors call the file."""
    for number, line in enumerate(lines, start=1):
        if number == 1:
            check_mark(line, name)
            line = line.removeprefix(codecs.BOM_UTF8)
            if not line:
                return
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            where = f"at its byte {error.start + 1:,} (0x{line[error.start]:02x})"
            raise ValueError(
                f"{name}, line {number:,} is not UTF-8: {error.reason} {where}: convert the file"
            ) from None
        yield text[:-1].removesuffix("\r") if text.endswith("\n") else text


def count_lines(path: str | Path) -> int:
    """Count the lines of a text file; errors as of ``lines_of_file``."""
    return sum(1 for _ in lines_of_file(path))
