"""fairseq's reading, writing and copying of checkpoints; the package says what goes wrong without."""

import argparse
import ast
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from fairseq import checkpoint_utils
from fairseq.file_io import PathManager
from fairseq.models import ARCH_MODEL_NAME_REGISTRY, ARCH_MODEL_REGISTRY, MODEL_DATACLASS_REGISTRY
from torch import Tensor, nn

from mist_fairseq.files.torch_files import check_shapes, load_torch_file, plain_values, reason
from mist_fairseq.files.whole import whole_file
from mist_fairseq.models.mist_model import MistModel
from mist_fairseq.patches import replaces

# Texts in which eval() finds nothing to call: words, numbers and paths; and lists of numbers, repeated and added up, as
# fairseq's convolutional models have them.
_WORDS = re.compile(r"[\w\s.,:;/@+~=|&!?#%-]*")
_NUMBERS = r"\[[\d\s,()]*\](?: \* \d{1,3})?"
_LISTS = re.compile(rf"{_NUMBERS}(?: \+ {_NUMBERS})*")
_LONGEST_OPTION = 10_000  # characters
_EMBEDDINGS = "encoder.word_embeddings.weight"  # in the weights of our models
_FOLDERS = ("data", "save_dir")  # never evaluated, and a folder may be called run(2)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The content of a checkpoint of fairseq-train, on the CPU; errors as of ``load_torch_file``."""
    content = load_torch_file(path, mmap=True)
    weights = content.get("model") if isinstance(content, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(tensor, Tensor) for tensor in weights.values()):
        raise ValueError(f"{path} is no checkpoint of fairseq-train: it has no weights under 'model'")
    return content


@replaces(checkpoint_utils, "load_checkpoint_to_cpu")
def _load_checkpoint_to_cpu(load, path, arg_overrides=None, load_on_all_ranks=False):
    try:
        content = read_checkpoint(PathManager.get_local_path(path))
    except ValueError as error:
        raise ValueError(f"{error}{_undamaged_neighbour(Path(path))}") from error
    _check_options(content, path)
    try:
        with plain_values():
            state = load(path, arg_overrides, load_on_all_ranks)
    except Exception as error:  # from what a checkpoint lacks fairseq and OmegaConf make nearly any error
        raise ValueError(f"{path} is damaged or no checkpoint of fairseq: {reason(error)}") from error
    _check_sizes((state["cfg"] or {}).get("model"), content["model"], path)
    state["extra_state"].setdefault("ema", {})  # or --store-ema looks for weights that fairseq has deleted by then
    return state


def _undamaged_neighbour(path: Path) -> str:
    """For the message: the newest checkpoint in the folder of *path* with which --restore-file can go on."""
    beside = [other for other in path.parent.glob("checkpoint*.pt") if other != path]
    for other in sorted(beside, key=lambda other: other.stat().st_mtime, reverse=True):
        try:
            if "last_optimizer_state" in read_checkpoint(other):  # an averaged checkpoint has none
                return f"; {other} is in order"
        except (ValueError, OSError):
            continue
    return ""


def _check_options(content: dict[str, Any], path: str):
    """Refuse options that fairseq might run as code, or that refer to others, which OmegaConf puts into each other."""
    config = content.get("cfg")
    for name, text in _texts([content.get("args"), config]):
        if "${" in text:
            raise ValueError(f"{path}: {name} is {text[:80]!r}, which is no value but a reference to others")
    parts = [config.get(part) for part in ("model", "task", "criterion")] if isinstance(config, Mapping) else []
    for part in [content.get("args"), *parts]:
        # Our models do not evaluate their --pretrained, a folder; fairseq's fconv_self_att does.
        folders = {*_FOLDERS, "pretrained"} if isinstance(part, Mapping) and _our_model(part.get("_name")) else _FOLDERS
        for name, text in _texts(part):
            if name not in folders and not _is_plain(text):
                raise ValueError(f"{path}: {name} is {text[:80]!r}, which fairseq might run as code")


def _texts(value, name: str = "") -> Iterator[tuple[str, str]]:
    """All texts within options, each with the name of its option."""
    if isinstance(value, str | bytes):
        yield name, value if isinstance(value, str) else value.decode("latin-1")
    elif isinstance(value, Mapping | argparse.Namespace):
        for key, part in (value if isinstance(value, Mapping) else vars(value)).items():
            yield from _texts(part, str(key))
    elif isinstance(value, list | tuple | set):
        for part in value:
            yield from _texts(part, name)


def _is_plain(text: str) -> bool:
    """Whether eval() of a text runs nothing: of a word, number, path, literal, JSON, or no expression at all."""
    if len(text) > _LONGEST_OPTION:
        return False
    if _WORDS.fullmatch(text) or _LISTS.fullmatch(text):
        return True
    try:
        ast.literal_eval(text)
    except SyntaxError:
        return True  # eval() would refuse it, too
    except (ValueError, TypeError, RecursionError, MemoryError):
        try:
            json.loads(text)  # true, false and null are no literals
        except (ValueError, RecursionError):
            return False
    return True


def _our_model(architecture) -> Any:
    """The class of a model of this package, None for fairseq's and for those of users."""
    kind = ARCH_MODEL_REGISTRY.get(architecture) if isinstance(architecture, str) else None
    return kind if kind is not None and kind.__module__.startswith("mist_fairseq.") else None


def _check_sizes(options, weights: dict[str, Tensor], path: str):
    """Compare the model that a checkpoint of ``--task mist`` asks for with its weights, before it takes memory."""
    architecture = getattr(options, "_name", None)
    kind = _our_model(architecture)
    if kind is None or not issubclass(kind, MistModel):
        return
    tensors = {name: tensor for name, tensor in weights.items() if name.startswith("encoder.")}
    if _EMBEDDINGS not in tensors:
        raise ValueError(f"{path} has no {_EMBEDDINGS}")
    vocab_size = len(tensors[_EMBEDDINGS])
    defaults = MODEL_DATACLASS_REGISTRY[ARCH_MODEL_NAME_REGISTRY[architecture]]()
    cfg = argparse.Namespace(**{**vars(defaults), **options})
    try:
        layers = int(cfg.encoder_layers) + int(getattr(cfg, "decoder_layers", 0))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: the number of layers is no number ({error})") from error
    check_shapes(lambda: nn.ModuleDict({"encoder": kind.build_encoder(cfg, vocab_size)}), layers, tensors, path)


@replaces(checkpoint_utils, "torch_persistent_save")
def _torch_persistent_save(save, obj, filename, async_write=False):
    if async_write or not isinstance(filename, str) or PathManager.path_requires_pathmanager(filename):
        return save(obj, filename, async_write=async_write)
    with whole_file(filename) as partial, open(partial, "wb") as file:
        try:
            torch.save(obj, file)
        except RuntimeError as error:
            cause = error.__context__
            if isinstance(cause, OSError):  # such as a full disk, of which torch's own message says nothing
                raise OSError(cause.errno, cause.strerror, filename) from error
            raise
    return None


@replaces(PathManager, "copy")
def _copy(copy, src_path, dst_path, overwrite=False):
    if PathManager.path_requires_pathmanager(dst_path):  # not on this machine's disks
        return copy(src_path, dst_path, overwrite=overwrite)
    if os.path.exists(dst_path) and not overwrite:
        raise FileExistsError(f"{dst_path} is there already")
    with whole_file(dst_path) as partial:
        shutil.copyfile(src_path, partial)
    return True
