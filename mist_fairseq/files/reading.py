"""Reading a JSON file, with its name in the error, and the marks at the start of a text file."""

import codecs
import json
from pathlib import Path
from typing import Any

_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_json(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds; a ValueError names a file of anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (RecursionError, ValueError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a JSON object but a {type(content).__name__}")
    return content


def check_mark(start: bytes, name: str | Path) -> None:
    """ValueError if the bytes that the file *name* begins with are the byte order mark of UTF-16."""
    if start.startswith(_UTF16):
        raise ValueError(f"{name} is UTF-16, expected UTF-8: iconv -f UTF-16 -t UTF-8 {name}")
