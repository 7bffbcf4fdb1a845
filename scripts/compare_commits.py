"""Time two commits of this repository against each other: training and generation, in turn, so that noise hits both.

    python scripts/compare_commits.py fdab902 HEAD --out results/speed/redesign.json

Each commit gets a worktree and processes of its own. Models have random weights and Quora's shape (14 tokens in, 14
out); a ratio above 1 says that the second commit is faster. Needs the extra onnxruntime.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from mist_fairseq.experiments.results import provenance
from mist_fairseq.files.whole import whole_file

SMALL = ["--encoder-layers", "12", "--encoder-embed-dim", "384", "--encoder-ffn-embed-dim", "1536"]
PLUGIN = ["--user-dir", "mist_fairseq", "--task", "mist", "--cpu", "--no-progress-bar"]

# Runs in a process of a commit: a line of standard input is a case, the answer the seconds it took.
WORKER = """
import json, sys, time
import torch
folder, onnx, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
torch.set_num_threads(threads)
from mist_fairseq import MistGenerator
try:
    from mist_fairseq import OnnxGenerator
except ImportError:  # up to version 0.1
    from mist_fairseq.onnx_runtime import OnnxGenerator
made = {}
def generator(kind, precision):
    if (kind, precision) not in made:
        made[kind, precision] = (
            OnnxGenerator.from_pretrained(onnx, precision, threads) if kind == "exported"
            else MistGenerator.from_pretrained(folder, accelerate=kind, precision=precision)
        )
    return made[kind, precision]
for line in sys.stdin:
    kind, precision, decoding, batch, texts, warms_up = json.loads(line)
    run = lambda: generator(kind, precision).generate(texts, decoding=decoding, batch_size=batch, lengths=13)
    if warms_up:
        run()
    start = time.perf_counter()
    run()
    print(json.dumps(time.perf_counter() - start), flush=True)
"""


class Commit:
    """A worktree of a commit, and its commands."""

    def __init__(self, revision: str, folder: Path, threads: int):
        self.folder, self.threads = folder, threads
        self.git("worktree", "add", "--detach", str(folder), revision)
        self.environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": str(threads)}
        self.environment["CUDA_VISIBLE_DEVICES"] = ""  # as --cpu does for the commands

    @staticmethod
    def git(*command: str):
        """Run git in this repository."""
        subprocess.run(["git", "-C", str(Path(__file__).parent), *command], check=True, capture_output=True)  # noqa: S607

    def run(self, *command: str) -> str:
        """What a command of Python printed, or a RuntimeError with it."""
        done = subprocess.run(
            [sys.executable, *command],
            cwd=self.folder,
            env=self.environment,
            text=True,
            capture_output=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stdout[-1000:]} {done.stderr[-3000:]}")
        return done.stdout + done.stderr

    def start_worker(self, model: Path, onnx: Path):
        """Start the process that generates."""
        self.worker = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(model), str(onnx), str(self.threads)],
            **dict(cwd=self.folder, env=self.environment, text=True, stdin=-1, stdout=-1, stderr=subprocess.DEVNULL),
        )

    def seconds(self, case) -> float:
        """Seconds that a case of generation took."""
        self.worker.stdin.write(json.dumps(case) + "\n")
        self.worker.stdin.flush()
        return json.loads(self.worker.stdout.readline())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commits", nargs=2, help="the one before and the one after")
    parser.add_argument("--rounds", type=int, default=7, help="of each measurement (default: %(default)s)")
    parser.add_argument("--sentences", type=int, default=32, help="of a round (default: %(default)s)")
    parser.add_argument("--updates", type=int, default=12, help="of a training (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="(default: %(default)s)")
    parser.add_argument("--only", default="", help="measure only what has this regular expression in its name")
    parser.add_argument("--out", required=True, help="JSON file to write")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        result = compare(args, Path(temporary))
    with whole_file(args.out) as partial:
        partial.write_text(json.dumps({**provenance(), **vars(args), "ratios": result}, indent=1) + "\n")
    for name, ratio in result.items():
        print(f"{ratio:.3f}  {name}")


def compare(args: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Ratios of the two commits' median times, by measurement."""
    commits = [Commit(revision, folder / f"commit{i}", args.threads) for i, revision in enumerate(args.commits)]
    try:
        return measure(args, folder, commits)
    finally:
        for commit in commits:
            if hasattr(commit, "worker"):
                commit.worker.kill()
            commit.git("worktree", "remove", "--force", str(commit.folder))


def measure(args: argparse.Namespace, folder: Path, commits: list[Commit]) -> dict[str, float]:
    """Train, export and generate with both commits in turn."""
    old = commits[0]
    words = [chr(97 + i) + chr(97 + j) for i in range(26) for j in range(26)]
    symbols = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words, *(f"w{i}" for i in range(30522 - 681))]
    (folder / "vocab.txt").write_text("\n".join(symbols) + "\n")
    lines = [" ".join(words[(7 * i + 31 * j) % len(words)] for j in range(12)) for i in range(512)]
    for name in ("train.src", "train.tgt", "valid.src", "valid.tgt", "test.src", "test.tgt"):
        (folder / name).write_text("\n".join(lines if name.startswith("train") else lines[:64]) + "\n")
    prefixes = [part for name in ("train", "valid", "test") for part in (f"--{name}pref", str(folder / name))]
    sides = ["--source-lang", "src", "--target-lang", "tgt", "--joined-dictionary", "--srcdict"]
    data = str(folder / "data")
    old.run(
        "-m", "fairseq_cli.preprocess", *PLUGIN[:4], *prefixes, *sides, str(folder / "vocab.txt"), "--destdir", data
    )
    times: dict[str, list[tuple[float, float]]] = {}
    training = ["--arch", "mist_base", *SMALL, "--criterion", "mist_loss", "--optimizer", "bert_adamw", "--lr", "1e-5"]
    training += ["--batch-size", "16", "--max-update", str(args.updates), "--num-workers", "0", "--log-format", "json"]
    training += ["--log-interval", "1", "--disable-validation", "--no-epoch-checkpoints"]
    for _ in range(max(1, args.rounds // 3)):  # also where --only leaves it out: the others need its checkpoint
        walls = []
        for i, commit in enumerate(commits):
            saved = str(folder / f"saved{i}")
            shutil.rmtree(saved, ignore_errors=True)  # or training would go on
            log = commit.run("-m", "fairseq_cli.train", data, *PLUGIN, *training, "--save-dir", saved)
            speeds = [float(value) for value in re.findall(r'"wps": "([\d.]+)"', log)]  # target tokens a second
            walls.append(1 / statistics.median(speeds[2 : args.updates]))  # without the first updates
        times.setdefault("fairseq-train, fp32, batch 16", []).append(tuple(walls))
    model = folder / "released"
    checkpoint = str(folder / "saved0" / "checkpoint_last.pt")
    old.run("scripts/export.py", checkpoint, "--data", data, "--to", "folder", "--out", str(model))
    for i, commit in enumerate(commits):
        commit.run("scripts/export.py", str(model), "--to", "onnx", "--out", str(folder / f"onnx{i}"))
        commit.start_worker(model, folder / f"onnx{i}")
    engines = [("none", "fp32"), ("none", "bf16")]
    engines += [(kind, precision) for kind in ("onnxruntime", "exported") for precision in ("fp32", "int8")]
    decodings = ("single-pass", 1), ("single-pass", 16), ("mist", 1), ("mask-predict", 16)
    cases = {
        f"Python, {kind}, {precision}, {decoding}, batch {batch}": ([kind, kind], precision, decoding, batch)
        for kind, precision in engines
        for decoding, batch in decodings
    }
    for precision in ("fp32", "int8"):
        name = f"Python, the exported folder before, the engine onnxruntime after, {precision}, batch 1"
        cases[name] = ["exported", "onnxruntime"], precision, "single-pass", 1
    for name, (kinds, *how) in cases.items():
        for turn in range(args.rounds if re.search(args.only, name) else 0):
            taken = [0.0, 0.0]
            for i in (0, 1) if turn % 2 else (1, 0):
                taken[i] = commits[i].seconds((kinds[i], *how, lines[: args.sentences], turn == 0))
            times.setdefault(name, []).append((taken[0], taken[1]))
            if turn == args.rounds - 1:
                print(f"{ratio(times[name]):.3f}  {name}", flush=True)
    for precision in ("fp32", "int8"):
        name = f"fairseq-generate, onnxruntime, {precision}, batch 16"
        for _ in range(max(1, args.rounds // 3) if re.search(args.only, name) else 0):
            speeds = [
                commit.run(
                    *("-m", "fairseq_cli.generate", data, *PLUGIN, "--path", checkpoint, "--batch-size", "16"),
                    *("--scoring", "sacrebleu", "--precision", precision, "--accelerate", "onnxruntime", "--quiet"),
                )
                for commit in commits
            ]
            seconds = tuple(1 / float(re.search(r"\(([\d.]+) sentences/s", text)[1]) for text in speeds)
            times.setdefault(name, []).append(seconds)
    return {name: ratio(pairs) for name, pairs in times.items()}


def ratio(pairs: list[tuple[float, float]]) -> float:
    """The median of what the second commit is faster by."""
    return statistics.median(before / after for before, after in pairs)


if __name__ == "__main__":
    main()
