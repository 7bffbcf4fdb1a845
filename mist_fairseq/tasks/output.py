"""``--output``: plain text, the best output of each sentence, one a line, in the order of the input."""

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
        self._texts: list[str] = []
        self._left = 0

    def expect(self, count: int, left: int):
        """Take the texts of *count* sentences, of which *left* come: the line of another is empty."""
        self._texts, self._left = [""] * count, left

    def add(self, texts: dict[int, str]):
        """Take some texts by their sentences' numbers; with the last of all they are written."""
        for number, text in texts.items():
            self._texts[number] = text
        self._left -= len(texts)
        if self._left == 0:
            lines = "".join(text + "\n" for text in self._texts)
            if self._file is None:
                write_text(self.path, lines)
            else:
                self._file.write(lines)
                self._file.flush()
