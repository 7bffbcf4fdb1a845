"""Reading files of ``torch.save`` without executing code, and comparing them with the model they are for."""

import argparse
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

_LONGEST_REASON = 400
_MOST_SHARING = 4  # tied weights share their memory, two or three at a time


def load_torch_file(path: str | Path, mmap: bool = False):
    """The content of a file of ``torch.save``, on the CPU: tensors, plain values, and the ``Namespace`` of options.

    Each part of a file in today's format (since torch 1.6) has a CRC-32, which is compared; with *mmap* such a file's
    tensors stay on disk until they are used. ValueError: it is damaged, compressed, or holds something else.
    """
    try:
        if not Path(path).is_file() and Path(path).exists():  # reading a pipe would wait for ever
            raise ValueError("it is no file")
        is_archive = zipfile.is_zipfile(path)
        if is_archive:
            with zipfile.ZipFile(path) as archive:
                if any(part.compress_type != zipfile.ZIP_STORED for part in archive.infolist()):
                    raise ValueError("it is compressed, which torch.save never does")
                if (damaged := archive.testzip()) is not None:
                    raise ValueError(f"the checksum of {damaged} is wrong")
        with plain_values():
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap and is_archive)
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # damaged bytes make torch's unpickler raise nearly any error
        raise ValueError(f"{path} is damaged or is no file of plain tensors: {reason(error)}") from error


def plain_values():
    """Context in which torch accepts ``argparse.Namespace``, fairseq's older options, in the files that it loads."""
    return torch.serialization.safe_globals([argparse.Namespace])


def check_shapes(build: Callable[[], nn.Module], layers: int, tensors: Mapping[str, Tensor], source: str):
    """Compare tensors with the model that *build* makes on torch's meta device, where it takes no memory.

    *source* names their file; *layers* is how many it asks for: each has tensors, and takes time on any device. A
    ValueError names the first tensor that does not fit, is no plain one of floats, or has no memory of its own.
    """
    memory = {}  # one number in the file may be a large matrix
    for name, tensor in tensors.items():
        if tensor.layout is not torch.strided or tensor.device.type != "cpu" or not tensor.is_floating_point():
            raise ValueError(f"{source}: {name} is not a plain tensor of floats on the CPU")
        storage = tensor.untyped_storage()
        memory[storage.data_ptr()] = storage.nbytes()
    size, held = sum(tensor.nbytes for tensor in tensors.values()), sum(memory.values())
    if size > _MOST_SHARING * held:
        raise ValueError(f"{source}: its tensors share {held:,} bytes of memory, and have {size:,} bytes apart")
    if layers > len(tensors):
        raise ValueError(f"{source}: its configuration asks for {layers:,} layers, but it has {len(tensors)} tensors")
    try:
        with torch.device("meta"):
            own = build().state_dict()
    except (ArithmeticError, AttributeError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{source}: its configuration makes no model: {reason(error)}") from error
    for name in sorted(own.keys() | tensors.keys()):
        needed, given = (tuple(state[name].shape) if name in state else None for state in (own, tensors))
        if needed != given:
            raise ValueError(f"{source}: {name} has shape {given}, the configuration asks for {needed}")


def reason(error: Exception) -> str:
    """What torch says, in a line, without its advice to execute the code."""
    code = re.search(r"GLOBAL (\S+)", str(error))
    if code:
        return f"loading it would run code ({code.group(1)})"
    if isinstance(error, KeyError):
        return f"there is no {error} in it"
    lines = str(error).rpartition("WeightsUnpickler error:")[2].strip().splitlines()
    return lines[0][:_LONGEST_REASON] if lines else type(error).__name__
