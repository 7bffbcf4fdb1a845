"""YAML of files that are not to be trusted, as plain values."""

from pathlib import Path

import yaml


def read_yaml(path: Path):
    """The content of a YAML file without tags that make objects.

    Raises:
        ValueError: the file is no YAML; names it.
    """
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    # PyYAML's own errors, and what it lets through of values that are not of their type, such as dates.
    except (yaml.YAMLError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
