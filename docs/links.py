"""Relative links of Markdown files: checked in the whole repository, and made to fit the pages of the site.

    python docs/links.py            # prints the links that lead nowhere

Addresses on the web are not looked at.
"""

import logging
import os
import re
import sys
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).resolve().parent.parent
SKIPPED = {"_build", "run", "generated"}  # folders that building and running make

logging.getLogger("markdown_it").setLevel(logging.WARNING)  # fairseq makes the root logger print everything

_EXTERNAL = re.compile(r"[a-z][a-z0-9+.-]*:|//", re.IGNORECASE)
_HTML_ANCHOR = re.compile(r"""<a\s[^>]*\b(?:id|name)=["']([^"']+)["']""")


def markdown_files(root: Path = ROOT) -> list[Path]:
    """README.md and all Markdown of docs/, examples/ and results/."""
    found = [path for folder in ("docs", "examples", "results") for path in root.glob(f"{folder}/**/*.md")]
    return [*root.glob("*.md"), *sorted(path for path in found if not SKIPPED & set(path.relative_to(root).parts))]


def links(text: str) -> Iterator[tuple[int, str]]:
    """Line numbers and targets of all relative links and images; code has none."""
    for token in MarkdownIt("commonmark").enable("table").parse(text):
        for part in token.children or []:
            target = part.attrGet("href") or part.attrGet("src")
            if target and not _EXTERNAL.match(target):
                yield token.map[0] + 1, target


def anchors(text: str) -> set[str]:
    """What ``#...`` can lead to: headings, by the names that GitHub gives them, and HTML anchors."""
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    found, taken = set(_HTML_ANCHOR.findall(text)), {}
    for opening, title in pairwise(tokens):
        if opening.type == "heading_open":
            name = _heading_anchor(title)
            taken[name] = taken.get(name, -1) + 1
            found.add(f"{name}-{taken[name]}" if taken[name] else name)
    return found


def _heading_anchor(title: Token) -> str:
    text = "".join(part.content for part in title.children if part.type in ("text", "code_inline"))
    return re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", "-")


@cache
def _anchors_of(path: Path) -> set[str]:
    return anchors(path.read_text(encoding="utf-8"))


def broken_links(path: Path, root: Path = ROOT) -> list[str]:
    """A message, ``FILE:LINE: ...``, for each relative link of a Markdown file that leads nowhere."""
    messages = []
    for line, target in links(path.read_text(encoding="utf-8")):
        name, _, anchor = unquote(target).partition("#")
        goal = (path.parent / name).resolve() if name else path.resolve()
        if not goal.is_relative_to(root.resolve()):
            wrong = "leads out of the repository"
        elif not goal.exists() or (goal.is_dir() and not any(goal.iterdir())):
            wrong = "leads to nothing"
        else:
            page = goal / "README.md" if goal.is_dir() else goal
            if not anchor or (page.suffix == ".md" and page.is_file() and anchor in _anchors_of(page)):
                continue
            wrong = f"leads to no heading of {page.relative_to(root.resolve())}"
        messages.append(f"{path.relative_to(root)}:{line}: {target} {wrong}")
    return messages


def fit_to_site(text: str, path: Path, page: Path, pages: dict[Path, Path], root: Path = ROOT) -> str:
    """Change the links of a Markdown file for the page of the site that shows it.

    What the site has as a page is linked as such. Other files become downloads, folders plain words.

    Args:
        text: of the file.
        path: the file.
        page: the page that shows it, maybe another file in another folder.
        pages: repository file -> page that shows it.
        root: the repository.
    """
    for target in {target for _, target in links(text) if not target.startswith("#")}:
        name, hash_mark, anchor = target.partition("#")
        goal = (path.parent / name).resolve()
        shown = pages.get(goal / "README.md" if goal.is_dir() else goal)
        if shown is None and goal.is_relative_to(root / "docs"):
            shown = goal
        if shown is not None or goal.is_file():
            new = os.path.relpath(shown or goal, page.parent)
            if shown is not None:
                new += hash_mark + anchor
            elif goal.suffix not in (".png", ".svg"):
                new = f"path:{new}"
            text = text.replace(f"]({target})", f"]({new})")
        else:
            text = re.sub(rf"\[([^\[\]]*)\]\({re.escape(target)}\)", r"\1", text)
    return text


def main() -> int:
    """Check all files; the number of broken links is the exit status, at most 1."""
    files = markdown_files()
    messages = [message for path in files for message in broken_links(path)]
    print("\n".join([*messages, f"{len(files)} Markdown files, {len(messages)} broken links"]))
    return int(bool(messages))


if __name__ == "__main__":
    sys.exit(main())
