"""A training that is killed, wherever it is, goes on and ends where one that was left alone ends."""

import random
import re
import shutil
import signal
from pathlib import Path

import torch

from mist_fairseq.torch_files import load_torch_file
from tests.end_to_end.conftest import ENVIRONMENT, LIMITS, ROOT, SMALL, TRAINING, command_line, run
from tests.end_to_end.warm import start_module
from tests.helpers import plain

UPDATES = 60
KILLS = 20


def arguments(data: Path, folder: Path, limits=LIMITS) -> list:
    """Checkpoints within epochs and at their ends, the best and the last: three files at a time, two of them copies."""
    training = [data, "--arch", "mist_tiny", *SMALL, *TRAINING, *limits, "--max-update", UPDATES]
    saving = ["--save-interval-updates", "4", "--keep-interval-updates", "1", "--no-epoch-checkpoints"]
    return [*training, *saving, "--save-dir", folder]


def outcome(folder: Path):
    """All that a resumed training starts from, but the times that it took."""
    state = load_torch_file(folder / "checkpoint_last.pt")
    history = {**state["optimizer_history"][-1]}
    iterator = state["extra_state"]["train_iterator"]
    best = state["extra_state"]["best"], state["extra_state"]["val_loss"]
    return plain(state["model"]), plain(state["last_optimizer_state"]), history, iterator, best


def test_killed_twenty_times(data, tmp_path):
    run("train", *arguments(data, tmp_path / "whole"))
    expected = outcome(tmp_path / "whole")
    assert expected[2]["num_updates"] == UPDATES

    rng = random.Random(0)
    folder, kills, resumed, finished = tmp_path / "killed", 0, [0], 0
    while kills < KILLS or finished == 0:
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
            resumed.append(int(found.group(1)))
        elif process.exitcode == 0:
            assert resumed == [0]
        kills += process.exitcode != 0
        if process.exitcode == 0:
            assert outcome(folder) == expected
            finished += 1
            if kills < KILLS:
                shutil.rmtree(folder)
                resumed = [0]
    assert len(set(resumed)) > 1 or finished > 1
    best = torch.load(folder / "checkpoint_best.pt", weights_only=True)
    assert plain(best["model"]) == plain(load_torch_file(tmp_path / "whole" / "checkpoint_best.pt")["model"])
