"""XSum: BBC articles and their first sentences as summaries, as the authors released them or as JSON lines."""

import re
from collections.abc import Sequence
from pathlib import Path

from mist_fairseq.experiments.preparation.pair_files import (
    PairFiles,
    Skipped,
    open_text,
    progress,
    read_json,
    read_json_lines,
    text_of,
)

_KEYS = {"train": "train", "valid": "validation", "test": "test"}
_SECTION = re.compile(r"^\[SN\]([A-Z-]+)\[SN\][ \t\r]*$", re.MULTILINE)

# Lines of the web page around the article; the distributions as JSON lines are without them as well.
_WEB_PAGE = {"Share this with", "Email", "Facebook", "Messenger", "Twitter", "Pinterest", "WhatsApp", "Linkedin"}
_WEB_PAGE |= {"LinkedIn", "Copy this link", "These are external links and will open in a new window"}


def prepare_documents(files: PairFiles, documents: str, split: str):
    """Write articles of a folder of ``ID.summary`` files, as a JSON file maps train, validation and test to ids."""
    if not Path(documents).is_dir():
        raise FileNotFoundError(f"{documents} is not a folder")
    ids = read_json(split)
    if not isinstance(ids, dict) or not all(isinstance(ids.get(key), list) for key in _KEYS.values()):
        raise ValueError(f'{split} is something else, expected {{"train": [ids], "validation": [ids], "test": [ids]}}')
    for name, key in _KEYS.items():
        for identifier in progress(ids[key], key, "documents"):
            with files.skipping():
                try:
                    with open_text(str(Path(documents, f"{identifier}.summary"))) as file:
                        _, *parts = _SECTION.split(file.read())
                except OSError as error:  # there is none, or its name is none that a file can have
                    raise Skipped("no file for the id") from error
                sections = dict(zip(parts[::2], parts[1::2]))
                if "FIRST-SENTENCE" not in sections or "RESTBODY" not in sections:
                    raise Skipped("malformed sections")
                article = "\n".join(x for x in sections["RESTBODY"].split("\n") if x.strip() not in _WEB_PAGE)
                files.add(name, text_of(article, "document"), text_of(sections["FIRST-SENTENCE"], "summary"))


def prepare_json_lines(files: PairFiles, paths: Sequence[str]):
    """Write what three files (train, valid, test) hold, ``{"document": ..., "summary": ...}`` a line, plain or .gz."""
    for split, path in zip(_KEYS, paths):
        for record in read_json_lines(path, files.skipped):
            with files.skipping():
                files.add(split, *(text_of(record.get(key), key) for key in ("document", "summary")))
