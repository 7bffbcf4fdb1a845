"""Raw text, binarized data and a trained checkpoint, made once by the real commands."""

import io
import os
import random
from pathlib import Path

import pytest
import sentencepiece

from tests.end_to_end.warm import run_module
from tests.helpers import WORDS, bert_state, tiny_vocab, write_bert_folder

ROOT = Path(__file__).parent.parent.parent
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}

SMALL = ["--encoder-layers", "1", "--encoder-embed-dim", "32", "--encoder-ffn-embed-dim", "64"]
SMALL += ["--encoder-attention-heads", "2", "--max-positions", "80"]
TRAINING = ["--criterion", "mist_loss", "--optimizer", "bert_adamw", "--lr", "0.005", "--clip-norm", "1.0"]
TRAINING += ["--lr-scheduler", "polynomial_decay", "--warmup-updates", "2", "--total-num-update", "150"]
TRAINING += ["--batch-size", "8", "--cpu", "--num-workers", "0", "--log-format", "simple", "--log-interval", "1"]
LIMITS = ["--max-source-positions", "50", "--max-target-positions", "20"]
BASELINE = ["--arch", "transformer", "--criterion", "label_smoothed_cross_entropy", *SMALL[:-2]]
BASELINE += ["--decoder-layers", "1", "--decoder-ffn-embed-dim", "64", "--decoder-attention-heads", "2"]
BASELINE += [*LIMITS[:2], *TRAINING[2:]]


def command_line(command, *arguments) -> list[str]:
    """One of fairseq's commands with the plugin, as a module and its arguments."""
    plugin = ["--user-dir", "mist_fairseq", "--task", "mist", "--no-progress-bar"]
    return [f"fairseq_cli.{command}", *map(str, arguments), *plugin]


def run(command, *arguments, text="", fails=False) -> str:
    """Run one to its end and give back what it printed."""
    status, output = run_module(command_line(command, *arguments), str(ROOT), ENVIRONMENT, text)
    assert (status != 0) == fails, output
    return output


def train(task, *arguments, fails=False) -> str:
    """fairseq-train with a task of the plugin."""
    line = command_line("train", *arguments)
    line[line.index("--task") + 1] = task
    status, output = run_module(line, str(ROOT), ENVIRONMENT)
    assert (status != 0) == fails, output
    return output


def preprocess(folder: Path, dictionary: Path, destination: Path, *options, **how) -> str:
    splits = [item for name in ("train", "valid", "test") for item in (f"--{name}pref", folder / name)]
    languages = ["--source-lang", "src", "--target-lang", "tgt"]
    joined = ["--joined-dictionary", "--srcdict", dictionary]
    return run("preprocess", *languages, *splits, *joined, "--destdir", destination, *options, **how)


@pytest.fixture(scope="session")
def text(tmp_path_factory) -> Path:
    """Question pairs, with the lines that are easy to get wrong."""
    folder = tmp_path_factory.mktemp("text")
    rng = random.Random(0)
    for split, size in (("train", 80), ("valid", 20), ("test", 20)):
        pairs = []
        for _ in range(size):
            words = rng.choices(WORDS, k=rng.randint(3, 8))
            pairs.append((" ".join(words).capitalize() + "?", f"what is the best way to {words[0]}?"))
        pairs[1] = ("", "it")  # an empty source, a target of one word
        pairs[2] = ("how " * 100, "why " * 60)  # over both limits
        pairs[3] = ("caf\u00e9 \u2603 \U0001f600 \u4e2d\u6587", "don't")  # unknown characters
        pairs[4] = ("the guitar [SEP] what is it", "")
        for i, suffix in enumerate(("src", "tgt")):
            (folder / f"{split}.{suffix}").write_text("".join(pair[i] + "\n" for pair in pairs), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def bert_folder(tmp_path_factory) -> Path:
    config = {"max_position_embeddings": 80}
    state = bert_state(len(tiny_vocab()), config)
    return write_bert_folder(tmp_path_factory.mktemp("pretrained") / "bert", state, config)


@pytest.fixture(scope="session")
def sentencepiece_model(tmp_path_factory, text) -> Path:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        input=str(text / "train.src"), model_writer=model, vocab_size=80, hard_vocab_limit=False, minloglevel=2
    )
    path = tmp_path_factory.mktemp("sentencepiece") / "sp.model"
    path.write_bytes(model.getvalue())
    return path


@pytest.fixture(scope="session")
def data(tmp_path_factory, text, bert_folder) -> Path:
    folder = tmp_path_factory.mktemp("data") / "bin"
    preprocess(text, bert_folder / "vocab.txt", folder)
    return folder


@pytest.fixture(scope="session")
def trained(tmp_path_factory, data, bert_folder) -> tuple[Path, str]:
    """A checkpoint fine-tuned from a folder that is no longer there, and the training's log."""
    folder = tmp_path_factory.mktemp("trained")
    start_from = folder / "pretrained"
    bert_folder.rename(start_from)
    try:
        log = run(
            "train",
            data,
            *("--arch", "mist_base", "--pretrained", start_from, *LIMITS, *TRAINING, "--max-update", "150"),
            *("--eval-bleu", "--best-checkpoint-metric", "bleu", "--maximize-best-checkpoint-metric"),
            *("--no-epoch-checkpoints", "--save-dir", folder / "checkpoints"),
        )
    finally:
        start_from.rename(bert_folder)
    return folder / "checkpoints" / "checkpoint_best.pt", log
