"""fairseq's other commands and options, as docs/fairseq.md has them."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import torch

from mist_fairseq.experiments.evaluation import read_generation, read_outputs
from mist_fairseq.files.torch_files import load_torch_file
from tests.end_to_end.conftest import ENVIRONMENT, LIMITS, ROOT, TRAINING, command_line, run
from tests.end_to_end.warm import environment, start_module


def shell(*command, fails=False, **options) -> str:
    """Run a command of the repository and give back what it printed."""
    options = {"cwd": ROOT, "env": environment(), "text": True, "timeout": 300, "capture_output": True} | options
    result = subprocess.run(list(map(str, command)), **options)
    assert (result.returncode != 0) == fails, result.stdout + result.stderr
    return result.stdout + result.stderr


def last_state(folder: Path) -> dict:
    return load_torch_file(folder / "checkpoint_last.pt")


# -- fairseq-hydra-train, TensorBoard -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def quickstart(data, tmp_path_factory) -> tuple[Path, str]:
    """The quickstart's own command line for seven updates, with TensorBoard: the folder and the log."""
    folder = tmp_path_factory.mktemp("quickstart")
    script = (ROOT / "examples/quickstart/run.sh").read_text().replace("\\\n", " ")
    (command,) = (shlex.split(line) for line in script.splitlines() if line.strip().startswith("fairseq-train "))
    places = {"$run/data-bin": data, "$run/checkpoints": folder}
    arguments = [places.get(word, word) for word in command[1:]]
    log = run(
        *("train", *arguments, "--cpu", "--max-update", "7", "--log-interval", "3", "--log-format", "simple"),
        *("--tensorboard-logdir", folder / "tensorboard"),
    )
    return folder, log


def test_hydra_trains_what_the_command_line_trains(data, quickstart, tmp_path):
    shell(
        *("fairseq-hydra-train", "--config-dir", "examples/config", "--config-name", "quickstart"),
        *(f"task.data={data}", f"checkpoint.save_dir={tmp_path}", "common.cpu=true"),
        *("optimization.max_update=7", "lr_scheduler.total_num_update=1000"),
    )
    expected, found = last_state(quickstart[0]), last_state(tmp_path)
    assert expected["model"].keys() == found["model"].keys()
    for name, value in expected["model"].items():
        assert torch.equal(value, found["model"][name]), name
    assert found["optimizer_history"][-1]["num_updates"] == 7
    assert found["cfg"]["model"].pop("_name") == "mist" and expected["cfg"]["model"].pop("_name") == "mist_tiny"
    for part in ("model", "task", "criterion", "optimizer", "lr_scheduler", "optimization"):
        assert found["cfg"][part] == expected["cfg"][part], part


def test_tensorboard_has_the_losses_of_the_log(quickstart):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder, log = quickstart
    losses = ("loss", "nat_loss", "mist_loss", "length_loss", "nll_loss")
    for name, pattern, updates in (
        ("train_inner", r"train_inner \| (.*)", [3, 6]),
        ("train", r"\| train \| (.*)", [3, 6, 7]),
        ("valid", r"valid on 'valid' subset \| (.*)", [6, 7]),
    ):
        events = EventAccumulator(str(folder / "tensorboard" / name)).Reload()
        printed = [dict(re.findall(r"(\w+)[ =]([-\d.e]+)", line)) for line in re.findall(pattern, log)]
        assert [int(line["num_updates"]) for line in printed] == updates
        for key in (*losses, *(["bleu"] if name == "valid" else ["lr"])):
            values = {event.step: event.value for event in events.Scalars(key)}
            expected = {int(line["num_updates"]): float(line[key]) for line in printed}
            assert values == pytest.approx(expected, rel=1e-5), (name, key)


# -- fairseq-validate ---------------------------------------------------------------------------------------------


def test_validate_gives_the_log_of_the_training(trained, data):
    """For the best checkpoint, losses and BLEU to the last digit."""
    line = r"subset (\| loss .* \| bleu ([\d.]+)) .* best_bleu ([\d.]+)$"
    best = [figures for figures, bleu, best in re.findall(line, trained[1], re.MULTILINE) if bleu == best]
    options = ["--valid-subset", "valid", "--batch-size", "8", "--cpu", "--log-format", "simple", "--eval-bleu"]
    assert best[-1] in run("validate", data, "--path", trained[0], *options)


# -- averaging, and what is done with the average -----------------------------------------------------------------


@pytest.fixture(scope="module")
def averaged(trained, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("averaged") / "averaged.pt"
    inputs = [trained[0], trained[0].with_name("checkpoint_last.pt")]
    printed = shell("python", "scripts/average_checkpoints.py", "--inputs", *inputs, "--output", output)
    assert f"{output}: the mean of" in printed
    return output


def test_finetune_from_model(averaged, data, bert_folder, tmp_path):
    """The checkpoint's weights win over --pretrained's, and nothing but weights is taken over."""
    training = ["--arch", "mist_base", *LIMITS, *TRAINING, "--max-update", "1", "--disable-validation", "--lr", "0"]
    start_from = ["--pretrained", bert_folder, "--finetune-from-model", averaged]
    run("train", data, *training, *start_from, "--no-epoch-checkpoints", "--save-dir", tmp_path)
    expected, found = load_torch_file(averaged), last_state(tmp_path)
    for name, value in expected["model"].items():
        assert torch.equal(value, found["model"][name]), name
    assert found["optimizer_history"][-1]["num_updates"] == 1
    assert {state["step"].item() for state in found["last_optimizer_state"]["state"].values()} == {1}

    expected["model"]["fingerprint"][0] ^= 1  # as if trained with another vocabulary
    torch.save(expected, tmp_path / "other.pt")
    start_from[-1] = tmp_path / "other.pt"
    refusal = run("train", data, *training, *start_from, "--save-dir", tmp_path / "refused", fails=True)
    assert "the data was binarized with another vocabulary than the checkpoint was trained with" in refusal
    assert not list((tmp_path / "refused").glob("*.pt"))


MERGE = r"grep -h ^D- out/*/generate-test.txt | sort -t- -k2n -s | cut -f3 > test.out"


def test_shards_are_the_whole(averaged, data, text, tmp_path):
    """fairseq-generate in two processes; fairseq-interactive gives the same from a file, line by line."""
    assert MERGE in (ROOT / "docs/fairseq.md").read_text()
    decoding = ["--decoding", "mist", "--decoding-iterations", "3"]
    common = [data, "--path", averaged, "--cpu", *decoding]
    scored = ["generate", *common, "--batch-size", "6", "--scoring", "sacrebleu"]
    shards = []
    for rank, names in enumerate((("distributed-world-size", "distributed-rank"), ("num-shards", "shard-id"))):
        shard = [f"--{names[0]}", "2", f"--{names[1]}", rank, "--results-path", tmp_path / f"out/{rank}"]
        shards.append(
            start_module(command_line(*scored, *shard), str(ROOT), ENVIRONMENT, str(tmp_path / f"{rank}.log"))
        )
    whole = run(*scored)
    for rank, process in enumerate(shards):
        process.join(300)
        assert process.exitcode == 0, (tmp_path / f"{rank}.log").read_text()

    def of_sentences(text):
        return sorted(re.findall(r"^[STHDP]-.*", text, re.MULTILINE))

    parts = [(tmp_path / f"out/{rank}/generate-test.txt").read_text() for rank in range(2)]
    assert of_sentences("".join(parts)) == of_sentences(whole) and all(map(of_sentences, parts))
    shell("bash", "-c", MERGE, cwd=tmp_path)
    merged = (tmp_path / "test.out").read_text().split("\n")[:-1]
    assert merged == read_generation(whole).outputs and len(set(merged)) > 5
    (tmp_path / "all.txt").write_text("".join(parts))
    assert read_outputs(tmp_path / "all.txt") == merged
    with pytest.raises(ValueError, match="fairseq-generate printed"):  # has gaps
        read_outputs(tmp_path / "out/1/generate-test.txt")

    source = text / "test.src"  # its second line is empty
    assert source.read_text().split("\n")[1] == ""
    printed = run("interactive", *common, "--input", source, "--buffer-size", "7", "--batch-size", "3")
    answers = re.findall(r"^D-(\d+)\t\S+\t(.*)$", printed, re.MULTILINE)
    assert answers == [(str(number), line) for number, line in enumerate(merged)]
