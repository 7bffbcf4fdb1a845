"""scripts/convert_checkpoint.py, then fairseq-generate and fairseq-train on what it wrote."""

import runpy
import sys

import torch

from mist_fairseq.experiments.evaluation import read_generation
from tests.checkpoints.test_authors import V, released_state
from tests.end_to_end.conftest import LIMITS, ROOT, TRAINING, run
from tests.helpers import bert_state


def test_a_released_checkpoint_generates_and_trains(data, bert_folder, tmp_path, monkeypatch, capsys):
    checkpoint, out = tmp_path / "model_state_dict.bin", tmp_path / "mist.pt"
    torch.save(released_state(bert_state(V, {"max_position_embeddings": 80})), checkpoint)
    arguments = ["convert_checkpoint.py", checkpoint, "--config", bert_folder, "--out", out, *LIMITS]
    monkeypatch.setattr(sys, "argv", [str(argument) for argument in arguments])
    runpy.run_path(str(ROOT / "scripts" / "convert_checkpoint.py"), run_name="__main__")
    assert "at most 50 source and 20 target tokens" in capsys.readouterr().out

    output = run("generate", data, "--path", out, "--cpu", "--min-length", "6", "--decoding", "mist")
    assert len(read_generation(output).outputs) == 20

    log = run(
        *("train", data, "--arch", "mist_base", "--pretrained", bert_folder, "--untie-head", *LIMITS, *TRAINING),
        *("--finetune-from-model", out, "--max-update", "1", "--disable-validation", "--no-epoch-checkpoints"),
        *("--save-dir", tmp_path / "checkpoints"),
    )
    assert "loading pretrained model from" in log and (tmp_path / "checkpoints" / "checkpoint_last.pt").is_file()
