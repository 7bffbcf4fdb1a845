"""Quora question pairs: the duplicates, split so that no question is in two splits, or pair by pair."""

import csv
import random
import re
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence

from mist_fairseq.experiments.preparation.pair_files import SPLITS, PairFiles, Skipped, draw_order, read_lines, text_of

COLUMNS = ["id", "qid1", "qid2", "question1", "question2", "is_duplicate"]

# Such a line is a new row even inside an open quote, so that a stray quote spoils one row only.
_ROW_START = re.compile(r'("?\d+"?\t){3}')
_MAX_ROW_LINES = 100


def prepare(
    files: PairFiles,
    path: str,
    train_size: int,
    valid_size: int,
    test_size: int,
    seed: int = 1,
    split: str = "disjoint",
):
    """Write pairs of duplicates, question1 to question2, in the order of the file, and count the overlap of splits.

    Questions that differ only in case count as one when splits are drawn. Training pairs may be fewer than asked.
    *split* is one of ``DRAWS``.
    """
    if min(train_size, valid_size, test_size) < 1:
        raise ValueError(f"sizes are {train_size}, {valid_size} and {test_size}, expected at least 1 each")
    pairs = list(read_pairs(path, files))
    questions = [(first.casefold(), second.casefold()) for first, second in pairs]
    fates = DRAWS[split](questions, train_size, valid_size, test_size, seed)
    for fate, pair in zip(fates, pairs):
        if fate in SPLITS:
            files.add(fate, *pair)
        else:
            files.skipped[fate] += 1
    if files.kept["train"] < train_size:
        files.remarks["training pairs fewer than asked for"] = train_size - files.kept["train"]
    files.count_overlap()


def draw_pairs(
    pairs: Sequence[tuple[Hashable, Hashable]], train_size: int, valid_size: int, test_size: int, seed: int
) -> list[str]:
    """As ``assign_splits``, but every pair is as likely for each split, wherever its questions are besides."""
    if len(pairs) <= valid_size + test_size:
        sizes = f"{test_size:,} for testing, {valid_size:,} for validation and one for training"
        raise ValueError(f"{len(pairs):,} duplicate pairs do not give {sizes}: give smaller sizes")
    drawn = ["test"] * test_size + ["valid"] * valid_size + ["train"] * train_size
    drawn = drawn[: len(pairs)] + ["beyond the training size"] * (len(pairs) - len(drawn))
    random.Random(seed).shuffle(drawn)
    return drawn


def assign_splits(
    pairs: Sequence[tuple[Hashable, Hashable]], train_size: int, valid_size: int, test_size: int, seed: int
) -> list[str]:
    """Return for every pair train, valid, test, or why it is in none, such that no question is in two of them.

    Questions that pairs connect, directly or through others, form a group. The test set and then the validation set
    take whole groups until they are full; what they do not need of the last one is unused. Training takes of the rest.
    """
    groups, rng = _connected(pairs), random.Random(seed)
    queue = draw_order(groups, rng)
    fates = ["beyond the training size"] * len(pairs)
    for split, size in (("test", test_size), ("valid", valid_size)):
        while size and queue:
            for index in queue.popleft():
                fates[index] = split if size else f"connected to a question in {split}"
                size -= size > 0
    rest = [index for group in queue for index in group]
    if not rest:
        given = f"{len(pairs):,} duplicate pairs in {len(groups):,} groups of connected questions"
        wanted = f"{test_size:,} for testing, {valid_size:,} for validation and one for training"
        raise ValueError(f"{given} do not give {wanted}: give smaller sizes")
    for index in rng.sample(rest, min(train_size, len(rest))):
        fates[index] = "train"
    return fates


def _connected(pairs: Sequence[tuple[Hashable, Hashable]]) -> list[list[int]]:
    """Return indices of the pairs by connected component, in the order of first occurrence."""
    parent: dict[Hashable, Hashable] = {}

    def root(question: Hashable) -> Hashable:
        while parent.setdefault(question, question) != question:
            parent[question] = question = parent[parent[question]]
        return question

    for first, second in pairs:
        parent[root(first)] = root(second)
    groups: dict[Hashable, list[int]] = {}
    for index, (first, _) in enumerate(pairs):
        groups.setdefault(root(first), []).append(index)
    return list(groups.values())


def read_pairs(path: str, files: PairFiles) -> Iterator[tuple[str, str]]:
    """Yield the two questions of every duplicate, each unordered pair once; count everything else."""
    seen = set()
    for row in read_rows(path, files.skipped):
        with files.skipping():
            if row[5] == "0":
                raise Skipped("not a duplicate")
            first, second = text_of(row[3], "question"), text_of(row[4], "question")
            if first == second:
                raise Skipped("twice the same question")
            if (pair := frozenset((first, second))) in seen:
                raise Skipped("pair seen before")
            seen.add(pair)
            yield first, second


def read_rows(path: str, skipped: Counter) -> Iterator[list[str]]:
    """Yield the well-formed rows, six fields each, the last 0 or 1; count the malformed ones, check the header."""
    lines = read_lines(path)
    header = next(lines, "")
    if header.strip().replace('"', "").split("\t") != COLUMNS:
        raise ValueError(f"{path} begins with {header[:80]!r}, expected the columns {', '.join(COLUMNS)} between tabs")
    for group in _row_lines(lines):
        try:
            for row in csv.reader(group, delimiter="\t", strict=True):
                if len(row) == len(COLUMNS) and row[5].strip() in ("0", "1"):
                    yield row[:5] + [row[5].strip()]
                elif row:
                    skipped["malformed row"] += 1
        except csv.Error:
            skipped["malformed row"] += 1


def _row_lines(lines: Iterable[str]) -> Iterator[list[str]]:
    """Yield the lines of one row at a time, or more if they do not look like rows."""
    group: list[str] = []
    for line in lines:
        if group and (_ROW_START.match(line) or len(group) == _MAX_ROW_LINES):
            yield group
            group = []
        # A lone carriage return is an error to the csv module.
        group.append(line.rstrip("\r\n").replace("\r", " ") + "\n")
    if group:
        yield group


# How pairs come into splits, by the name that ``--split`` takes.
DRAWS = {"disjoint": assign_splits, "published": draw_pairs}
