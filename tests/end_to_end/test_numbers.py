"""Training's numbers through fairseq-train: a loss that is no number, half precision, the same seed twice."""

import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mist_fairseq.data.dictionary import load_dictionary
from mist_fairseq.files.torch_files import load_torch_file
from tests.end_to_end.conftest import (
    BASELINE,
    ENVIRONMENT,
    LIMITS,
    ROOT,
    SMALL,
    TRAINING,
    command_line,
    preprocess,
    run,
    train,
)
from tests.helpers import WORDS

RARE = "7"  # in the source of one sentence only
SENTENCE = 21
MIST = ["--arch", "mist_tiny", *SMALL, *LIMITS, *TRAINING, "--untie-head"]


@pytest.fixture(scope="module")
def rare_data(tmp_path_factory, bert_folder) -> Path:
    """Forty pairs; one source has a word that no other has."""
    folder = tmp_path_factory.mktemp("rare")
    for split in ("train", "valid", "test"):
        pairs = [(" ".join(WORDS[i * k % len(WORDS)] for k in (1, 3, 5, 7)), WORDS[i % 9]) for i in range(40)]
        pairs[SENTENCE] = (pairs[SENTENCE][0] + " " + RARE, pairs[SENTENCE][1])
        for i, suffix in enumerate(("src", "tgt")):
            (folder / f"{split}.{suffix}").write_text("".join(pair[i] + "\n" for pair in pairs))
    preprocess(folder, bert_folder / "vocab.txt", folder / "bin")
    return folder / "bin"


def state(path: Path) -> dict:
    return load_torch_file(path)


def tensors(value) -> list[torch.Tensor]:
    """All that are somewhere inside."""
    if isinstance(value, torch.Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else []
    return [tensor for part in parts for tensor in tensors(part)]


@pytest.mark.parametrize(
    "task, system, weight, together",
    [
        ("mist", MIST, "encoder.word_embeddings.weight", 1),
        ("mist", MIST, "encoder.word_embeddings.weight", 2),
        ("mist_translation", BASELINE, "encoder.embed_tokens.weight", 2),
    ],
    ids=["mist", "mist, two batches", "baseline, two batches"],
)
def test_a_nan_loss_stops_with_the_sentences_and_leaves_the_last_checkpoint(
    rare_data, tmp_path, task, system, weight, together
):
    """A word with so large an embedding that its mean overflows."""
    training = [rare_data, *system, "--disable-validation", "--no-epoch-checkpoints", "--update-freq", together]
    train(task, *training, "--max-update", "1", "--save-dir", tmp_path / "start")
    start = state(tmp_path / "start" / "checkpoint_last.pt")
    dictionary = load_dictionary(str(rare_data / "dict.src.txt"))
    start["model"][weight][dictionary.index(RARE)] = 3e38
    torch.save(start, tmp_path / "start.pt")
    options = ["--finetune-from-model", tmp_path / "start.pt", "--save-interval-updates", "1"]
    training += [*options, "--keep-interval-updates", "1", "--max-epoch", "1", "--seed", "3"]
    log = train(task, *training, "--save-dir", tmp_path, fails=True)
    message = r"FloatingPointError: .* at update (\d+): the loss is (?:nan|inf) in the batch of the sentences \[(.*)\] "
    ((update, ids),) = re.findall(message, log)
    ids = [int(number) for number in ids.split(", ")]
    assert SENTENCE in ids and len(ids) == 8 and int(update) > 1
    assert [int(number) for number in re.findall(r"num_updates=(\d+)", log)] == list(range(1, int(update)))
    last, crash = (state(tmp_path / name) for name in ("checkpoint_last.pt", "crash.pt"))
    for name, value in last["model"].items():
        assert torch.equal(value, crash["model"][name]), name
    assert last["optimizer_history"][-1]["num_updates"] == int(update) - 1
    content = [last["model"], last["last_optimizer_state"]]
    assert all(tensor.isfinite().all() for tensor in tensors(content) if tensor.is_floating_point())
    if together == 1:  # the last checkpoint can be gone on with, up to there
        before = (tmp_path / "checkpoint_last.pt").read_bytes()
        again = train(task, *training, "--save-dir", tmp_path, fails=True)
        assert re.findall(message, again) == re.findall(message, log)
        assert (tmp_path / "checkpoint_last.pt").read_bytes() == before


def test_bf16_stays_finite_for_250_updates(data, tmp_path):
    """Glancing, mixing and dropout on; every loss of the log, and all that is saved."""
    training = [data, "--arch", "mist_tiny", *SMALL, *LIMITS, *TRAINING, "--precision", "bf16", "--max-update", "250"]
    log = run("train", *training, "--disable-validation", "--no-save-optimizer-state", "--save-dir", tmp_path)
    check_finite(log, tmp_path, 250)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU: fairseq's --fp16 does not work on a CPU")
def test_fp16_stays_finite_for_500_updates(data, tmp_path):
    training = [data, "--arch", "mist_tiny", *SMALL, *LIMITS, *TRAINING, "--fp16"]
    training.remove("--cpu")
    training += ["--max-update", "500"]
    log = run("train", *training, "--disable-validation", "--no-save-optimizer-state", "--save-dir", tmp_path)
    check_finite(log, tmp_path, 500)


def check_finite(log: str, folder: Path, updates: int):
    lines = re.findall(r"train_inner \| (.*)", log)
    assert len(lines) == updates
    for line in lines:
        figures = dict(re.findall(r"(\w+)=([^,]+)", line))
        assert {"loss", "nat_loss", "mist_loss", "length_loss", "gnorm"} <= figures.keys()
        assert all(math.isfinite(float(value)) for name, value in figures.items() if name != "epoch"), line
    first, last = (float(re.search(r" loss=([^,]+)", line)[1]) for line in (lines[0], lines[-1]))
    assert last < first / 2  # it has learnt
    assert all(tensor.isfinite().all() for tensor in state(folder / "checkpoint_last.pt")["model"].values())


def test_the_same_seed_gives_the_same_training(data, bert_folder, tmp_path):
    """Bit for bit in another process, with strings hashed otherwise and the batches made by a worker process."""
    training = [data, "--arch", "mist_base", "--pretrained", bert_folder, *LIMITS, *TRAINING, "--seed", "7"]
    training += ["--glancing-ratio", "0.5", "--dropout", "0.1", "--attention-dropout", "0.1", "--max-update", "20"]
    training += ["--no-epoch-checkpoints", "--log-interval", "10"]
    logs = [run("train", *training, "--save-dir", tmp_path / "first")]
    # A process of its own: a fork hashes as the process it comes from.
    line = command_line("train", *training, "--save-dir", tmp_path / "second", "--num-workers", "1")
    options = {"cwd": ROOT, "env": {**ENVIRONMENT, "PYTHONHASHSEED": "2"}, "timeout": 300}
    process = subprocess.run([sys.executable, "-m", *line], capture_output=True, text=True, **options)
    logs.append(process.stdout + process.stderr)
    assert process.returncode == 0, logs[1]
    logs = [re.findall(r"\| (loss [^|]*\| nat_loss.*?) \| wps", log) for log in logs]
    assert logs[0] == logs[1] and len(logs[0]) > 1
    first, second = (state(tmp_path / name / "checkpoint_last.pt") for name in ("first", "second"))
    assert first["optimizer_history"][-1]["num_updates"] == 20
    for part in ("model", "last_optimizer_state"):
        pairs = list(zip(tensors(first[part]), tensors(second[part]), strict=True))
        assert len(pairs) > 30 and all(torch.equal(*pair) for pair in pairs), part
