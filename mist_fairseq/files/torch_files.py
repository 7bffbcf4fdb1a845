"""Files of ``torch.save``: read without executing code, and only if they are undamaged."""

import io
import os
import pickletools
import re
import struct
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
_MOST_SHARING = 10
_LONGEST_REASON = 400
# As many whole numbers as may have equal hashes, which make dictionaries slow; the last is in each file of before 1.6.
_MOST_LONG, _LONG, _MAGIC = 1_000, 2**61 - 1, torch.serialization.MAGIC_NUMBER
# The end of a zip archive: what tells where the table of contents is, and for large ones, before it, where that of 64
# bits is, itself of so many bytes.
_END, _LOCATOR, _END_64 = struct.Struct("<4s4H2LH"), struct.Struct("<4sLQL"), 56


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
    names = check_archive(path)
    content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap and names is None)
    memories = _memories(content)
    if names is not None and len(memories) > len(names):
        raise ValueError("a tensor has no memory in it")
    held, size = sum(size for size, _ in memories.values()), os.path.getsize(path)
    if held > size:
        raise ValueError(f"its tensors take {held:,} bytes, and it has {size:,}")
    return content


def check_archive(path: str | Path) -> set[str] | None:
    """Look at a file of ``torch.save`` before it is loaded: its checksums, and what its pickles are made of.

    Returns:
        None of a file with checksums. One in the format before torch 1.6 has none, but names of its tensors' memory.

    Raises:
        ValueError: a part is damaged, takes more memory than its file has bytes, or is made of other things than
            tensors and plain values.
    """
    with open(path, "rb") as file:
        begins = file.read(4) == b"PK\3\4"  # torch looks at no more
        if begins != zipfile.is_zipfile(path):
            raise ValueError("it is an archive only at one end")
        if not begins:
            file.seek(0)
            for _ in range(4):  # a number, a version, the machine, the content
                _check_pickle(file)
            place = file.tell()
            _check_pickle(file)
            file.seek(place)
            found = pickletools.genops(file)
            return {str(text) for opcode, text, _ in found if opcode.stack_after == [pickletools.pyunicode]}
    try:
        _check_parts(path)
    except zipfile.BadZipFile as error:
        raise ValueError(str(error)) from error
    return None


def _check_parts(path: str | Path):
    _check_end(path)
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
    with open(path, "rb") as file:
        reader = torch._C.PyTorchFileReader(file)  # which finds parts by names that Python takes for others
        for name in {"data.pkl", *(name for name in reader.get_all_records() if name.endswith(".pkl"))}:
            _check_pickle(io.BytesIO(reader.get_record(name)))


def _check_end(path: str | Path):
    """Refuse an archive in which Python might find another table of contents than torch."""
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - _LOCATOR.size - _END.size, 0))
        tail = file.read()
    end, locator = tail[-_END.size :], tail[: -_END.size]
    if not end.startswith(b"PK\5\6") or _END.unpack(end)[-1] != 0:
        raise ValueError("something follows its end")
    if locator.startswith(b"PK\6\7") and _LOCATOR.unpack(locator)[2] + _END_64 != size - len(tail):
        raise ValueError("its table of contents is not at its end")


def _check_pickle(file: IO[bytes]):
    """Read a pickle without making anything of it.

    Raises:
        ValueError: it is made of something unknown; or of what makes a dictionary slow, as its keys: of tuples in
            tuples that stand for ever more values, or of whole numbers that may have equal hashes.
    """
    long = 0
    known = _KNOWN | _allowed_names()
    sizes: list[int] = []  # of what the pickle's stack holds; of all but tuples 1
    marks: list[list[int]] = []
    memo: dict[Any, int] = {}
    argument: Any
    for opcode, argument, _ in pickletools.genops(file):
        before, after = opcode.stack_before, opcode.stack_after
        long += isinstance(argument, int) and abs(argument) >= _LONG and argument != _MAGIC
        if long > _MOST_LONG:
            raise ValueError(f"it has more than {_MOST_LONG:,} whole numbers beyond 2**61")
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
        ValueError: a tensor is larger than its memory, or many share one, which the first operation would make real;
            or is not a plain one on the CPU.
    """
    memories = _memories(content).values()
    return sum(size for size, _ in memories), sum(numbers for _, numbers in memories)


def _memories(content) -> dict[int, tuple[int, int]]:
    """Bytes and numbers of each memory, by its place; errors as of ``count_numbers``."""
    memories, stack, seen, apart = {}, [content], set(), 0
    while stack:
        value = stack.pop()
        if isinstance(value, Tensor):
            if value.layout is not torch.strided or value.device.type != "cpu" or value.is_nested:
                raise ValueError(f"a tensor of shape {tuple(value.shape)} is not a plain one on the CPU")
            memory = value.untyped_storage()
            if value.nbytes > memory.nbytes():
                raise ValueError(f"a tensor of shape {tuple(value.shape)} has no memory of its own")
            memories[memory.data_ptr()] = memory.nbytes(), memory.nbytes() // value.element_size()
            apart += value.nbytes
        elif id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, dict):
            stack.extend(value.values())
        elif isinstance(value, list | tuple | set):
            stack.extend(value)
    held = sum(size for size, _ in memories.values())
    if apart > _MOST_SHARING * held:
        raise ValueError(f"its tensors share {held:,} bytes of memory; each with its own would have {apart:,}")
    return memories


def reason(error: Exception) -> str:
    """What torch says, in a line, without its advice to execute the code."""
    text = str(error)
    code = re.search(r"GLOBAL (\S+)", text)
    if code:
        return f"loading it would run code ({code.group(1)})"
    if isinstance(error, KeyError):
        return f"there is no {error} in it"
    lines = text.rpartition("WeightsUnpickler error:")[2].strip().splitlines()
    return lines[0][:_LONGEST_REASON] if lines else type(error).__name__
