"""The parts of ``scripts/gpu_check.sh`` that no other script does, in its folder of work.

python -m mist_fairseq.experiments.gpu_check rates WORK                       # rates.md
python -m mist_fairseq.experiments.gpu_check decode WORK DATA-BIN SENTENCES   # outputs/, decode.md
python -m mist_fairseq.experiments.gpu_check report WORK > report.md
"""

import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

from mist_fairseq.files.markdown import markdown_table
from mist_fairseq.files.whole import write_text

ARMS = ["mist", "no-mixing"]
_STEPS = 3  # numbers of updates at which both arms are decoded
_TITLES = {
    "rates": "The machine",
    "tests": "Tests",
    "decode": "Quora, MIST and no mixing at equal updates",
    "training": "Training",
    "latency": "Latency",
}


def rates(work: Path):
    """Write what the machine is, and what it reaches in large products and copies."""
    import torch

    from mist_fairseq.experiments.benchmark.floor import PRODUCT, machine_rates

    device = "cuda" if torch.cuda.is_available() else "cpu"
    lines = []
    for name, precision, matmul in (("bf16", "bf16", "highest"), ("fp32", "fp32", "highest"), ("tf32", "fp32", "high")):
        torch.set_float32_matmul_precision(matmul)
        measured = machine_rates(precision, device, repeats=3)
        lines.append([name, f"{measured.operations / 1e12:.2f}", f"{measured.bandwidth / 1e9:.0f}"])
    shown = [f"Python {platform.python_version()}, torch {torch.__version__}, CUDA {torch.version.cuda}, {device}"]
    if shutil.which("nvidia-smi"):
        told = subprocess.run(["nvidia-smi"], capture_output=True, text=True, check=False).stdout  # noqa: S607
        shown.append(f"```text\n{told.rstrip()}\n```")
    table = markdown_table(["", "TFLOP/s", "copying, GB/s"], lines)
    write_text(work / "rates.md", "\n\n".join([*shown, table, f"Rates are of {PRODUCT}."]) + "\n")


def checkpoints(folder: Path) -> dict[int, Path]:
    """The checkpoints of a training by their numbers of updates."""
    numbered = {path: re.fullmatch(r"checkpoint_\d+_(\d+)\.pt", path.name) for path in folder.glob("*.pt")}
    return dict(sorted((int(match[1]), path) for path, match in numbered.items() if match))


def decode(work: Path, data: str, sentences: int):
    """Write the outputs and scores of all decodings after some equal numbers of updates, and after each arm's last.

    What has its outputs already is not decoded again. References are those of the binarized data; ``scripts/score.py``
    has more metrics, of the raw text.
    """
    from mist_fairseq.experiments.evaluation import read_lines
    from mist_fairseq.generate.decoding import Decoding
    from mist_fairseq.scoring.scores import PROTOCOLS, score

    decodings = {
        "single pass": Decoding(),
        "MIST 3": Decoding("mist", 3),
        "Mask-Predict 3": Decoding("mask-predict", 3),
    }
    saved = {arm: checkpoints(work / arm) for arm in ARMS}
    common = sorted(set.intersection(*(set(paths) for paths in saved.values())))
    if not common:
        raise SystemExit(f"the arms have no checkpoint of equal updates: {[list(paths) for paths in saved.values()]}")
    chosen = sorted({common[-1 - i * len(common) // _STEPS] for i in range(min(_STEPS, len(common)))}, reverse=True)
    wanted = [(arm, updates) for updates in chosen for arm in ARMS]
    wanted += [(arm, max(paths)) for arm, paths in saved.items() if max(paths) not in chosen]
    outputs = work / "outputs"
    outputs.mkdir(exist_ok=True)
    lines = []
    for arm, updates in wanted:
        files = {name: outputs / f"{arm}-{updates}-{name.replace(' ', '-')}.txt" for name in decodings}
        if not all(file.exists() for file in files.values()):
            _generate(saved[arm][updates], data, sentences, {files[name]: decodings[name] for name in files}, outputs)
        sources, references = (read_lines(outputs / name) for name in ("sources.txt", "references.txt"))
        texts = {name: read_lines(file) for name, file in files.items()}
        results = score(texts, references, sources, protocol=PROTOCOLS["quora"], metrics=["bleu-4", "rouge-l"])
        for name, result in results.items():
            lines.append([f"{updates:,}", arm, name, *(f"{value:.2f}" for value in result.values.values())])
        write_text(work / "decode.md", markdown_table(["Updates", "", "Decoding", "BLEU-4", "ROUGE-L"], lines) + "\n")


def _generate(path: Path, data: str, sentences: int, files: dict, outputs: Path):
    """Decode the first sentences of the test set with a checkpoint, into *files* of as many decodings."""
    from mist_fairseq.experiments.benchmark.inputs import Entry
    from mist_fairseq.experiments.benchmark.systems import load_system

    system = load_system(Entry(path.name, str(path), data=str(Path(data).resolve()), options={"accelerate": "none"}))
    system.load_data("test")
    rows = range(min(sentences, len(system.dataset)))
    for side in ("source", "target"):
        texts = [system.text(system.dataset[i][side].tolist()) for i in rows]
        write_text(outputs / ("sources.txt" if side == "source" else "references.txt"), "\n".join(texts) + "\n")
    for file, decoding in files.items():
        system.generator.decoding, answers = decoding, dict[int, tuple[list[int], int]]()
        for first in range(0, len(rows), 100):
            sample = system.batch(rows[first : first + 100])
            answers |= system.read(sample, system.decode(sample))
        write_text(file, "".join(system.text(answers[i][0]) + "\n" for i in rows))


def report(work: Path) -> str:
    """Return the page of all parts that have run so far."""
    sections = ["# GPU check"]
    for part, title in _TITLES.items():
        files = sorted(work.glob(f"{part}*.md"))
        pages = [f"### {path.stem}\n\n{path.read_text(encoding='utf-8').rstrip()}" for path in files]
        if part == "tests":
            logs = (path.read_text(encoding="utf-8", errors="replace") for path in sorted(work.glob("tests*.log")))
            pages = [_tests(log) for log in logs]
        if pages:
            sections += [f"## {title}", *pages]
    return "\n\n".join(sections) + "\n"


def _tests(log: str) -> str:
    """Return what matters of pytest's output, which may end anywhere."""
    told = re.findall(
        r"^(?:(?:FAILED|ERROR|SKIPPED) .*|=.* in [\d.]+s.*|.*near-ties: .*|loss after .*)$", log, re.MULTILINE
    )
    if not re.search(r"^=.* in [\d.]+s", log, re.MULTILINE):
        counts = (f"{log.count(word)} {word}" for word in ("PASSED", "FAILED", "SKIPPED"))
        told += [f"not finished: {', '.join(counts)}", *log.splitlines()[-3:]]
    return "\n".join(["```text", *told, "```"])


def main():
    """Run the part that the command line names."""
    name, work, *arguments = sys.argv[1:]
    if name == "rates":
        rates(Path(work))
    elif name == "decode":
        decode(Path(work), arguments[0], int(arguments[1]))
    else:
        sys.stdout.write(report(Path(work)))


if __name__ == "__main__":
    main()
