"""Run fairseq-generate, and read what it printed."""

import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE, Popen

import mist_fairseq
from mist_fairseq.text.lines import lines_of_file

_LINES = re.MULTILINE | re.ASCII


@dataclass
class Generation:
    """Texts that fairseq-generate printed, in the order of the data, and its own measure of the speed of decoding.

    The speed is None where the closing line is not there, which fairseq-generate logs on stderr.
    """

    sources: list[str]
    hypotheses: list[list[str]]  # of each source, best first
    references: list[str]
    sentences_per_second: float | None

    @property
    def outputs(self) -> list[str]:
        """The best hypothesis of each source."""
        return [ranked[0] for ranked in self.hypotheses]


def read_generation(text: str) -> Generation:
    """Read what fairseq-generate printed; a ValueError says if sentences are missing or it ends within one.

    Of sentences that are missing behind the last one it does not know: compare their number with the references'.
    """
    texts: dict[str, dict[int, list[str]]] = {"S": {}, "T": {}, "D": {}}
    # A D- line has its score before the text.
    for kind, number, line in re.findall(r"^([ST]|D(?=-\d+\t[^\t\n]*\t))-(0|[1-9]\d{0,8})\t(.*)$", text, _LINES):
        texts[kind].setdefault(int(number), []).append(line.partition("\t")[2] if kind == "D" else line)
    count = len(texts["D"])
    for kind, lines in texts.items():
        if sorted(lines) != list(range(count)) and not (kind == "T" and not lines):
            raise ValueError(f"fairseq-generate printed {len(lines)} {kind}- lines and {count} D- lines")
    # A P- line follows each D- line.
    if len(re.findall(r"^P-\d", text, _LINES)) < len(re.findall(r"^D-\d", text, _LINES)):
        raise ValueError("what fairseq-generate printed ends within a sentence")
    speed = re.search(r"\((\d{1,12}(?:\.\d+)?) sentences/s", text, _LINES)
    sources, references = ([texts[kind][i][0] for i in sorted(texts[kind])] for kind in "ST")
    hypotheses = [texts["D"][i] for i in range(count)]
    return Generation(sources, hypotheses, references, float(speed[1]) if speed else None)


def generate(data: str, checkpoint: str, subset: str, log: Path, options: list[str]) -> Generation:
    """Run fairseq-generate in a new process, with more of its options; stderr gets its progress bar, *log* all else."""
    command = [sys.executable, "-m", "fairseq_cli.generate", data, "--user-dir", mist_fairseq.__path__[0]]
    command += ["--task", "mist", "--path", checkpoint, "--gen-subset", subset, "--scoring", "sacrebleu", *options]
    log.parent.mkdir(parents=True, exist_ok=True)
    env = os.environ | {"PYTHONIOENCODING": "utf-8"}  # whatever the locale's
    with (
        open(log, "w", encoding="utf-8") as file,
        Popen(command, env=env, stdout=file, stderr=PIPE, encoding="utf-8", errors="replace") as process,
    ):
        messages = []
        for line in process.stderr or ():  # text mode: a carriage return ends a line, too
            if "it/s" in line or "s/it" in line:
                print("\r" + line.rstrip("\n"), end="", file=sys.stderr, flush=True)
            elif line.strip():
                messages.append(line)
        print(file=sys.stderr)
        process.wait()
        file.writelines(messages)
    lines = read_lines(log)
    if process.returncode:
        last = next(filter(str.strip, reversed(lines)), "nothing printed")
        raise RuntimeError(f"fairseq-generate failed: {last} (all of it: {log})")
    return read_generation("\n".join(lines))


def read_lines(path: str | Path) -> list[str]:
    """Return the lines of a text file; errors as of ``text.lines.lines_of_file``."""
    return list(lines_of_file(path))


def read_texts(path: str | Path) -> list[str]:
    """Return the lines that have text; ValueError if there is none, errors as of ``read_lines``, too."""
    texts = [line for line in read_lines(path) if line.strip()]
    if not texts:
        raise ValueError(f"{path} has no text")
    return texts


def read_outputs(path: str | Path) -> list[str]:
    """Read outputs, one a line, or from what fairseq-generate printed; errors as of ``read_generation``, too."""
    lines = read_lines(path)
    kinds = {match[0] if (match := re.match(r"[SD](?=-\d+\t)", line)) else "" for line in lines}
    if {"S", "D"} <= kinds or kinds == {"D"}:  # a text, too, may begin like one of them
        return read_generation("\n".join(lines)).outputs
    return lines
