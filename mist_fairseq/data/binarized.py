"""Checksums of fairseq's binarized data.

fairseq-preprocess writes a ``.bin`` with token ids and an ``.idx`` with the places of the sentences in it. With the
plugin it adds a line to the end of the ``.idx``, where fairseq's readers do not look: checksums of both files, and the
side (the language) that they are of. Data without that line, from fairseq alone, is checked for what can be seen.
"""

import functools
import itertools
import os
import struct
import zlib
from pathlib import Path

import numpy as np
from fairseq.data.indexed_dataset import MMapIndexedDataset, MMapIndexedDatasetBuilder, infer_dataset_impl

_MAGIC = MMapIndexedDataset.Index._HDR_MAGIC
_HEADER = struct.Struct("<QBQ")  # version, type of the ids, number of sentences
_TYPES = {1: np.uint8, 2: np.int8, 3: np.int16, 4: np.int32, 5: np.int64, 8: np.uint16, 9: np.uint32, 10: np.uint64}
_SIGNATURE = b"mist_fairseq crc32 "
_CHUNK = 1 << 22

AGAIN = "run fairseq-preprocess again"


def install():
    """Have fairseq write the checksums."""
    finalize = MMapIndexedDatasetBuilder.finalize
    if hasattr(finalize, "without_checksums"):
        return

    @functools.wraps(finalize)
    def finalize_with_checksums(self, index_file):
        finalize(self, index_file)
        line = _checksums(self._data_file.name, index_file, os.path.getsize(index_file))
        with open(index_file, "ab") as index:
            index.write(line)

    finalize_with_checksums.without_checksums = finalize  # type: ignore[attr-defined]
    MMapIndexedDatasetBuilder.finalize = finalize_with_checksums


def check_binarized(prefix: str, vocab_size: int, combine: bool = False):
    """Refuse damaged data, and such as belongs to another vocabulary.

    Args:
        prefix: path without ``.bin`` and ``.idx``. What is not there is no concern of this function.
        vocab_size: V.
        combine: the same for further shards, whose prefixes end in 1, 2, ...

    Raises:
        ValueError: the data is damaged, of another side, of a format that has no such checks, or has ids that are none;
            names the file.
    """
    for number in itertools.count() if combine else [0]:
        one = prefix + (str(number) if number else "")
        if infer_dataset_impl(one) == "raw":
            continue
        if not (os.path.exists(one + ".idx") and os.path.exists(one + ".bin")):
            return
        _check(one, vocab_size)


def _check(prefix: str, vocab_size: int):
    index, data = prefix + ".idx", prefix + ".bin"
    kind, sizes, pointers, end = _read_index(index)
    line = Path(index).read_bytes()[end:]
    if line:
        _compare(line, _checksums(data, index, end), index, data)
    ends = np.cumsum(sizes, dtype=np.int64) * kind.itemsize
    if (sizes < 1).any() or not np.array_equal(pointers, np.concatenate([[0], ends[:-1]])[: len(sizes)]):
        raise ValueError(f"{index} is damaged: the sentences do not follow each other. {AGAIN}")
    expected, found = int(ends[-1]) if len(ends) else 0, os.path.getsize(data)
    if expected != found:
        raise ValueError(f"{data} has {found:,} bytes, {index} says {expected:,}: {AGAIN}")
    if expected:
        ids = np.memmap(data, dtype=kind, mode="r")
        least, most = int(ids.min()), int(ids.max())
        if least < 0 or most >= vocab_size:
            raise ValueError(
                f"{data} has the token ids {least} to {most}, the dictionary beside it has those from 0 to "
                f"{vocab_size - 1}: {AGAIN}"
            )


def _read_index(path: str) -> tuple[np.dtype, np.ndarray, np.ndarray, int]:
    """Type of the ids, sizes and places (in bytes) of the sentences, and where the file ends for fairseq."""
    start = len(_MAGIC) + _HEADER.size
    with open(path, "rb") as file:
        head = file.read(start)
    if len(head) < start or not head.startswith(_MAGIC):
        raise ValueError(f"{path} is damaged, or no index of fairseq-preprocess's --dataset-impl mmap: {AGAIN}")
    version, code, count = _HEADER.unpack(head[len(_MAGIC) :])
    end = start + 12 * count
    if version != 1 or code not in _TYPES or end > os.path.getsize(path):
        raise ValueError(
            f"{path} is damaged: version {version}, type {code}, {count:,} sentences in {os.path.getsize(path):,} "
            f"bytes. {AGAIN}"
        )
    sizes = np.fromfile(path, np.int32, count, offset=start)
    return np.dtype(_TYPES[code]), sizes, np.fromfile(path, np.int64, count, offset=start + 4 * count), end


def _checksums(data: str, index: str, end: int) -> bytes:
    """The line for the two files, as far as fairseq reads them."""
    side = Path(index).name.removesuffix(".idx").rpartition(".")[2].rstrip("0123456789")  # the number of a shard
    return _SIGNATURE + f"{_crc32(data):08x} {_crc32(index, end):08x} {side}\n".encode()


def _compare(found: bytes, expected: bytes, index: str, data: str):
    if found == expected:
        return
    parts, right = found.removeprefix(_SIGNATURE).split(maxsplit=2), expected.removeprefix(_SIGNATURE).split(maxsplit=2)
    if len(parts) == 3 and parts[:2] == right[:2] and found.startswith(_SIGNATURE):
        written, asked = (part[2].decode("utf-8", "replace").strip() for part in (parts, right))
        raise ValueError(f"{index} was written as {written!r} and is read as {asked!r}: was it renamed? {AGAIN}")
    wrong = [name for i, name in enumerate((data, index)) if len(parts) != 3 or parts[i] != right[i]] or [index]
    raise ValueError(f"{' and '.join(wrong)}: not as fairseq-preprocess wrote it (checksums differ). {AGAIN}")


def _crc32(path: str, end: int | None = None) -> int:
    """The checksum of a file, up to a byte."""
    value, left = 0, os.path.getsize(path) if end is None else end
    with open(path, "rb") as file:
        while left > 0 and (chunk := file.read(min(_CHUNK, left))):
            value, left = zlib.crc32(chunk, value), left - len(chunk)
    return value
