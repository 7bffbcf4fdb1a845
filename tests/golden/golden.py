"""What is recorded, and how: the same for the recorder, the test and the exact comparison.

Training and export go through the commands, generation through ``MistGenerator`` and ``OnnxGenerator``. Nothing else
of the package is used here, so that its modules may move.
"""

import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.end_to_end.warm import run_module
from tests.golden.texts import write_texts

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
# Committed; what the model was trained on is made by code.
CHECKPOINT, RELEASED, VOCABULARY = HERE / "checkpoint", HERE / "released", HERE / "vocabulary"

# -- training -----------------------------------------------------------------------------------------------------

SIZES = ["--encoder-layers", "2", "--encoder-embed-dim", "32", "--encoder-ffn-embed-dim", "64"]
SIZES += ["--encoder-attention-heads", "4"]
DECODER = ["--decoder-layers", "2"]
LIMITS = ["--max-source-positions", "48", "--max-target-positions", "20"]
SCHEDULE = ["--clip-norm", "1.0", "--lr-scheduler", "polynomial_decay", "--warmup-updates", "5", "--lr", "0.005"]
SCHEDULE += ["--total-num-update", "40", "--max-update", "20", "--batch-size", "8", "--seed", "7", "--cpu"]
SCHEDULE += ["--num-workers", "0", "--log-format", "json", "--log-interval", "1", "--no-progress-bar"]
SCHEDULE += ["--disable-validation", "--no-epoch-checkpoints"]
MIST_LOSS = ["--criterion", "mist_loss", "--optimizer", "bert_adamw", "--precision", "fp32", "--length-classes", "32"]
MIST = ["--task", "mist", "--arch", "mist_tiny", "--max-positions", "72", *SIZES, *LIMITS, *MIST_LOSS]
SMOOTHED = ["--criterion", "label_smoothed_cross_entropy", "--label-smoothing", "0.1", "--optimizer", "adam"]

TRAININGS = {
    "mist_tiny": MIST,
    "mist_tiny-no-glancing": [*MIST, "--glancing-ratio", "0"],
    "mist_tiny-no-mixing": [*MIST, "--mist-loss-factor", "0"],
    "mist_tiny-update-freq-2": [*MIST, "--update-freq", "2"],
    "nat_mass": ["--task", "mist", "--arch", "nat_mass", *SIZES, *DECODER, *LIMITS, *MIST_LOSS],
    "bang_nar": ["--task", "mist_translation", "--arch", "bang_nar", "--max-positions", "72", *SIZES, *DECODER]
    + ["--max-source-positions", "48", *SMOOTHED],
    "mass_base": ["--task", "mist_translation", "--arch", "mass_base", *SIZES, *DECODER]
    + ["--max-source-positions", "48", *SMOOTHED],
}


def preprocess(folder: Path) -> Path:
    """Texts, and what fairseq-preprocess makes of them."""
    text, binarized = write_texts(folder / "text"), folder / "data-bin"
    splits = [item for name in ("train", "valid") for item in (f"--{name}pref", str(text / name))]
    dictionary = ["--joined-dictionary", "--srcdict", str(text / "vocab.txt"), "--destdir", str(binarized)]
    plugin = ["--user-dir", "mist_fairseq", "--task", "mist", "--source-lang", "src", "--target-lang", "tgt"]
    command("fairseq_cli.preprocess", *splits, *dictionary, *plugin)
    return binarized


def command(*line: str):
    """Run ``python -m LINE`` in the repository."""
    status, output = run_module(list(line), str(ROOT), ENVIRONMENT, timeout=1200)
    assert status == 0, output


def train(name: str, data: Path, folder: Path) -> dict:
    """Run one of the trainings; its updates, and what the tensors of its checkpoint are afterwards."""
    folder.mkdir(parents=True, exist_ok=True)
    log, plugin = folder / "updates.json", ["--user-dir", "mist_fairseq", "--save-dir", str(folder)]
    command("tests.golden.training", str(log), str(data), *plugin, *TRAININGS[name], *SCHEDULE)
    state = torch.load(folder / "checkpoint_last.pt", weights_only=False)["model"]
    tensors = {key: tensor for key, tensor in sorted(state.items()) if isinstance(tensor, torch.Tensor)}
    return {
        "updates": json.loads(log.read_text()),
        "sha256": checksum(tensors),
        "tensors": {key: describe(tensor) for key, tensor in tensors.items()},
        "checksums": {key: checksum({key: tensor})[:12] for key, tensor in tensors.items()},
    }


def checksum(tensors: dict[str, torch.Tensor]) -> str:
    found = hashlib.sha256()
    for name, tensor in tensors.items():
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.contiguous().numpy().tobytes())
    return found.hexdigest()


def describe(tensor: torch.Tensor) -> dict:
    """A tensor in a few numbers, which differ a little between machines."""
    values = tensor.double().flatten()
    probe = torch.linspace(-1, 1, len(values), dtype=torch.double)  # tells apart what only changed places
    numbers = {"norm": values.norm(), "mean": values.mean(), "probe": (values * probe).sum()}
    return {"shape": list(tensor.shape), **{name: float(f"{value:.8g}") for name, value in numbers.items()}}


def binarized_checksums(data: Path) -> dict[str, str]:
    """Of what fairseq-preprocess wrote; whole numbers, the same on every machine.

    Version 0.1 wrote the line of the ``.crc32`` to the end of the ``.idx``.
    """
    sums = {}
    for path in sorted(path for path in data.iterdir() if path.suffix in (".bin", ".idx", ".txt")):
        line = path.with_suffix(".crc32")
        content = path.read_bytes() + (line.read_bytes() if path.suffix == ".idx" and line.exists() else b"")
        sums[path.name] = hashlib.sha256(content).hexdigest()
    return sums


# -- generation ---------------------------------------------------------------------------------------------------

# Options of generate() by the name of the setting.
SETTINGS: dict[str, dict] = {
    "single-pass": {},
    **{f"mist-{n}": {"decoding": "mist", "iterations": n} for n in (1, 2, 3, 4)},
    "mask-predict-2": {"decoding": "mask-predict", "iterations": 2},
    "mask-predict-4": {"decoding": "mask-predict", "iterations": 4},
    "beam": {"length_beam": 3, "nbest": 3, "distinct": False},
    "beam-mist-3": {"decoding": "mist", "iterations": 3, "length_beam": 3},
    "beam-mask-predict-4": {
        "decoding": "mask-predict",
        "iterations": 4,
        "length_beam": 3,
        "nbest": 2,
        "distinct": False,
    },
    "lengths": {"decoding": "mist", "iterations": 2, "lengths": [None, 3, 8, 12, 5]},
    "lengths-mask-predict-4": {"decoding": "mask-predict", "iterations": 4, "lengths": [10, 1, 7]},
    "bounds": {"decoding": "mist", "iterations": 2, "min_length": 8, "max_length": 9},
    "beam-bounds": {"length_beam": 4, "nbest": 3, "min_length": 11, "max_length": 12, "distinct": False},
    "keep-repeats": {"decoding": "mist", "iterations": 2, "keep_repeats": True},
    "pairs": {"decoding": "mist", "iterations": 2},
}
# Of these every token's score is recorded, and the likeliest lengths; of the others the mean alone.
DETAILED = ["single-pass", "mist-4", "mask-predict-4"]


def generate(generator, sources: list, setting: str, **more) -> list[list[dict]]:
    """Of each source its outputs, as plain values in all digits."""
    options = {**SETTINGS[setting], **more}
    if "lengths" in options:
        given = options["lengths"]
        options["lengths"] = [given[i % len(given)] for i in range(len(sources))]
    if setting == "pairs":
        sources = [source if isinstance(source, tuple) else (str(source)[:9], source) for source in sources]
    found = generator.generate(sources, return_scores=True, batch_size=16, **options)
    return [[plain(output) for output in (one if isinstance(one, list) else [one])] for one in found]


def plain(output) -> dict:
    return {
        "text": output.text,
        "score": output.score,
        "steps": output.steps,
        "history": output.history,
        "tokens": output.tokens,
        "token_scores": output.token_scores,
        "length_scores": {str(length): share for length, share in output.length_scores.items()},
        "cut": output.cut,
    }


def words(outputs: list[list[dict]]) -> list:
    """What must be equal everywhere: texts, history, tokens, steps, without numbers that are rounded."""
    return [[{k: one[k] for k in ("text", "steps", "history", "tokens", "cut")} for one in row] for row in outputs]


# The committed files in each engine, which are all to answer alike.
GENERATORS = [f"{kind}, {engine}" for engine in ("none", "onnxruntime") for kind in ("released", "checkpoint")]


@functools.cache
def generator(name: str):
    """One of GENERATORS."""
    from mist_fairseq import MistGenerator

    kind, engine = name.split(", ")
    if kind == "released":
        return MistGenerator.from_pretrained(str(RELEASED), accelerate=engine)
    return MistGenerator.from_pretrained(str(CHECKPOINT), "checkpoint.pt", str(VOCABULARY), accelerate=engine)


def onnx_generators(folder: Path) -> Iterator[tuple[str, object]]:
    """Name and generator, without torch, of a folder that was exported to ONNX."""
    from mist_fairseq import OnnxGenerator

    for precision in ("fp32", "int8"):
        yield f"onnx, {precision}", OnnxGenerator.from_pretrained(str(folder), precision=precision, threads=1)


def export(*arguments) -> None:
    """Run scripts/export.py here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["scripts/export.py", *map(str, arguments)])
        runpy.run_path(str(ROOT / "scripts" / "export.py"), run_name="__main__")


# -- machine ------------------------------------------------------------------------------------------------------


def machine() -> dict[str, str]:
    """What bit-equality depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    told = dict(line.split(":", 1) for line in reversed(lines) if ":" in line)
    told = {name.strip(): value.strip() for name, value in told.items()}
    flags = " ".join(sorted(told.get("flags", "").split()))
    return {
        "processor": told.get("model name", platform.processor()),
        "model": told.get("model", ""),
        "flags": hashlib.sha256(flags.encode()).hexdigest()[:12],
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "onnxruntime": importlib.metadata.version("onnxruntime"),
        "python": platform.python_version(),
    }
