"""Reading a JSON file, with its name in the error."""

import json
from pathlib import Path


def read_json(path: Path):
    """The content of a JSON file.

    Raises:
        ValueError: the file is not JSON; names it.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (RecursionError, ValueError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
