"""Files of ``torch.save``: read without executing code, and only if they are undamaged."""

import os
import re
import zipfile
from pathlib import Path

import torch
from torch import Tensor


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
        archive = check_archive(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap and archive)
        check_memory(content, os.path.getsize(path))
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # of other bytes torch's unpickler makes nearly any
        raise ValueError(f"{path} is damaged or is no file of plain tensors: {reason(error)}") from error
    return content


def check_archive(path: str | Path) -> bool:
    """Compare the checksums of a file of ``torch.save``.

    Returns:
        Whether it has any: it has none in the format before torch 1.6.

    Raises:
        ValueError: a part is damaged, or takes more memory than its file has bytes.
    """
    if not zipfile.is_zipfile(path):
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
    return True


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


def check_memory(content, size: int):
    """Refuse tensors of more bytes than their file has; errors as of ``count_numbers``."""
    held, _ = count_numbers(content)
    if held > size:
        raise ValueError(f"its tensors take {held:,} bytes, and it has {size:,}")


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
