"""fairseq's checkpoints: read safely or not at all, written whole or not at all.

fairseq reads and writes them itself. ``install``, called when the plugin is loaded, has it do so with the checks
of this module.
"""

import argparse
import ast
import functools
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import cast

import torch
from fairseq import checkpoint_utils
from fairseq.file_io import PathManager
from fairseq.models import MODEL_REGISTRY
from omegaconf import DictConfig, OmegaConf

from mist_fairseq.files.output import whole_file
from mist_fairseq.files.reading import count_values
from mist_fairseq.files.sizes import check_size, prophetnet_sizes
from mist_fairseq.files.torch_files import count_numbers, load_torch_file, read_torch_file, reason

# In an expression: what neither runs code nor takes hours. A name or an attribute alone is a word or a file's name.
_HARMLESS: tuple[type[ast.AST], ...] = (
    *(ast.Expression, ast.Constant, ast.Name, ast.Attribute, ast.Load, ast.List, ast.Tuple, ast.Dict, ast.Set),
    *(ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.unaryop, ast.boolop, ast.cmpop),
    *(ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.MatMult, ast.BitAnd, ast.BitOr, ast.BitXor),
)
_MOST_REPEATS = 1_000_000
_LONGEST_OPTION = 100_000  # characters, of which Python makes a hundred times as many bytes to look at them
_FOLDERS = ("data", "save_dir")  # options that are never evaluated, while folders may be called run(2)


def install():
    """Have fairseq load checkpoints with checks, and write and copy them so that none is ever half there.

    Without it a training that is killed while ``checkpoint_last.pt`` is being copied could not be resumed, and where
    the disk is full for a moment fairseq tries again behind what it has written of the same file.
    """
    load = checkpoint_utils.load_checkpoint_to_cpu
    if not hasattr(load, "fairseqs"):
        checkpoint_utils.load_checkpoint_to_cpu = _guarded_load(load)
        checkpoint_utils.torch_persistent_save = _whole_save(checkpoint_utils.torch_persistent_save)
        PathManager.copy = staticmethod(_whole_copy(PathManager.copy))


def _guarded_load(load):
    @functools.wraps(load)
    def load_checkpoint_to_cpu(path, arg_overrides=None, load_on_all_ranks=False):
        try:
            if os.path.exists(path):
                if not os.path.isfile(path):
                    raise ValueError("it is no file")
                _check_options(read_torch_file(path, mmap=True))
            state = load(path, arg_overrides, load_on_all_ranks)
            _, count = count_numbers(state["model"])
            options = list(_options(state))
            texts = [(part, name, text) for part in options for name, text in _texts(part)]
        except (FileNotFoundError, PermissionError):
            raise
        except Exception as error:
            others = "".join(f"; {other} is in order" for other in _readable(Path(path)))
            raise ValueError(f"{path} is damaged or no checkpoint of fairseq: {reason(error)}{others}") from error
        for part, name, text in texts:
            if name not in _FOLDERS and not (name == "pretrained" and _is_ours(part)):
                _refuse_code(path, name, text)
        for part in options:
            check_size(part, count, str(path))
            check_size(_by_side(part), count, str(path))
        return state

    load_checkpoint_to_cpu.fairseqs = load  # type: ignore[attr-defined]
    return load_checkpoint_to_cpu


def _check_options(state: dict):
    """Refuse options that stand for ever more values, before fairseq writes them out.

    Raises:
        ValueError: they do, or OmegaConf would put other texts into one, which may have doubled a hundred times.
    """
    for part in ("cfg", "args"):
        count_values(state.get(part), _parts)
        for name, text in _texts(state.get(part)):
            if "${" in (text.decode("latin-1") if isinstance(text, bytes) else text):
                raise ValueError(f"{name} is {text[:80]!r}, which is no value but a reference to others")


def _parts(value) -> Iterable:
    if isinstance(value, argparse.Namespace):
        value = vars(value)
    if isinstance(value, Mapping):
        return [*value.keys(), *value.values()]
    return value if isinstance(value, list | tuple | set) else ()


def _readable(path: Path) -> Iterator[Path]:
    """The newest undamaged checkpoint beside a damaged one that training can go on from, with --restore-file."""
    beside = (other for other in path.parent.glob("checkpoint*.pt") if other != path)
    for other in sorted(beside, key=lambda other: other.stat().st_mtime, reverse=True):
        try:
            if "last_optimizer_state" in load_torch_file(other, mmap=True):  # not in an averaged one
                yield other
                return
        except (ValueError, TypeError, OSError):
            continue


def _options(state: dict) -> Iterator[Mapping]:
    """What a checkpoint says of its model, task and loss: by today's configuration, and by the arguments of before."""
    for part in ("model", "task", "criterion"):
        options = (state.get("cfg") or {}).get(part)
        if isinstance(options, argparse.Namespace):
            yield vars(options)
        elif isinstance(options, DictConfig):
            yield cast(dict, OmegaConf.to_container(options))
        elif isinstance(options, Mapping):
            yield options
    if state.get("args") is not None:
        yield vars(state["args"])
    if "prophetnet" in (state.get("task_state") or {}):  # as Hugging Face writes it
        yield prophetnet_sizes(json.loads(state["task_state"]["prophetnet"]))


def _by_side(options: Mapping) -> dict:
    """Options as fairseq's Transformer takes them, too: ``layers`` for both sides, or ``encoder: {layers: ...}``."""
    found = dict(options)
    for side in ("encoder", "decoder"):
        nested = options.get(side)
        given = {**options, **nested} if isinstance(nested, Mapping) else options
        found |= {f"{side}_{name}": value for name, value in given.items()}
    return found


def _texts(value, name: str = "") -> Iterator[tuple[str, str | bytes]]:
    """All texts within, each with the name of its option."""
    if isinstance(value, str | bytes | bytearray):
        yield name, bytes(value) if isinstance(value, bytearray) else value
    elif isinstance(value, argparse.Namespace):
        yield from _texts(vars(value), name)
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _texts(part, str(key))
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _texts(part, name)


def _is_ours(options: Mapping) -> bool:
    """Whether they are of a model of the plugin, which evaluates none; one of fairseq's evaluates ``pretrained``."""
    kind = MODEL_REGISTRY.get(str(options.get("_name")))
    return kind is not None and kind.__module__.startswith("mist_fairseq.")


def _refuse_code(path: str, name: str, text: str | bytes):
    """Refuse a text with code: fairseq evaluates options, under other names in each architecture."""
    if len(text) > _LONGEST_OPTION:
        raise ValueError(f"{path}: {name} has {len(text):,} characters, expected at most {_LONGEST_OPTION:,}")
    try:
        # eval() leaves these out at the start, ast does not.
        tree = ast.parse(text.lstrip(" \t") if isinstance(text, str) else text.lstrip(b" \t"), mode="eval")
        harmless = all(isinstance(node, _HARMLESS) for node in ast.walk(tree)) and _repeats(tree)[1] <= _MOST_REPEATS
    except (SyntaxError, ValueError):  # as of eval()
        harmless = True
    except (RecursionError, MemoryError):
        harmless = False
    if not harmless:
        raise ValueError(f"{path}: {name} is {text[:80]!r}, which fairseq might run as code")


def _repeats(node: ast.AST) -> tuple[int, int]:
    """The whole numbers of a product, multiplied; and how often anything within repeats a text or a list, at most."""
    within = [_repeats(part) for part in ast.iter_child_nodes(node)]
    most = max((repeats for _, repeats in within), default=1)
    if isinstance(node, ast.BinOp):
        (one, _), _, (other, _) = within
        factor = one * other if isinstance(node.op, ast.Mult) else one + other
        return factor, max(most, factor)
    if isinstance(node, ast.UnaryOp):
        return within[1][0], most
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return max(abs(node.value), 1), most
    return 1, most


def _whole_save(save):
    @functools.wraps(save)
    def torch_persistent_save(obj, filename, async_write=False):
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

    return torch_persistent_save


def _whole_copy(copy):
    @functools.wraps(copy)
    def whole_copy(src_path, dst_path, overwrite=False):
        if PathManager.path_requires_pathmanager(dst_path):  # not on this machine's disks
            return copy(src_path, dst_path, overwrite=overwrite)
        if os.path.exists(dst_path) and not overwrite:
            raise FileExistsError(f"{dst_path} is there already")
        with whole_file(dst_path) as partial:
            shutil.copyfile(src_path, partial)
        return True

    return whole_copy
