"""fairseq checkpoints of ``--task mist``, with the dictionary that they need from their data folder."""

import os
from typing import Any

from fairseq import checkpoint_utils, utils
from omegaconf import DictConfig

from mist_fairseq.files.torch_files import reason
from mist_fairseq.release.folder import Released


def untrained_state() -> dict:
    """What fairseq's trainer saves before the first update, but for model and options; without an optimizer's state."""
    history = {"criterion_name": "", "optimizer_name": "", "lr_scheduler_state": {"best": None}, "num_updates": 0}
    return {
        "criterion": None,
        "task_state": {},
        "optimizer_history": [history],
        "extra_state": {"train_iterator": {"version": 2, "epoch": 1, "iterations_in_epoch": 0, "shuffle": True}},
        "last_optimizer_state": None,
    }


def load_checkpoint(path: str, data: str | None = None) -> tuple[Released, DictConfig, int]:
    """A checkpoint's model, the configuration that it was trained with, and the number of updates.

    Its ``dict.*.txt`` are in the folder *data*, by default the one that it was trained on.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"no checkpoint at {path}")
    overrides: dict[str, Any] = {"eval_bleu": False, "eval_rouge": False}  # not the validation of its training
    if data is not None:
        overrides["data"] = data
    state = checkpoint_utils.load_checkpoint_to_cpu(path, overrides)
    task = state["cfg"]["task"] if state.get("cfg") else {}
    if task.get("_name") != "mist":
        raise ValueError(f"{path} is of --task {task.get('_name')}: only models of --task mist can be released")
    folder = utils.split_paths(task.get("data") or "")[0]
    if not os.path.isdir(folder):
        raise ValueError(f"no data folder {folder!r}, whose dictionary {path} needs: give the right one (--data)")
    try:
        models, cfg, _ = checkpoint_utils.load_model_ensemble_and_task([path], overrides, state=state)
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # with other options fairseq, OmegaConf and torch have their own
        raise ValueError(f"{path} cannot be loaded: {reason(error)}") from error
    history = state.get("optimizer_history") or [{}]
    return models[0].released, cfg, history[-1].get("num_updates", 0)
