"""Tables in Markdown."""

from collections.abc import Iterable


def markdown_table(heads: list[str], lines: Iterable[list[str]]) -> str:
    """A table in GitHub's Markdown. Vertical bars in cells are escaped, line breaks become spaces."""
    rows = [[" ".join(cell.replace("|", r"\|").split()) for cell in row] for row in [heads, *lines]]
    rows.insert(1, ["---"] * len(heads))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
