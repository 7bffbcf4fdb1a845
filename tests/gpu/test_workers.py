"""Two GPUs learn what one does with twice the --update-freq, by the real command."""

import os
import subprocess
import sys

import pytest
import torch

from mist_fairseq.experiments.benchmark.inputs import write_data
from mist_fairseq.files.torch_files import load_torch_file
from tests.end_to_end.conftest import LIMITS, ROOT, SMALL
from tests.end_to_end.test_distributed import SHARED, meet
from tests.gpu import ON_GPU

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(ON_GPU and torch.cuda.device_count() < 2, reason="needs two GPUs"),
]

TRAINING = "--user-dir mist_fairseq --task mist --arch mist_tiny --criterion mist_loss --dropout 0 --lr 0.02"
TRAINING += " --attention-dropout 0 --optimizer sgd --lr-scheduler fixed --max-update 20 --disable-validation"
TRAINING += " --num-workers 0 --no-epoch-checkpoints --required-batch-size-multiple 1 --no-progress-bar"


def train(folder, data, *options: str, workers: int) -> dict:
    """The parameters after 20 updates."""
    folder.mkdir()
    command = [sys.executable, "-m", "fairseq_cli.train", str(data), *TRAINING.split(), *SMALL, *LIMITS, *options]
    command += ["--save-dir", str(folder), "--distributed-world-size", str(workers)]
    environment, commands = os.environ | {"OMP_NUM_THREADS": "1"}, [command]
    if not ON_GPU and workers > 1:  # one by one, which fairseq does by itself for GPUs
        command += [*SHARED, *meet(folder), "--distributed-no-spawn"]
        commands = [[*command, "--distributed-rank", str(rank)] for rank in range(workers)]
    processes = [subprocess.Popen(one, cwd=ROOT, env=environment) for one in commands]
    assert [process.wait() for process in processes] == [0] * len(processes)
    return load_torch_file(folder / "checkpoint_last.pt")["model"]


def test_two_learn_what_one_does_with_twice_the_update_freq(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    write_data(data, {"source": {4: 1, 9: 1}, "target": {3: 1, 8: 1}}, 96, "train")
    device = [] if ON_GPU else ["--cpu"]
    two = train(tmp_path / "two", data, "--batch-size", "12", *device, workers=2)
    one = train(tmp_path / "one", data, "--batch-size", "12", "--update-freq", "2", *device, workers=1)
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=1e-5, msg=name)
