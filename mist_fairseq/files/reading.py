"""Plain values out of files that are not to be trusted. Needs neither torch nor fairseq."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

MOST_VALUES = 100_000


def read_json(path: Path):
    """The content of a JSON file; a ValueError names one that is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (RecursionError, ValueError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error


def count_values(content, parts: Callable[[Any], Iterable], most: int = MOST_VALUES) -> int:
    """How many values something holds when written out: what it holds twice counts twice.

    Args:
        content: a value.
        parts: what a value holds, the same objects at each call.
        most: how many there may be.

    Raises:
        ValueError: there are more, or a value holds itself.
    """
    counts: dict[int, int] = {}
    opened: set[int] = set()
    stack = [content]
    while stack:
        value = stack[-1]
        if id(value) in counts:
            stack.pop()
            continue
        held = list(parts(value))
        waiting = [part for part in held if id(part) not in counts]
        if not waiting:
            counts[id(value)] = 1 + sum(counts[id(part)] for part in held)
            if counts[id(value)] > most:
                raise ValueError(f"it stands for more than {most:,} values")
            stack.pop()
            continue
        opened.add(id(value))
        if any(id(part) in opened for part in waiting):
            raise ValueError("a part of it holds itself")
        stack += waiting
    return counts[id(content)]
