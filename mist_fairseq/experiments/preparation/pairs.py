"""Pairs from a table of one's own: cleaned, counted, and split so that no group is in two splits."""

import logging
import random
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass

from mist_fairseq.experiments.preparation.pair_files import PairFiles, Skipped, draw_order, progress, text_of
from mist_fairseq.files.tables import BadRow, open_rows
from mist_fairseq.text.tokenizer import SEP, Tokenizer

logger = logging.getLogger(__name__)

# Of validation and test set, unless they are given: a share of all pairs, and so many at most.
SHARE, MOST = 0.05, 2_000

_SHOWN = 10  # unreadable rows that are logged


@dataclass(frozen=True)
class Columns:
    """Names of columns."""

    source: Sequence[str]  #: several are one source, with [SEP] in between
    target: str
    group: str | None = None  #: of what must stay together; by default equal sources must


@dataclass(frozen=True)
class Limits:
    """The longest source and target that are kept; None: any."""

    source: int | None = None
    target: int | None = None
    unit: str = "words"  #: or ``characters``, or ``tokens`` of *tokenizer*, the [SEP] at the end counted
    tokenizer: Tokenizer | None = None

    def measure(self) -> Callable[[str], int]:
        """What gives the length of a text; ValueError: there is no such unit."""
        if self.tokenizer is not None and self.unit == "tokens":
            encode = self.tokenizer.encode
            return lambda text: sum(len(encode(part)) + 1 for part in text.split(SEP))
        if self.unit in ("words", "characters"):
            return len if self.unit == "characters" else lambda text: len(text.split())
        raise ValueError(f"lengths in {self.unit}: expected words, characters, or tokens with a vocabulary")


def prepare(
    files: PairFiles,
    path: str,
    columns: Columns,
    *,
    valid: float | None = None,
    test: float | None = None,
    seed: int = 1,
    at_random: bool = False,
    limits: Limits = Limits(),
):
    """Write the pairs of a table, in its order, and count what was left out, lengths, copies and overlap.

    Any file that ``mist_fairseq.files.tables`` reads will do. Of equal pairs the first is kept.

    Args:
        files: where to.
        path: of the table.
        columns: which of its columns.
        valid: pairs for validation, or, below 1, their share of all. By default ``SHARE``, at most ``MOST``. If a group
            must stay together there may be a few more.
        test: the same for testing.
        seed: of the draw.
        at_random: draw pair by pair: then a source, or a group, may be in several splits.
        limits: what is longer is left out.

    Raises:
        OSError: the table cannot be read.
        ValueError: it lacks a column or is damaged; too few pairs.
    """
    measure = limits.measure()
    pairs: list[tuple[str, str]] = []
    groups: list[Hashable] = []
    lengths: list[tuple[int, int]] = []
    for source, target, group in _read(path, columns, files):
        with files.skipping():
            length = measure(source), measure(target)
            for side, found, most in zip(("source", "target"), length, (limits.source, limits.target)):
                if most is not None and found > most:
                    raise Skipped(f"{side} of more than {most:,} {limits.unit}")
            lengths.append(length)
            pairs.append((source, target))
            groups.append(len(groups) if at_random else group)
    if pairs:
        splits = draw(groups, _rows(valid, len(pairs)), _rows(test, len(pairs)), seed)
        for split, pair in zip(splits, pairs):
            files.add(split, *pair)
        for side, measured in zip(("source", "target"), zip(*lengths)):
            ordered = sorted(measured)
            for name, index in (("median", len(ordered) // 2), ("99 %", len(ordered) * 99 // 100), ("longest", -1)):
                files.lengths[f"{side}, {limits.unit}, {name}"] = ordered[index]
        files.remarks["pairs whose target is the source"] = sum(a.casefold() == b.casefold() for a, b in pairs)
    files.count_overlap()


def draw(groups: Sequence[Hashable], valid: int, test: int, seed: int) -> list[str]:
    """Return the split of every pair, given the group of each: whole groups are drawn until a split is full.

    ValueError: nothing is left for training.
    """
    members: dict[Hashable, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    queue = draw_order(list(members.values()), random.Random(seed))
    splits = ["train"] * len(groups)
    for split, size in (("test", test), ("valid", valid)):
        while size > 0 and queue:
            drawn = queue.popleft()
            size -= len(drawn)
            for index in drawn:
                splits[index] = split
    if not queue:
        wanted = f"{test:,} for testing, {valid:,} for validation and one for training"
        raise ValueError(f"{len(groups):,} pairs in {len(members):,} groups do not give {wanted}: give smaller sizes")
    return splits


def _rows(size: float | None, total: int) -> int:
    if size is None:
        return max(1, min(MOST, round(SHARE * total)))
    return max(1, round(size * total)) if size < 1 else int(size)


def _read(path: str, columns: Columns, files: PairFiles) -> Iterator[tuple[str, str, Hashable]]:
    """Yield source, target and group of every usable row, and each pair once; count the others."""
    table, seen, unreadable = open_rows(path), set(), 0
    needed = [*columns.source, columns.target, *([columns.group] if columns.group else [])]
    if table.columns is not None and (missing := [name for name in needed if name not in table.columns]):
        raise ValueError(f"{path} has no column {missing[0]!r}, expected one of {', '.join(table.columns)}")
    for row in progress(table, path, "rows"):
        with files.skipping():
            if isinstance(row, BadRow):
                unreadable += 1
                if unreadable <= _SHOWN:
                    logger.warning("%s, row %d is left out: %s", path, row.number, row.reason)
                raise Skipped("unreadable row")
            source = f" {SEP} ".join(text_of(row.get(name), name) for name in columns.source)
            pair = source, text_of(row.get(columns.target), columns.target)
            group = source.casefold()
            if columns.group:
                value = row.get(columns.group)
                group = text_of(value if value is None else str(value), columns.group)
            if pair in seen:
                raise Skipped("pair seen before")
            seen.add(pair)
            yield *pair, group
