"""The mean of several checkpoints' weights."""

from collections.abc import Sequence
from pathlib import Path

import torch
from fairseq import checkpoint_utils
from torch import Tensor

from mist_fairseq.checkpoints.loading import untrained_state
from mist_fairseq.files.whole import whole_file
from mist_fairseq.patches.checkpoint_files import read_checkpoint

# The names of fairseq-train's checkpoints after an epoch, and after an update within one; what keeps more of them.
_EPOCHS = r"checkpoint(\d+)\.pt", "checkpointEPOCH.pt", "no --no-epoch-checkpoints"
_INTERVALS = "--save-interval-updates and --keep-interval-updates"
_UPDATES = r"checkpoint_\d+_(\d+)\.pt", "checkpoint_EPOCH_UPDATE.pt", _INTERVALS


def last_checkpoints(folder: str | Path, count: int, by_updates: bool, upper_bound: int | None = None) -> list[Path]:
    """The newest *count* checkpoints that fairseq-train kept in a folder, newest first; ValueError if it has fewer."""
    if count < 1:
        raise ValueError(f"{count} checkpoints to average, expected at least 1")
    pattern, kind, advice = _UPDATES if by_updates else _EPOCHS
    numbered = checkpoint_utils.checkpoint_paths(str(folder), pattern, keep_match=True)
    paths = [Path(path) for path, number in numbered if upper_bound is None or number <= upper_bound]
    if len(paths) < count:
        kept = f"{len(paths)} checkpoints {kind}{'' if upper_bound is None else f' up to {upper_bound}'}"
        raise ValueError(f"{folder} has {kept}, expected at least {count}: keep more in training ({advice})")
    return paths[:count]


def average_checkpoints(paths: Sequence[str | Path], output: str | Path):
    """Write a checkpoint with the mean of several checkpoints' weights and the configuration of the first.

    It has no optimizer's state: a training goes on from it with ``--finetune-from-model``, its learning rate anew.
    """
    if Path(output).resolve() in {Path(path).resolve() for path in paths}:
        raise ValueError(f"{output} is one of the checkpoints to average: choose another file to write")
    first = read_checkpoint(paths[0])
    weights = first["model"]
    sums = {name: tensor.double() for name, tensor in weights.items() if tensor.is_floating_point()}
    for path in paths[1:]:
        state = read_checkpoint(path)["model"]
        _check(weights, state, paths[0], path)
        for name in sums:
            sums[name] += state[name].double()
    means = {name: (total / len(paths)).to(weights[name].dtype) for name, total in sums.items()}
    kept = {name: first.get(name) for name in ("args", "cfg", "criterion", "task_state")}
    with whole_file(output) as partial:
        torch.save({**untrained_state(), **kept, "model": {**weights, **means}}, partial)


def _check(first: dict[str, Tensor], other: dict[str, Tensor], first_path: str | Path, path: str | Path):
    """Refuse weights of different names, shapes, types or settings."""
    between = f"{path} and {first_path} cannot be averaged: "
    for one, another, where in ((first, other, path), (other, first, first_path)):
        if missing := sorted(one.keys() - another.keys()):
            raise ValueError(f"{between}{where} has no {', '.join(missing[:3])} ({len(missing)} missing in all)")
    if "fingerprint" in first and not torch.equal(first["fingerprint"], other["fingerprint"]):
        raise ValueError(f"{between}they were trained with different vocabularies")
    for name, tensor in first.items():
        if tensor.shape != other[name].shape:
            raise ValueError(f"{between}{name} has shapes {tuple(other[name].shape)} and {tuple(tensor.shape)}")
        if tensor.dtype != other[name].dtype:
            raise ValueError(f"{between}{name} is {other[name].dtype} and {tensor.dtype}")
        # Whole numbers are settings, not weights: position limits, the vocabulary's fingerprint.
        if not tensor.is_floating_point() and not torch.equal(tensor, other[name]):
            raise ValueError(f"{between}{name} is {other[name].tolist()} and {tensor.tolist()}")
