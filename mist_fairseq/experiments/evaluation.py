"""Run fairseq-generate, read what it printed, and say how a result came about."""

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from mist_fairseq.text.lines import lines_of_file

_PLUGIN = Path(__file__).parents[1]
_LINES = re.MULTILINE | re.ASCII


@dataclass
class Generation:
    """What one fairseq-generate printed, in the order of the data.

    Attributes:
        sources, outputs, references: text, one a sentence.
        sentences_per_second: of decoding alone, as fairseq measures it.
    """

    sources: list[str]
    outputs: list[str]
    references: list[str]
    sentences_per_second: float


def read_generation(text: str) -> Generation:
    """Parse the S-, T- and D- lines and the closing line of fairseq-generate.

    Raises:
        ValueError: sentences are missing or the run did not come to its end.
    """
    found: dict[str, dict[int, str]] = {"S": {}, "T": {}, "D": {}}
    # A D- line has its score before the text.
    for kind, number, line in re.findall(r"^([ST]|D(?=-\d+\t[^\t\n]*\t))-(0|[1-9]\d{0,8})\t(.*)$", text, _LINES):
        # The best hypothesis comes first.
        found[kind].setdefault(int(number), line.partition("\t")[2] if kind == "D" else line)
    speed = re.search(r"\((\d{1,12}(?:\.\d+)?) sentences/s", text, _LINES)
    count = len(found["D"])
    for kind, lines in found.items():
        if sorted(lines) != list(range(count)) and not (kind == "T" and not lines):
            raise ValueError(f"fairseq-generate printed {len(lines)} {kind}- lines and {count} D- lines")
    if speed is None:
        raise ValueError("fairseq-generate did not come to its end")
    sources, references, outputs = ([lines[i] for i in sorted(lines)] for lines in found.values())
    return Generation(sources, outputs, references, float(speed.group(1)))


def generate(data: str, checkpoint: str, subset: str, log: Path, options: list[str]) -> Generation:
    """Run fairseq-generate in a process of its own.

    Args:
        data: folder of binarized data.
        checkpoint: ``checkpoint_best.pt`` or the like.
        subset: ``valid``, ``test``.
        log: everything it prints is kept there.
        options: more options of fairseq-generate.

    Raises:
        RuntimeError: it failed; carries the last line it printed.
    """
    command = [sys.executable, "-m", "fairseq_cli.generate", data, "--user-dir", str(_PLUGIN), "--task", "mist"]
    command += ["--path", checkpoint, "--gen-subset", subset, "--scoring", "sacrebleu", *options]
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}  # whatever the locale's
    with open(log, "w", encoding="utf-8") as file:
        process = subprocess.Popen(
            command, env=environment, stdout=file, stderr=subprocess.PIPE, encoding="utf-8", errors="replace"
        )
        messages = _show_progress(process.stderr)
        status = process.wait()
        file.write(messages)
    lines = read_lines(log)
    if status:
        last = next(filter(str.strip, reversed(lines)), "nothing printed")
        raise RuntimeError(f"fairseq-generate failed: {last} (all of it: {log})")
    return read_generation("\n".join(lines))


def _show_progress(stream) -> str:
    """Pass a progress bar on to the user while it moves, and give back all other lines."""
    others = []
    for line in stream:  # text mode: a carriage return ends a line, too
        if "it/s" in line or "s/it" in line:
            print("\r" + line.rstrip("\n"), end="", file=sys.stderr, flush=True)
        elif line.strip():
            others.append(line)
    print(file=sys.stderr)
    return "".join(others)


def read_lines(path: str | Path) -> list[str]:
    """Lines of a text file, and errors, as of ``data.lines.lines_of_file``."""
    return list(lines_of_file(path))


def read_outputs(path: str | Path) -> list[str]:
    """Outputs from a text file with one a line, or from what fairseq-generate printed.

    Raises:
        ValueError: fairseq-generate did not come to its end, or a line is not UTF-8.
    """
    lines = read_lines(path)
    kinds = {match[0] if (match := re.match(r"[SD](?=-\d+\t)", line)) else "" for line in lines}
    if {"S", "D"} <= kinds or kinds == {"D"}:  # a text, too, may begin like one of them
        return read_generation("\n".join(lines)).outputs
    return lines


def provenance() -> dict[str, str | None]:
    """The running command, and the commit if this is a git checkout, with a + if files were changed since."""
    git = ["git", "-C", str(_PLUGIN), "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = None
    return {"command": shlex.join(["python", *sys.argv]), "commit": commit}
