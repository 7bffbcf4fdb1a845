"""Pairs that others published: as JSON lines, or as a file of sources beside one of targets."""

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path

from mist_fairseq.experiments.preparation.pair_files import (
    SIDES,
    SPLITS,
    PairFiles,
    open_text,
    progress,
    read_json_lines,
    text_of,
)
from mist_fairseq.text.tokenizer import SEP, UNK
from mist_fairseq.text.wordpiece import join_pieces


def prepare(files: PairFiles, paths: Sequence[str], pieces: bool = False):
    """Write the pairs at three *paths*, for training, validation and testing, as they are; count the splits' overlap.

    A path that is a file has ``{"src": ..., "tgt": ...}`` a line, plain or .gz; at any other, ``PATH.src`` and
    ``PATH.tgt`` have a text a line. A list, and with *pieces* every text, is WordPiece's pieces: they are joined to
    text of which it makes the same pieces. A ``[SEP]`` in a source, as between answer and passage, stays what it is.
    """
    for split, path in zip(SPLITS, paths):
        for record in _records(path, files):
            with files.skipping():
                source, target = (_joined(record.get(side), pieces) for side in SIDES)
                parts = source.split(SEP) if isinstance(source, str) else [source]
                pair = f" {SEP} ".join(text_of(part, "src") for part in parts), text_of(target, "tgt")
                files.add(split, *pair)
                if any(UNK in text for text in pair):
                    files.remarks[f"pairs with {UNK}, here plain text"] += 1
                if not pieces and any(" ##" in text for text in pair):
                    files.remarks["pairs with ##, which --pieces would join"] += 1
    files.count_overlap()


def _records(path: str, files: PairFiles) -> Iterator[dict]:
    if path.endswith((".src", ".tgt")):
        raise ValueError(f"{path} is one side of the pairs: give {path[:-4]}, and both are read")
    if Path(path).is_file():
        yield from read_json_lines(path, files.skipped)
        return
    if not Path(f"{path}.src").is_file():
        raise FileNotFoundError(f"there is neither {path}, a file of JSON lines, nor {path}.src beside {path}.tgt")
    with open_text(f"{path}.src") as sources, open_text(f"{path}.tgt") as targets:
        for number, pair in enumerate(zip_longest(progress(sources, path, "lines"), targets)):
            if None in pair:
                ended = "src" if pair[0] is None else "tgt"
                raise ValueError(f"{path}.{ended} ends after {number:,} lines, expected as many as of the other side")
            yield dict(zip(SIDES, pair))


def _joined(value, pieces: bool):
    """Return the text of what are pieces, anything else as it is."""
    if pieces and isinstance(value, str):
        value = value.split()
    if isinstance(value, list) and all(isinstance(piece, str) for piece in value):
        return join_pieces(value)
    return value
