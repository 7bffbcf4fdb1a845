"""A training that is killed, wherever it is, goes on and ends where one that was left alone ends."""

import random
import re
import shutil
import signal
from pathlib import Path

import pytest
from fairseq import checkpoint_utils

import mist_fairseq.tasks  # noqa: F401
from mist_fairseq.files.torch_files import load_torch_file
from tests.end_to_end.conftest import BASELINE, ENVIRONMENT, LIMITS, ROOT, SMALL, TRAINING, command_line, run, train
from tests.end_to_end.warm import start_module
from tests.helpers import plain

UPDATES = 60
KILLS = 8
EMA = ["--store-ema", "--ema-decay", "0.9", "--ema-update-freq", "3", "--ema-start-update", "4"]


def arguments(data: Path, folder: Path, limits=LIMITS) -> list:
    """Checkpoints within epochs and at their ends, the best and the last: three files at a time, two of them copies."""
    training = [data, "--arch", "mist_tiny", *SMALL, *TRAINING, *limits, "--max-update", UPDATES]
    saving = ["--save-interval-updates", "4", "--keep-interval-updates", "1", "--no-epoch-checkpoints"]
    return [*training, *saving, "--save-dir", folder]


def outcome(folder: Path):
    """All that a resumed training starts from, but the times that it took."""
    state = load_torch_file(folder / "checkpoint_last.pt")
    history = {**state["optimizer_history"][-1]}
    # After a resumption at the end of an epoch fairseq forgets its loss here, which reduce_lr_on_plateau alone reads.
    history.pop("lr_scheduler_state")
    iterator = state["extra_state"]["train_iterator"]
    best = state["extra_state"]["best"], state["extra_state"]["val_loss"]
    mean = state["extra_state"].get("ema")
    return plain(state["model"]), plain(state["last_optimizer_state"]), history, iterator, best, plain(mean)


def test_killed_eight_times(data, tmp_path):
    run("train", *arguments(data, tmp_path / "whole"))
    expected = outcome(tmp_path / "whole")
    assert expected[2]["num_updates"] == UPDATES

    rng = random.Random(0)
    folder, kills, resumed, finished, ended = tmp_path / "killed", 0, [0], 0, False
    while kills < KILLS or not ended:
        # The limits of the command line do not matter where a checkpoint brings its own.
        limits = LIMITS if not (folder / "checkpoint_last.pt").exists() else ["--max-source-positions", "40"]
        line, environment = command_line("train", *arguments(data, folder, limits)), ENVIRONMENT
        writing = kills % 2 == 0
        if writing and kills < KILLS:
            line[0] = "tests.end_to_end.dies_writing"
            environment = {**ENVIRONMENT, "DIES_AT_FILE": str(rng.randint(1, 8))}
        output = tmp_path / f"{kills}-{finished}.log"
        process = start_module(line, str(ROOT), environment, str(output))
        if not writing and kills < KILLS:
            process.join(rng.uniform(0.2, 2.5))
            process.kill()
        process.join(120)
        log = output.read_text()
        assert process.exitcode in (0, -signal.SIGKILL), log
        found = re.search(r"Loaded checkpoint .* @ (\d+) updates", log)
        if found:
            assert int(found.group(1)) >= resumed[-1], "an older checkpoint than the time before"
            assert "--max-source-positions 50 --max-target-positions 20 replace the given 40 and" in log
            resumed.append(int(found.group(1)))
        elif process.exitcode == 0:
            assert resumed == [0]
        ended = process.exitcode == 0
        kills += not ended
        if ended:
            assert outcome(folder) == expected
            best, whole = (load_torch_file(path / "checkpoint_best.pt") for path in (folder, tmp_path / "whole"))
            assert plain(best["model"]) == plain(whole["model"])
            finished += 1
            if kills < KILLS:
                shutil.rmtree(folder)
                resumed = [0]
    assert len(set(resumed)) > 1 or finished > 1


@pytest.mark.parametrize(
    ("task", "options"),
    [
        # fairseq orders sentences of equal lengths at random, in each process otherwise.
        ("mist_translation", BASELINE),
        # fairseq would begin to shuffle where training goes on, and only there.
        ("mist", ["--arch", "mist_tiny", *SMALL, *TRAINING, *LIMITS, "--curriculum", "1", *EMA]),
    ],
)
def test_batches_are_those_of_a_training_left_alone(data, tmp_path, task, options):
    saving = ["--save-interval-updates", "14", "--max-update", "24"]  # three epochs of ten
    train(task, data, *options, *saving, "--save-dir", tmp_path / "whole")
    (tmp_path / "killed").mkdir()
    shutil.copy(tmp_path / "whole" / "checkpoint_2_14.pt", tmp_path / "killed" / "checkpoint_last.pt")
    train(task, data, *options, *saving, "--save-dir", tmp_path / "killed")
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")
    if task == "mist":
        last, mean = tmp_path / "whole" / "checkpoint_last.pt", tmp_path / "mean.pt"
        checkpoint_utils.save_ema_as_checkpoint(str(last), str(mean))
        (model,), _, _ = checkpoint_utils.load_model_ensemble_and_task([str(mean)])
        found, state = plain(model.state_dict()), load_torch_file(last)
        assert found == plain(state["extra_state"]["ema"]) != plain(state["model"])


def test_patience_counts_on(data, tmp_path):
    options = ["--arch", "mist_tiny", *SMALL, *TRAINING, *LIMITS, "--lr", "0.5", "--patience", "2", "--max-epoch", "30"]
    train("mist", data, *options, "--save-dir", tmp_path / "whole")
    updates = outcome(tmp_path / "whole")[2]["num_updates"]
    assert updates < 300
    (tmp_path / "killed").mkdir()
    shutil.copy(tmp_path / "whole" / f"checkpoint{updates // 10 - 1}.pt", tmp_path / "killed" / "checkpoint_last.pt")
    train("mist", data, *options, "--save-dir", tmp_path / "killed")
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")
