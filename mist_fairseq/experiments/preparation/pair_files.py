"""What the preparations share: reading any text file, texts on one line, and a data folder that appears whole."""

import argparse
import gzip
import json
import random
import re
import signal
import sys
import tempfile
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from tqdm import tqdm

from mist_fairseq.experiments.results import write_json
from mist_fairseq.files.reading import check_mark
from mist_fairseq.text.tokenizer import SEP

SPLITS, SIDES = ("train", "valid", "test"), ("src", "tgt")
NAMES = [f"{split}.{side}" for split in SPLITS for side in SIDES]
COUNTS = "counts.json"

# A file without line ends must not be read at once; no real line comes near this many characters.
LINE_LIMIT = 2**20

# Groups of up to so many pairs are equally likely to be drawn; larger ones only when these run out, lest variants of a
# few texts make up much of a test set.
_SMALL_GROUP = 10

# Some of these are no whitespace to str.split; everything else at which str.splitlines breaks a line is.
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f]+")
_SURROGATES = re.compile(r"[\ud800-\udfff]")


class Skipped(Exception):
    """An item is left out; the message is the reason under which it is counted."""


def one_line(text: str) -> str:
    """Return the text as it stands in a data file.

    Whitespace and control characters become single spaces, lone surrogates U+FFFD, and ``[SEP]``, which dictionaries
    would read as the special token, becomes ``[ SEP ]``.
    """
    text = " ".join(_SURROGATES.sub("\ufffd", _CONTROLS.sub(" ", text)).split())
    return text.replace(SEP, f"{SEP[0]} {SEP[1:-1]} {SEP[-1]}")


def text_of(value, what: str) -> str:
    """Return ``one_line`` of a value, or raise Skipped if it is not a text or nothing is left of it."""
    if not isinstance(value, str):
        raise Skipped(f"{what} missing or not a text")
    if line := one_line(value):
        return line
    raise Skipped(f"empty {what}")


def draw_order(groups: list[list[int]], rng: random.Random) -> deque[list[int]]:
    """Return groups, each the numbers of its pairs, in the order in which test and validation set take them."""
    rng.shuffle(groups)
    return deque(sorted(groups, key=lambda group: max(len(group), _SMALL_GROUP)))


def progress(items: Iterable, path: str, unit: str) -> Iterable:
    """Return the items, with a progress bar on stderr if that is a terminal."""
    return tqdm(items, desc=Path(path).name, unit=f" {unit}", disable=None)


@contextmanager
def open_text(path: str) -> Iterator[TextIO]:
    r"""Open a file, gzip if its name ends in .gz; invalid UTF-8 reads as U+FFFD and only \n ends a line.

    ValueError: it is UTF-16, truncated or not gzip.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} is not a file")
    opener = gzip.open if str(path).endswith(".gz") else open
    try:
        with opener(path, "rb") as file:
            check_mark(file.read(2), path)
        with opener(path, "rt", encoding="utf-8-sig", errors="replace", newline="\n") as file:
            yield file
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is truncated or not a gzip file: {error}") from error


def read_lines(path: str) -> Iterator[str]:
    """Yield the lines with their ends; what is longer than LINE_LIMIT characters comes in pieces."""
    with open_text(path) as file:
        yield from progress(iter(lambda: file.readline(LINE_LIMIT), ""), path, "lines")


def read_json(path: str):
    """Return the content of a JSON file, gzip if its name ends in .gz; a ValueError names one that is none."""
    with open_text(path) as file:
        try:
            return json.load(file)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is truncated or not JSON: {error}") from error


def read_json_lines(path: str, skipped: Counter[str]) -> Iterator[dict]:
    """Yield the objects of a file with one JSON object a line; count the other lines, unless they are empty."""
    for line in filter(str.strip, read_lines(path)):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if isinstance(record, dict):
            yield record
        else:
            skipped["invalid JSON line"] += 1


@dataclass
class PairFiles:
    """The six text files of a data folder while they are written, for sources and targets by split, and the counts."""

    files: dict[str, tuple[TextIO, TextIO]]
    kept: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))  # pairs by split
    skipped: Counter[str] = field(default_factory=Counter)  # what was left out, by reason
    remarks: Counter[str] = field(default_factory=Counter)  # what is odd about the rest, by kind
    lengths: dict[str, int] = field(default_factory=dict)  # of the pairs, where they were measured
    # Hashes of all texts written, without case: XSum's documents would fill the memory.
    _written: dict[str, list[tuple[int, int]]] = field(init=False)

    def __post_init__(self):
        self._written = {split: [] for split in SPLITS}

    def add(self, split: str, source: str, target: str):
        """Write a pair of texts that ``one_line`` made."""
        for file, text in zip(self.files[split], (source, target)):
            file.write(text + "\n")
        self.kept[split] += 1
        self._written[split].append((hash(source.casefold()), hash(target.casefold())))

    def count_overlap(self):
        """Remark how many texts, on whichever side, and pairs the other splits share with training, in any case."""
        trained_pairs = set(self._written["train"])
        trained = {text for pair in trained_pairs for text in pair}
        for split in SPLITS[1:]:
            pairs = self._written[split]
            self.remarks[f"{split} sources that training has"] = sum(source in trained for source, _ in pairs)
            self.remarks[f"{split} targets that training has"] = sum(target in trained for _, target in pairs)
            self.remarks[f"{split} pairs of which training has both"] = sum(map(trained.issuperset, pairs))
            self.remarks[f"{split} pairs that training has"] = sum(pair in trained_pairs for pair in pairs)

    @contextmanager
    def skipping(self) -> Iterator[None]:
        """Count an item as skipped, under its reason, if it turns out in the block that it is to be left out."""
        try:
            yield
        except Skipped as reason:
            self.skipped[str(reason)] += 1

    def counts(self) -> dict[str, dict[str, int]]:
        """Return all counts: ``{"kept": {"train": ...}, "skipped": {reason: ...}, "remarks": {kind: ...}}``.

        Behind them ``lengths``, if there are any.
        """
        skipped, remarks = (dict(sorted(counts.items())) for counts in (self.skipped, self.remarks))
        lengths = {"lengths": self.lengths} if self.lengths else {}
        return {"kept": self.kept, "skipped": skipped, "remarks": remarks, **lengths}

    def table(self) -> str:
        """Return all counts, one a line."""
        rows = [(group, *item) for group, counts in self.counts().items() for item in counts.items()]
        return "\n".join(f"{group:<9}{name:<51}{count:>10,}" for group, name, count in rows)


@contextmanager
def data_folder(out: str, overwrite: bool = False) -> Iterator[PairFiles]:
    """Write a data folder that appears, or replaces an older one, only when all of it is there.

    Until then all lies in a hidden folder beside it. FileExistsError: *out* is in the way; ValueError: no pair came.
    """
    folder = Path(out).resolve()
    _check_free(folder, overwrite)
    beside = next(parent for parent in folder.parents if parent.exists())
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=beside) as scratch:
        new, old = Path(scratch, "new"), Path(scratch, "old")
        new.mkdir()
        with ExitStack() as stack:
            opened = [stack.enter_context(open(new / name, "w", encoding="utf-8", newline="\n")) for name in NAMES]
            files = PairFiles(dict(zip(SPLITS, zip(opened[::2], opened[1::2]))))
            yield files
        if not any(files.kept.values()):
            reasons = ", ".join(f"{reason} ({count:,})" for reason, count in files.skipped.most_common())
            raise ValueError(f"nothing usable in the input; skipped: {reasons or 'nothing'}")
        write_json(new / COUNTS, files.counts())
        folder.parent.mkdir(parents=True, exist_ok=True)
        _check_free(folder, overwrite)
        try:
            if folder.exists():
                folder.rename(old)
            new.rename(folder)
        finally:
            if old.exists() and not folder.exists():
                old.rename(folder)


def _check_free(folder: Path, overwrite: bool):
    if folder.is_file():
        raise FileExistsError(f"{folder} is a file, expected a folder: give another --out")
    names = {path.name for path in folder.iterdir()} if folder.exists() else set()
    if names and not overwrite:
        raise FileExistsError(f"{folder} is not empty: give another --out, or --overwrite to replace it")
    for foreign in sorted(names - {COUNTS, *NAMES}):
        raise FileExistsError(f"{folder} holds {foreign}, which --overwrite would remove: move it away")


def add_output_arguments(parser: argparse.ArgumentParser):
    """Add --out and --overwrite."""
    parser.add_argument("--out", required=True, help="folder to make: {train,valid,test}.{src,tgt} and counts.json")
    parser.add_argument("--overwrite", action="store_true", help="replace the folder, which may hold only such files")


def run(prepare: Callable[[PairFiles], None], out: str, overwrite: bool):
    """Prepare a folder and print the counts; an error is one line on stderr and exit status 1."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # termination cleans up as Ctrl-C does
    try:
        with data_folder(out, overwrite) as files:
            prepare(files)
        print(files.table())
    except KeyboardInterrupt:
        sys.exit("error: interrupted, nothing was written")
    except (OSError, ValueError) as error:
        sys.exit(f"error: {one_line(str(error))}")
