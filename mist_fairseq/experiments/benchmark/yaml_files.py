"""YAML of files that are not to be trusted, as plain values of bounded size."""

from pathlib import Path

import yaml

from mist_fairseq.files.reading import count_values

_MOST_BYTES = 1_000_000  # whose reader takes ten seconds for so much
_LONGEST_TEXT, _LONGEST_NUMBER = 3_000, 16  # of longer ones many may have equal hashes, which makes mappings slow


def read_yaml(path: Path):
    """The content of a YAML file without tags that make objects.

    Raises:
        ValueError: it is none, or stands for more than ``reading.MOST_VALUES`` values, as a few lines of aliases can;
            names it.
    """
    try:
        if not path.is_file():
            raise ValueError("it is no file")
        size = path.stat().st_size
        if size > _MOST_BYTES:
            raise ValueError(f"it has {size:,} bytes, expected at most {_MOST_BYTES:,}")
        loader = yaml.SafeLoader(path.read_text(encoding="utf-8"))
        node = loader.get_single_node()
        count_values(node, _parts)  # before "<<" copies what it refers to
        return None if node is None else loader.construct_document(node)
    # PyYAML's own, and what it lets through of values that are not of their type, such as dates.
    except (yaml.YAMLError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not YAML: {error}") from error


def _parts(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    if isinstance(node, yaml.ScalarNode):
        most = _LONGEST_NUMBER if node.tag.endswith(":int") else _LONGEST_TEXT
        if len(node.value) > most:
            raise ValueError(f"{node.value[:40]!r}... has {len(node.value):,} characters, at most {most:,} can be")
    return node.value if isinstance(node, yaml.SequenceNode) else []
