"""JSON and YAML of files that are not to be trusted: plain values of bounded size. Needs neither torch nor fairseq."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import yaml

MOST_VALUES = 100_000
_MOST_BYTES = 1_000_000  # of YAML, whose reader takes ten seconds for so much
_LONGEST_TEXT = 3_000  # in YAML, where a number of more digits than Python shows needs more


def read_json(path: Path):
    """The content of a JSON file; a ValueError names one that is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (RecursionError, ValueError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error


def read_yaml(path: Path):
    """The content of a YAML file without tags that make objects.

    Raises:
        ValueError: it is none, or stands for more than ``MOST_VALUES`` values, as a few lines of aliases can; names it.
    """
    try:
        size = path.stat().st_size
        if size > _MOST_BYTES:
            raise ValueError(f"it has {size:,} bytes, expected at most {_MOST_BYTES:,}")
        loader = yaml.SafeLoader(path.read_text(encoding="utf-8"))
        node = loader.get_single_node()
        count_values(node, _node_parts)  # before "<<" copies what it refers to
        return None if node is None else loader.construct_document(node)
    # PyYAML's own, and what it lets through of values that are not of their type, such as dates.
    except (yaml.YAMLError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not YAML: {error}") from error


def _node_parts(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    if isinstance(node, yaml.ScalarNode) and len(node.value) > _LONGEST_TEXT:
        raise ValueError(f"{node.value[:40]!r}... has {len(node.value):,} characters, at most {_LONGEST_TEXT:,} can be")
    return node.value if isinstance(node, yaml.SequenceNode) else []


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
