"""Files of ``torch.save``, fairseq's checkpoints among them: read safely or not at all, written whole or not at all.

fairseq reads and writes its checkpoints itself. ``guard_fairseq``, called when the plugin is loaded, has it do so as
this module does.
"""

import argparse
import ast
import functools
import json
import os
import re
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import cast

import torch
from fairseq import checkpoint_utils
from fairseq.file_io import PathManager
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from mist_fairseq.models.sizes import check_size, prophetnet_sizes
from mist_fairseq.output import whole_file

# In an expression: what runs code, or takes hours.
_CODE = (ast.Await, ast.Call, ast.comprehension, ast.Lambda, ast.LShift, ast.NamedExpr, ast.Pow)
_FOLDERS = ("data", "save_dir")  # options that are never evaluated, while folders may be called run(2)


def load_torch_file(path: str | Path, mmap: bool = False):
    """What a file of ``torch.save`` holds, on the CPU, without executing code.

    Args:
        path: of the file. In torch's format of today (since 1.6) every part of it has a checksum, which is compared.
        mmap: leave tensors on disk until they are used; not for the format of before.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or holds something else than tensors and plain values; names the file.
    """
    try:
        archive = check_archive(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap and archive)
        _check_tensors(content)
    except FileNotFoundError:
        raise
    except Exception as error:  # of other bytes torch's unpickler makes nearly any
        raise ValueError(f"{path} is damaged or is no file of plain tensors: {_reason(error)}") from error
    return content


def check_archive(path: str | Path) -> bool:
    """Compare the checksums of a file of ``torch.save``.

    Returns:
        Whether it has any: it has none in the format before torch 1.6.

    Raises:
        ValueError: a part is damaged, or takes more memory than its file has bytes.
        zipfile.BadZipFile: the file is damaged.
    """
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
        if any(part.compress_type != zipfile.ZIP_STORED for part in parts):
            raise ValueError("it is compressed, which torch.save never does")
        if sum(part.file_size for part in parts) > os.path.getsize(path):
            raise ValueError("its parts overlap")
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"the checksum of {damaged} is wrong")
    return True


def _check_tensors(content):
    """Refuse views that show a small memory as a huge tensor, which the first operation would make real."""
    stack, seen = [content], set()
    while stack:
        value = stack.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            if value.layout is not torch.strided or value.nbytes > value.untyped_storage().nbytes():
                raise ValueError(f"a tensor of shape {tuple(value.shape)} has no memory of its own")
        elif isinstance(value, dict):
            stack.extend(value.values())
        elif isinstance(value, list | tuple | set):
            stack.extend(value)


def _reason(error: Exception) -> str:
    """What torch says, in a line, without its advice to execute the code."""
    text = str(error)
    code = re.search(r"GLOBAL (\S+)", text)
    if code:
        return f"loading it would run code ({code.group(1)})"
    if isinstance(error, KeyError):
        return f"there is no {text} in it"
    lines = text.rpartition("WeightsUnpickler error:")[2].strip().splitlines()
    return lines[0] if lines else type(error).__name__


# -- fairseq's own ----------------------------------------------------------------------------------------------


def guard_fairseq():
    """Have fairseq load checkpoints with the checks of this module, and copy them so that no copy is ever half there.

    Without it a training that is killed while ``checkpoint_last.pt`` is being copied could not be resumed.
    """
    load = checkpoint_utils.load_checkpoint_to_cpu
    if not hasattr(load, "unguarded"):
        checkpoint_utils.load_checkpoint_to_cpu = _guarded_load(load)
        PathManager.copy = staticmethod(_whole_copy(PathManager.copy))


def _guarded_load(load):
    @functools.wraps(load)
    def load_checkpoint_to_cpu(path, arg_overrides=None, load_on_all_ranks=False):
        try:
            if os.path.isfile(path):
                check_archive(path)
            state = load(path, arg_overrides, load_on_all_ranks)
            _check_tensors(state)
            count = sum(weight.numel() for weight in state["model"].values())
            options = list(_options(state))
            texts = [text for part in options for text in _texts(part)]
        except FileNotFoundError:
            raise
        except Exception as error:
            others = "".join(f"; {other} is in order" for other in _readable(Path(path)))
            raise ValueError(f"{path} is damaged or no checkpoint of fairseq: {_reason(error)}{others}") from error
        for name, text in texts:
            _refuse_code(path, name, text)
        for part in options:
            check_size(part, count, str(path))
            check_size(_by_side(part), count, str(path))
        return state

    load_checkpoint_to_cpu.unguarded = load  # type: ignore[attr-defined]
    return load_checkpoint_to_cpu


def _readable(path: Path) -> Iterator[Path]:
    """The newest undamaged checkpoint beside a damaged one, to go on from with --restore-file."""
    beside = (other for other in path.parent.glob("checkpoint*.pt") if other != path)
    for other in sorted(beside, key=lambda other: other.stat().st_mtime, reverse=True):
        try:
            if check_archive(other):
                yield other
                return
        except (ValueError, OSError, zipfile.BadZipFile):
            continue


def _options(state: dict) -> Iterator[Mapping]:
    """What a checkpoint says of its model, task and loss: by today's configuration, and by the arguments of before."""
    for part in ("model", "task", "criterion"):
        options = (state.get("cfg") or {}).get(part)
        if isinstance(options, argparse.Namespace):
            yield vars(options)
        elif isinstance(options, DictConfig):
            yield cast(dict, OmegaConf.to_container(options, resolve=True))
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


def _refuse_code(path: str, name: str, text: str | bytes):
    """Refuse a text with code: fairseq evaluates options, under other names in each architecture."""
    if name in _FOLDERS:
        return
    try:
        # eval() leaves these out at the start, ast does not.
        tree = ast.parse(text.lstrip(" \t") if isinstance(text, str) else text.lstrip(b" \t"), mode="eval")
        harmless = not any(isinstance(node, _CODE) for node in ast.walk(tree))
    except (SyntaxError, ValueError):  # as of eval()
        harmless = True
    except (RecursionError, MemoryError):
        harmless = False
    if not harmless:
        raise ValueError(f"{path}: {name} is {text[:80]!r}, which fairseq might run as code")


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
