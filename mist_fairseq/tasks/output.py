"""``--output``: plain text, the best output of each sentence, one a line, in the order of the input."""

from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

from mist_fairseq.files.whole import write_text


class OutputFile:
    """A file that is written whole at the end; or, if *streams*, anew each time that a buffer of lines is answered.

    OSError if it cannot be written: at once if the folder is the reason.
    """

    def __init__(self, path: str, streams: bool):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "w", encoding="utf-8") if streams else None  # noqa: SIM115
        self._numbers: Iterator[int] = iter(())
        self._texts: list[str] = []
        self._left = 0

    def expect(self, count: int, batches: Iterable[Iterable[int]]):
        """Take the texts of *count* sentences; their numbers, in the order in which ``add`` will get them."""
        numbers = list(map(int, chain.from_iterable(batches)))
        self._texts, self._numbers, self._left = [""] * count, iter(numbers), len(numbers)

    def add(self, texts: list[str]):
        """Take the texts of the next sentences; with the last of all they are written."""
        for text, number in zip(texts, self._numbers):
            self._texts[number] = text
            self._left -= 1
        if self._left == 0:
            lines = "".join(text + "\n" for text in self._texts)
            if self._file is None:
                write_text(self.path, lines)
            else:
                self._file.write(lines)
                self._file.flush()
