"""METEOR 1.5, the Java program that pycocoevalcap ships (Tables 1, 3, 4 and 7)."""

import contextlib
import importlib.util
import re
import shutil
import subprocess
import tempfile
import weakref
from pathlib import Path
from typing import IO, cast

from sacrebleu.metrics.base import Score

from mist_fairseq.extras import install_line
from mist_fairseq.scoring.summed import SummedMetric

INSTALL = install_line("scores")


class Meteor15(SummedMetric):
    """METEOR 1.5 in percent, with pycocoevalcap's arguments (``-l en -norm``) and sacrebleu's interface.

    The Java program gives a sentence's counts and scores any sum of them, be it a corpus's or a bootstrap sample's.
    """

    def __init__(self):
        super().__init__()
        package = importlib.util.find_spec("pycocoevalcap")  # without importing it and all it brings
        if package is None or not package.submodule_search_locations:
            raise ModuleNotFoundError(f"METEOR 1.5 comes with pycocoevalcap: {INSTALL}")
        jar = Path(package.submodule_search_locations[0]) / "meteor" / "meteor-1.5.jar"
        java = shutil.which("java")
        if java is None:
            raise FileNotFoundError("METEOR 1.5 needs Java: apt-get install default-jre-headless")
        self._messages = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        command = [java, "-Dfile.encoding=UTF-8", "-Xmx2G", "-jar", str(jar), "-", "-", "-stdio", "-l", "en", "-norm"]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=self._messages, encoding="utf-8")
        self._answers = cast(IO[str], self._process.stdout)
        self._stop = weakref.finalize(self, stop, self._process)

    def _ask(self, *fields: str, answers: int = 1) -> str:
        """Send a request, and return the last of the lines that answer it."""
        with contextlib.suppress(BrokenPipeError):  # it has stopped, and the answer is empty
            print(" ||| ".join(fields), file=self._process.stdin, flush=True)
        lines = [self._answers.readline() for _ in range(answers)]
        if not lines[-1] or lines[-1].startswith("Error"):
            self._messages.seek(0)
            said = " ".join([lines[-1], *self._messages.read().splitlines()[:2]]).strip()
            raise RuntimeError(f"METEOR's Java program failed: {said or 'it stopped'}")
        return lines[-1].strip()

    def _preprocess_segment(self, sent):
        # One line a request, fields apart by |||.
        return re.sub(r"[\r\n]", " ", sent).replace("|||", "").replace("  ", " ")

    def _extract_reference_info(self, refs):
        return {"references": refs}

    def _compute_segment_statistics(self, hypothesis, ref_kwargs):
        counts = [float(count) for count in self._ask("SCORE", *ref_kwargs["references"], hypothesis).split()]
        lengths, (chunks, *matches) = counts[:2], counts[-3:]
        if chunks == 1 and matches == lengths:
            counts[-3] = 0.0  # the program, too, counts no chunk for a perfect match when it adds sentences up
        return counts

    def _compute_score_from_stats(self, stats):
        score = self._ask("EVAL", " ".join(str(float(count)) for count in stats), answers=2)
        return Score("METEOR", 100 * float(score))


def stop(process: subprocess.Popen):
    """End the Java program."""
    process.kill()
    process.communicate()
