"""Directives for what the pages take from the code: options of dataclasses, modules of packages, scripts."""

import ast
import importlib
import pkgutil
from collections.abc import Iterator
from dataclasses import MISSING, fields
from enum import Enum
from pathlib import Path
from typing import ClassVar

from docutils import nodes
from docutils.parsers.rst.directives import flag
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).resolve().parent.parent


def options(config: type, own: bool = False) -> Iterator[tuple[str, str, str]]:
    """Option, default and help of each field of a fairseq dataclass that has a help text, as fairseq names them.

    Args:
        config: the dataclass.
        own: leave out what it has from its base classes.
    """
    for field in fields(config):
        if "help" not in field.metadata or (own and field.name not in config.__annotations__):
            continue  # without a help text, it is taken from another part of the command line
        default = field.default if field.default is not MISSING else field.default_factory()
        if isinstance(default, Enum):
            default = default.value
        shown = "" if default is None or default == "" else str(default)
        choices = field.type.__members__ if isinstance(field.type, type) and issubclass(field.type, Enum) else {}
        help_text = field.metadata["help"]
        if choices:
            help_text += f" (one of {', '.join(str(choice.value) for choice in choices.values())})"
        positional = field.name == "data"
        names = ["data" if positional else f"--{field.name.replace('_', '-')}", field.metadata.get("argparse_alias")]
        yield ", ".join(name for name in names if name), "off" if default is False else shown, help_text


def modules(name: str) -> list[str]:
    """A module and, if it is a package, all modules below it; packages without a docstring are left out."""
    module = importlib.import_module(name)
    names = [name] if module.__doc__ else []
    for found in pkgutil.iter_modules(getattr(module, "__path__", []), f"{name}."):
        if not found.name.endswith(".__main__"):  # which runs when it is imported
            names += modules(found.name)
    return names


def scripts(folder: Path = ROOT / "scripts") -> Iterator[tuple[str, str]]:
    """Name and first line of the docstring of each script."""
    for path in sorted(folder.glob("*.py")):
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        if docstring:
            yield path.name, docstring.splitlines()[0]


class _Table(SphinxDirective):
    """A table whose first column is literal."""

    def table(self, header: list[str], rows: list[tuple[str, ...]], widths: list[int]) -> list[nodes.Node]:
        group = nodes.tgroup("", *(nodes.colspec(colwidth=width) for width in widths), cols=len(header))
        group += nodes.thead("", self._row(nodes.paragraph("", title) for title in header))
        group += nodes.tbody("", *(self._row(self._cells(row)) for row in rows))
        return [nodes.table("", group)]

    @staticmethod
    def _cells(row: tuple[str, ...]) -> Iterator[nodes.paragraph]:
        first, *others = row
        yield nodes.paragraph("", "", nodes.literal("", first))
        yield from (nodes.paragraph("", text) for text in others)

    @staticmethod
    def _row(cells) -> nodes.row:
        return nodes.row("", *(nodes.entry("", cell) for cell in cells))


class Options(_Table):
    """``{options} module.Dataclass``: a table of its options; with ``:own:`` not those of its base classes."""

    required_arguments = 1
    option_spec: ClassVar = {"own": flag}

    def run(self) -> list[nodes.Node]:
        """The table."""
        module, name = self.arguments[0].rsplit(".", 1)
        config = getattr(importlib.import_module(module), name)
        return self.table(["option", "default", ""], list(options(config, "own" in self.options)), [30, 15, 55])


class Scripts(_Table):
    """``{scripts}``: a table of the scripts."""

    def run(self) -> list[nodes.Node]:
        """The table."""
        return self.table(["scripts/", ""], list(scripts()), [35, 65])


class Modules(SphinxDirective):
    """``{modules}`` with a name a line: the docstrings of these modules and of all modules below them."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        """A section for each module."""
        lines = []
        for name in (name for line in self.content for name in modules(line)):
            lines += [name, "-" * len(name), "", f".. automodule:: {name}", "   :members:", ""]
        return self.parse_text_to_nodes("\n".join(lines), allow_section_headings=True)
