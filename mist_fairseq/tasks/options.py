"""fairseq's options that are refused: those that would do nothing, or something else than they say.

``tests/tasks/test_options.py`` has a row for each option of the five commands: what is not here is honoured, or has no
effect and does no harm. ``models.nar_generator`` has the options of autoregressive decoding.
"""

import ast
import os
import sys
from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any, NamedTuple

from fairseq import options
from fairseq.dataclass.configs import FairseqConfig
from fairseq.scoring.bleu import SacrebleuConfig
from fairseq.tasks import TASK_DATACLASS_REGISTRY
from omegaconf import DictConfig, OmegaConf


class Refused(NamedTuple):
    """Options of commands (fairseq-train is ``train``), of one task or all, and what to do instead."""

    commands: str
    names: str
    instead: str
    task: str = ""


_SHARDS = "it is for fairseq-generate"

REFUSED = [
    Refused(
        "preprocess generate interactive",
        "bpe tokenizer",
        "texts go in and come out as they are; the tokenizer is that of fairseq-preprocess --srcdict",
    ),
    Refused(
        "preprocess",
        "nwordssrc nwordstgt thresholdsrc thresholdtgt padding_factor",
        "the vocabulary is the tokenizer's of --srcdict, whole",
    ),
    Refused("preprocess", "align_suffix alignfile", "no model here reads alignments"),
    Refused("train validate generate interactive", "load_alignments", "no model here reads alignments"),
    Refused("generate interactive", "replace_unk", "there is no attention to words; [UNK] is never predicted by mist"),
    Refused("train validate", "gen_subset", "use --train-subset and --valid-subset"),
    Refused("train validate", "num_shards shard_id", f"{_SHARDS}; use --distributed-world-size"),
    Refused("interactive", "num_shards shard_id", f"{_SHARDS}; split the input"),
    Refused("generate", "valid_subset", "use --gen-subset"),
    Refused("interactive validate", "results_path", f"{_SHARDS}; redirect what is printed"),
    Refused("train validate", "output", "it is for fairseq-generate and fairseq-interactive"),
    Refused("train generate interactive", "checkpoint_shard_count", "checkpoints are one file each"),
    Refused("train", "model_parallel_size pipeline_model_parallel", "the models are not split"),
    Refused("train", "zero_sharding cpu_offload use_sharded_state", "the plugin was never run with fairscale"),
    Refused("train", "amp_init_scale amp_scale_window", "fairseq mixes them up; --amp begins with --fp16-init-scale"),
    Refused(
        "train validate generate interactive",
        "memory_efficient_bf16 bf16",
        "it is for TPUs; --task mist has --precision bf16, and GPUs have --fp16",
    ),
    Refused("train validate generate interactive", "tpu", "the plugin runs on CPUs and GPUs"),
    Refused("train", "sentence_avg", "mist_loss is divided by the number of target tokens", "mist"),
    Refused("train", "quantization_config_path", "train in fp32 or bf16; --precision int8 is for generation"),
    Refused("train", "upsample_primary", "repeat its lines in the data"),
    Refused(
        "train validate",
        "eval_bleu_detok eval_bleu_detok_args eval_tokenized_bleu",
        "--eval-bleu is sacrebleu on readable text",
    ),
    Refused("generate", "print_step retain_iter_history", "a beam search has no steps", "mist_translation"),
]


def running() -> str | None:
    """Which command this process runs: ``train`` for fairseq-train or ``python -m fairseq_cli.train``; None if none."""
    folder, name = os.path.split(sys.argv[0] if sys.argv else "")
    if os.path.basename(folder) == "fairseq_cli" and name.endswith(".py"):
        name = f"fairseq-{name.removesuffix('.py').replace('_', '-')}"
    if not name.startswith("fairseq-"):
        return None
    return name.removeprefix("fairseq-").removeprefix("hydra-")


def refuse(command: str, task: str, values: Mapping[str, Any], defaults: Mapping[str, Any]):
    """Raise ValueError if an option has another value than its default and is in ``REFUSED``."""
    for row in REFUSED:
        if command in row.commands.split() and row.task in ("", task):
            for name in row.names.split():
                if values.get(name) not in (None, defaults.get(name)):
                    raise ValueError(f"--{name.replace('_', '-')} does not work with fairseq-{command}: {row.instead}")


def check_preprocessing():
    """The same for the command line of fairseq-preprocess."""
    parser = options.get_preprocessing_parser()
    given = vars(parser.parse_known_args()[0])
    if given["dataset_impl"] not in ("mmap", "raw"):
        raise ValueError(f"--dataset-impl {given['dataset_impl']} is not read here: use mmap, the default, or raw")
    refuse("preprocess", given["task"], given, {name: parser.get_default(name) for name in given})


def check_options(whole: DictConfig, task: DictConfig):
    """Refuse what does not work of a command's *whole* configuration, with its *task*'s.

    Of fairseq-generate, honour what fairseq forgets: ``--num-shards`` with ``--shard-id``, and ``--sacrebleu``.
    """
    command = running()
    if command is None:
        return
    defaults = vars(TASK_DATACLASS_REGISTRY[task._name]()).copy()
    values: dict[str, Any] = {name: task.get(name) for name in defaults}
    for name, group in vars(FairseqConfig()).items():
        if is_dataclass(group) and name in whole:
            defaults |= {option: value for option, value in vars(group).items() if "${" not in str(value)}
            values |= {option: whole[name].get(option) for option in vars(group)}
    refuse(command, task._name, values | {name: whole.get(name) for name in ("bpe", "tokenizer")}, defaults)
    if command in ("generate", "interactive"):
        for name in ast.literal_eval(whole.common_eval.model_overrides):
            if name in task and name != "data":
                raise ValueError(
                    f"--model-overrides has {name!r}, which fairseq-{command} takes from its command line only: give "
                    f"--{name.replace('_', '-')}"
                )
    if command == "generate":
        _honour(whole)


def needs_targets(task: DictConfig) -> str | None:
    """What of this command cannot do without targets, by its name; None if nothing."""
    command = running()
    whole: Any = task._get_parent()
    if command in ("train", "validate"):
        return f"fairseq-{command}"
    if command == "generate" and whole is not None:
        names = (name for name in ("score_reference", "prefix_size") if whole.generation[name])
        return next((f"--{name.replace('_', '-')}" for name in names), None)
    return None


def _honour(whole: DictConfig):
    shards, workers = whole.dataset, whole.distributed_training
    if shards.num_shards > 1 and workers.distributed_world_size > 1:
        raise ValueError("--num-shards and --distributed-world-size mean the same here: give one of them")
    if shards.num_shards > 1:
        workers.distributed_world_size, workers.distributed_rank = shards.num_shards, shards.shard_id
    if workers.distributed_world_size > 1 and whole.task.get("output"):
        raise ValueError(
            "--output is for one process: each of several has sentences from everywhere; merge their D- lines as "
            'docs/fairseq.md does ("fairseq-generate in several processes")'
        )
    if whole.generation.sacrebleu:
        if whole.scoring._name not in ("bleu", "sacrebleu"):
            raise ValueError(f"--sacrebleu and --scoring {whole.scoring._name}: give one of them")
        if whole.scoring._name == "bleu":  # the default
            whole.scoring = OmegaConf.structured(SacrebleuConfig(_name="sacrebleu"))
