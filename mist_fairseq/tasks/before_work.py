"""What can be told of a command before it loads anything: options that do not go together, files that are not there.

*whole* is fairseq's configuration of a command, all options of all parts.
"""

import logging
import os
from contextlib import nullcontext
from typing import Any
from unittest.mock import patch

import torch
from fairseq import utils
from fairseq.criterions import CRITERION_REGISTRY
from fairseq.file_io import PathManager
from fairseq.logging import metrics
from fairseq.models import ARCH_MODEL_REGISTRY
from fairseq.models.nat import FairseqNATModel

from mist_fairseq.models.mist_model import MistModel
from mist_fairseq.patches.checkpoint_files import read_checkpoint
from mist_fairseq.tasks.options import running

logger = logging.getLogger(__name__)

_KNOWN = "fairseq.", "mist_fairseq."  # modules of what is no user's
_LAST = "checkpoint_last.pt"  # of which there need be none
_MORE, _LESS = ("bleu", "rouge_l", "accuracy"), ("loss", "ppl")  # ends of names of metrics: what is better
_SIZES = ("batch_size", "batch_size_valid", "max_tokens", "max_tokens_valid", "required_batch_size_multiple")


def check(whole: Any):
    """ValueError for what a command cannot do; one warning for each thing that it will hardly mean."""
    sizes = [(name, whole.dataset[name]) for name in _SIZES]
    for name, value in [*sizes, *(("update_freq", number) for number in whole.optimization.update_freq)]:
        if value is not None and value < 1:  # fairseq takes some for no limit, and crashes at others
            raise ValueError(f"--{name.replace('_', '-')} is {value}, expected at least 1")
    command = running()
    if command is None:  # a checkpoint's configuration, for one, in a program of its own
        return
    trains = command == "train"
    _check_precision(whole, trains)
    if (backend := whole.distributed_training.ddp_backend) in ("fully_sharded", "slowmo"):
        raise ValueError(f"--ddp-backend {backend} needs fairscale, with which the plugin was never run: leave it out")
    if trains:
        _check_parts(whole)
        _check_files(whole)
        _warn(whole)


def _check_precision(whole, trains: bool):
    """Refuse what fairseq has for precision where it fails, or does nothing."""
    common, on_gpu = whole.common, torch.cuda.is_available() and not whole.common.cpu
    is_mist = "precision" in whole.task
    instead = "give --precision bf16" if is_mist else "leave it out, or on a GPU give --fp16"
    if common.amp and not (trains and on_gpu):
        raise ValueError(f"--amp has no effect{' on a CPU' if trains else ''}: {instead}")
    asked = {"--fp16": common.fp16, "--amp": common.amp, "--precision bf16": whole.task.get("precision") == "bf16"}
    if len(given := [flag for flag, is_given in asked.items() if is_given]) > 1:
        raise ValueError(f"{' and '.join(given)}: give one of them")
    if not trains:
        return
    flag = "--memory-efficient-fp16" if common.memory_efficient_fp16 else "--fp16"
    if common.fp16 and not on_gpu:
        raise ValueError(f"{flag} trains on a GPU only: {instead if is_mist else 'leave it out'}")
    if common.memory_efficient_fp16 and getattr(whole.optimizer, "_name", None) == "bert_adamw":
        raise ValueError(f"{flag} does not go with --optimizer bert_adamw: {instead}, or --fp16")


def _check_parts(whole):
    """Refuse parts that do not go together, such as a criterion and an architecture; those of users are left alone."""
    if whole.bmuf.average_sync and whole.optimizer._name == "bert_adamw":  # fairseq has it for Adam
        raise ValueError("--average-sync does not go with --optimizer bert_adamw: leave it out, or use adam")
    task, is_mist = whole.task._name, "precision" in whole.task
    criterion, arch = (getattr(part, "_name", None) for part in (whole.criterion, whole.model))
    if arch is None:  # only fairseq-hydra-train goes as far as this
        some = "mist_base" if is_mist else "transformer"
        raise ValueError(f"no --arch is given: --task {task} takes {some}, for one")
    loss, kind = CRITERION_REGISTRY.get(criterion, object), ARCH_MODEL_REGISTRY.get(arch, object)
    wanted = ""
    if issubclass(kind, MistModel) and kind.forward is MistModel.forward:
        wanted = "mist_loss"
    elif issubclass(kind, FairseqNATModel):
        wanted = "nat_loss"
    if wanted and criterion != wanted and loss.__module__.startswith(_KNOWN):
        by_default = ", fairseq's default" if criterion == "cross_entropy" else ""
        raise ValueError(f"--arch {arch} needs --criterion {wanted}, not {criterion}{by_default}")
    if not wanted and criterion in ("mist_loss", "nat_loss") and kind.__module__.startswith(_KNOWN):
        models = "models of --task mist" if criterion == "mist_loss" else "models such as cmlm_transformer"
        raise ValueError(f"--criterion {criterion} is for {models}, not for --arch {arch}: change one of them")
    if criterion == "nat_loss" and "noise" not in whole.task:
        raise ValueError(f"--criterion nat_loss does not go with --task {task}: give --task mist_translation_lev")


def _check_files(whole):
    """Refuse checkpoints to start from that are not there."""
    saved, ema = whole.checkpoint, whole.ema
    suffix = saved.checkpoint_suffix or ""
    last = os.path.join(saved.save_dir, f"checkpoint_last{suffix}.pt")
    begins = saved.restore_file == _LAST and not PathManager.exists(last)
    paths = {
        "--restore-file": None if saved.restore_file == _LAST else saved.restore_file.replace(".pt", f"{suffix}.pt"),
        "--continue-once": saved.continue_once if begins else None,
        "--finetune-from-model": saved.finetune_from_model if begins else None,
        "--ema-seed-model": ema.ema_seed_model if ema.store_ema else None,
    }
    for flag, path in paths.items():
        if path is not None and not PathManager.exists(path):
            raise ValueError(f"{flag} {path}: there is no such file; leave the option out to begin without one")
    if (path := paths["--ema-seed-model"]) and "ema" not in (read_checkpoint(path).get("extra_state") or {}):
        raise ValueError(f"--ema-seed-model {path} was trained without --store-ema: leave the option out")


def _warn(whole):
    """Warn of what fairseq accepts and nobody means."""
    saved, updates, schedule = whole.checkpoint, whole.optimization.max_update, whole.lr_scheduler
    metric, maximize = saved.best_checkpoint_metric, saved.maximize_best_checkpoint_metric
    if whole.dataset.disable_validation:
        if given := [flag for flag in ("patience", "keep_best_checkpoints") if saved[flag] > 0]:
            flags = " and ".join("--" + flag.replace("_", "-") for flag in given)
            logger.warning("%s without effect: --disable-validation leaves nothing to compare", flags)
    elif metric.endswith(_LESS if maximize else _MORE):
        advice = "leave out" if maximize else "add"
        logger.warning("the worst %s counts as the best: %s --maximize-best-checkpoint-metric", metric, advice)
    for flag, reached in (("warmup_updates", "at its highest"), ("total_num_update", "at its end")):
        if 0 < updates < (end := getattr(schedule, flag, None) or 0):
            flag = "--" + flag.replace("_", "-")
            message = "training ends after --max-update %d, before the learning rate is %s: %s is %d"
            logger.warning(message, updates, reached, flag, end)
            break


@torch.no_grad()
def check_metric(task, model, criterion, whole: Any):
    """ValueError if the validation of one sentence does not give ``--best-checkpoint-metric``.

    For a criterion of a user, which may log it of some batches only, a warning.
    """
    metric, subset = whole.checkpoint.best_checkpoint_metric, whole.dataset.valid_subset.split(",")[0]
    if metric == "loss" or whole.dataset.disable_validation:
        return
    dataset = task.dataset(subset)
    sample = dataset.collater([dataset[0]])
    if next(model.parameters()).is_cuda:
        sample = utils.move_to_cuda(sample)
    model.eval()
    criterion.eval()
    generator = getattr(task, "sequence_generator", None)
    # An untrained Levenshtein Transformer would insert more words at each further pass, beyond its positions.
    once = patch.object(generator, "max_iter", 0) if hasattr(generator, "max_iter") else nullcontext()
    with once, metrics.aggregate(new_root=True) as logged:
        task.reduce_metrics([task.valid_step(sample, model, criterion)[2]], criterion)
    names = sorted(logged.get_smoothed_values())
    if metric in names or metric == "num_updates":
        return
    options = {"bleu": "; bleu needs --eval-bleu", "rouge_l": "; rouge_l needs --eval-rouge"}
    message = f"--best-checkpoint-metric {metric}: validation gives {', '.join(names)}{options.get(metric, '')}"
    if not type(criterion).__module__.startswith(_KNOWN):
        logger.warning(message)
        return
    raise ValueError(message)
