"""Files of ``torch.save``: read without executing code, and only if they are undamaged."""

import io
import os
import pickletools
import re
import zipfile
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

# What files of tensors are made of. torch allows more: functions that repeat a text in a longer form or a tensor in
# another type, with which a few hundred bytes take gigabytes before anybody can look at the result.
_KNOWN = {
    *("collections.OrderedDict", "builtins.set", "torch.Size", "torch.nn.parameter.Parameter"),
    *(f"torch._utils._rebuild_{name}" for name in ("tensor", "tensor_v2", "tensor_v3", "parameter")),
    "torch.storage.UntypedStorage",
}
_MOST_IN_TUPLES = 1_000


def load_torch_file(path: str | Path, mmap: bool = False):
    """What a file of ``torch.save`` holds, on the CPU, without executing code.

    Args:
        path: of the file. In torch's format of today (since 1.6) every part of it has a checksum, which is compared.
        mmap: leave tensors on disk until they are used; not for the format of before.

    Raises:
        FileNotFoundError, PermissionError: there is no such file, or it may not be read.
        ValueError: it is damaged, or holds something else than tensors and plain values; names the file.
    """
    try:
        return read_torch_file(path, mmap)
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # of other bytes torch's unpickler makes nearly any
        raise ValueError(f"{path} is damaged or is no file of plain tensors: {reason(error)}") from error


def read_torch_file(path: str | Path, mmap: bool = False):
    """The same, with errors as they come: for what names the file by itself."""
    archive = check_archive(path)
    content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap and archive)
    held, _ = count_numbers(content)
    size = os.path.getsize(path)
    if held > size:
        raise ValueError(f"its tensors take {held:,} bytes, and it has {size:,}")
    return content


def check_archive(path: str | Path) -> bool:
    """Look at a file of ``torch.save`` before it is loaded: its checksums, and what its pickles are made of.

    Returns:
        Whether it has checksums: it has none in the format before torch 1.6.

    Raises:
        ValueError: a part is damaged, takes more memory than its file has bytes, or is made of other things than
            tensors and plain values.
    """
    if not zipfile.is_zipfile(path):
        with open(path, "rb") as file:
            for _ in range(4):  # a number, a version, the machine, the content; behind them names and memory
                _check_pickle(file)
        return False
    try:
        return _check_parts(path)
    except zipfile.BadZipFile as error:
        raise ValueError(str(error)) from error


def _check_parts(path: str | Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
        if any(part.compress_type != zipfile.ZIP_STORED for part in parts):
            raise ValueError("it is compressed, which torch.save never does")
        if sum(part.file_size for part in parts) > os.path.getsize(path):
            raise ValueError("its parts overlap")
        if min((part.header_offset for part in parts), default=0) != 0:  # in which Python finds another one than torch
            raise ValueError("it holds an archive, but does not begin with it")
        damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"the checksum of {damaged} is wrong")
        for part in parts:
            if part.filename.endswith(".pkl"):
                _check_pickle(io.BytesIO(archive.read(part)))
    return True


def _check_pickle(file: IO[bytes]):
    """Read a pickle without making anything of it.

    Raises:
        ValueError: it is made of something unknown, or of tuples in tuples that stand for ever more values: to be a
            key of a dictionary, each is looked at.
    """
    known = _KNOWN | _allowed_names()
    sizes: list[int] = []  # of what the pickle's stack holds; of all but tuples 1
    marks: list[list[int]] = []
    memo: dict[Any, int] = {}
    argument: Any
    for opcode, argument, _ in pickletools.genops(file):
        before, after = opcode.stack_before, opcode.stack_after
        if opcode.name == "GLOBAL":
            _check_name(argument.replace(" ", ".").replace("__builtin__.", "builtins."), known)
        elif opcode.name == "MARK":
            marks.append(sizes)
            sizes = []
            continue
        taken: list[int] = []
        if pickletools.markobject in before:
            taken, sizes = sizes, marks.pop()
            before = before[: before.index(pickletools.markobject)]
        if before:
            taken = sizes[-len(before) :] + taken
            del sizes[-len(before) :]
        size = 1
        if opcode.name in ("BINGET", "LONG_BINGET"):
            size = memo[argument]
        elif opcode.name in ("REDUCE", "NEWOBJ") or after == [pickletools.pytuple]:  # torch.Size is a tuple, too
            size += sum(taken)
        elif opcode.name == "BUILD":
            size = taken[0]
        if size > _MOST_IN_TUPLES:
            raise ValueError(f"it has tuples in tuples of more than {_MOST_IN_TUPLES:,} values")
        sizes += [size] * len(after)
        if opcode.name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = sizes[-1]


def _allowed_names() -> set[str]:
    """What torch was told to allow beside: by the plugin argparse.Namespace, by a model what its own files hold."""
    allowed = torch.serialization.get_safe_globals()
    return {one[1] if isinstance(one, tuple) else f"{one.__module__}.{one.__qualname__}" for one in allowed}


def _check_name(name: str, known: set[str]):
    """Refuse a type or function that no file of tensors needs."""
    module, _, last = name.rpartition(".")
    of_torch = module == "torch" and (last.endswith("Storage") or isinstance(getattr(torch, last, None), torch.dtype))
    if name in known or of_torch:
        return
    if last.startswith("_rebuild_"):
        raise ValueError(f"a tensor made by {last} is not a plain one on the CPU")
    raise ValueError(f"loading it would run code ({name})")


def count_numbers(content) -> tuple[int, int]:
    """Bytes and numbers that the tensors within hold, each memory counted once.

    Raises:
        ValueError: a tensor is larger than its memory, which the first operation would make real; or is not a plain
            one on the CPU.
    """
    memories, stack, seen = {}, [content], set()
    while stack:
        value = stack.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            if value.layout is not torch.strided or value.device.type != "cpu" or value.is_nested:
                raise ValueError(f"a tensor of shape {tuple(value.shape)} is not a plain one on the CPU")
            memory = value.untyped_storage()
            if value.nbytes > memory.nbytes():
                raise ValueError(f"a tensor of shape {tuple(value.shape)} has no memory of its own")
            memories[memory.data_ptr()] = memory.nbytes(), memory.nbytes() // value.element_size()
        elif isinstance(value, dict):
            stack.extend(value.values())
        elif isinstance(value, list | tuple | set):
            stack.extend(value)
    return sum(size for size, _ in memories.values()), sum(numbers for _, numbers in memories.values())


def reason(error: Exception) -> str:
    """What torch says, in a line, without its advice to execute the code."""
    text = str(error)
    code = re.search(r"GLOBAL (\S+)", text)
    if code:
        return f"loading it would run code ({code.group(1)})"
    if isinstance(error, KeyError):
        return f"there is no {error} in it"
    lines = text.rpartition("WeightsUnpickler error:")[2].strip().splitlines()
    return lines[0] if lines else type(error).__name__
