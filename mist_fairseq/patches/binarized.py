"""Checksums of fairseq's binarized data.

fairseq-preprocess writes a ``.bin`` with token ids and an ``.idx`` with the places of the sentences in it. With the
plugin it adds a line to the end of the ``.idx``, where fairseq's readers do not look: checksums of both files, the
vocabulary, and the side (the language) that they are of. Data without that line, from fairseq alone, is checked for
what can be seen.
"""

import functools
import itertools
import os
import re
import struct
import zlib
from pathlib import Path

import numpy as np
from fairseq.data.indexed_dataset import MMapIndexedDataset, MMapIndexedDatasetBuilder, infer_dataset_impl

from mist_fairseq.data.dictionary import TokenizerDictionary

_MAGIC = MMapIndexedDataset.Index._HDR_MAGIC
_HEADER = struct.Struct("<QBQ")  # version, type of the ids, number of sentences
_TYPES = {1: np.uint8, 2: np.int8, 3: np.int16, 4: np.int32, 5: np.int64, 8: np.uint16, 9: np.uint32, 10: np.uint64}
_SIGNATURE, _DIGITS = "mist_fairseq crc32", 16
_LINE = re.compile(rf"{_SIGNATURE} ([0-9a-f]{{8}}) ([0-9a-f]{{8}}) ([0-9a-f]{{{_DIGITS}}}|-) (.+)\n")
_CHUNK, _LONGEST_LINE = 1 << 22, 1 << 12

AGAIN = "run fairseq-preprocess again"


def install():
    """Have fairseq write the checksums."""
    finalize = MMapIndexedDatasetBuilder.finalize
    if hasattr(finalize, "fairseqs"):
        return

    @functools.wraps(finalize)
    def finalize_with_checksums(self, index_file):
        finalize(self, index_file)
        sums = f"{_crc32(self._data_file.name):08x} {_crc32(index_file):08x}"
        vocabulary = getattr(self, "vocabulary", "-")[:_DIGITS]
        with open(index_file, "ab") as index:
            index.write(f"{_SIGNATURE} {sums} {vocabulary} {_side(index_file)}\n".encode())

    finalize_with_checksums.fairseqs = finalize  # type: ignore[attr-defined]
    MMapIndexedDatasetBuilder.finalize = finalize_with_checksums


def check_binarized(prefix: str, dictionary: TokenizerDictionary, combine: bool = False, impl: str | None = None):
    """Refuse damaged data, and such as belongs to another vocabulary.

    Args:
        prefix: path without ``.bin`` and ``.idx``. What is not there is no concern of this function.
        dictionary: that the ids are of.
        combine: the same for further shards, whose prefixes end in 1, 2, ...
        impl: the format, by default that of what is there.

    Raises:
        ValueError: the data is damaged, of another side, of a format that has no such checks, or has ids that are none;
            names the file.
    """
    for number in itertools.count() if combine else [0]:
        one = prefix + (str(number) if number else "")
        for path in (one, one + ".idx", one + ".bin"):
            if os.path.exists(path) and not os.path.isfile(path):
                raise ValueError(f"{path} is no file: {AGAIN}")
        if (impl or infer_dataset_impl(one)) == "raw":
            continue
        if not (os.path.exists(one + ".idx") and os.path.exists(one + ".bin")):
            return
        _check(one, dictionary)


def _check(prefix: str, dictionary: TokenizerDictionary):
    index, data = prefix + ".idx", prefix + ".bin"
    kind, sizes, pointers, end = _read_index(index)
    with open(index, "rb") as file:
        file.seek(end)
        line = file.read(_LONGEST_LINE)
    if line:
        _compare(line, index, data, end, dictionary)
    ends = np.cumsum(sizes, dtype=np.int64) * kind.itemsize
    if (sizes < 1).any() or not np.array_equal(pointers, np.concatenate([[0], ends[:-1]])[: len(sizes)]):
        raise ValueError(f"{index} is damaged: the sentences do not follow each other. {AGAIN}")
    expected, found = int(ends[-1]) if len(ends) else 0, os.path.getsize(data)
    if expected != found:
        raise ValueError(f"{data} has {found:,} bytes, {index} says {expected:,}: {AGAIN}")
    if expected:
        ids = np.memmap(data, dtype=kind, mode="r")
        least, most = int(ids.min()), int(ids.max())
        if least < 0 or most >= len(dictionary):
            raise ValueError(
                f"{data} has the token ids {least} to {most}, the dictionary beside it has those from 0 to "
                f"{len(dictionary) - 1}: {AGAIN}"
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


def _compare(line: bytes, index: str, data: str, end: int, dictionary: TokenizerDictionary):
    """Refuse what is not as the last line of an index says."""
    match = _LINE.fullmatch(line.decode("utf-8", "replace"))
    if not match:
        raise ValueError(f"{index} is damaged in its last line: {AGAIN}")
    for path, until, written in ((data, None, match.group(1)), (index, end, match.group(2))):
        if f"{_crc32(path, until):08x}" != written:
            raise ValueError(f"{path} is not as fairseq-preprocess wrote it (checksums differ): {AGAIN}")
    if match.group(3) not in ("-", dictionary.fingerprint()[:_DIGITS]):
        raise ValueError(f"{index} was written with another vocabulary than that of the dictionary beside it: {AGAIN}")
    if match.group(4) != _side(index):
        raise ValueError(
            f"{index} was written as {match.group(4)!r} and is read as {_side(index)!r}: was it renamed? {AGAIN}"
        )


def _side(index: str) -> str:
    """The language, without the number of a shard."""
    return Path(index).name.removesuffix(".idx").rpartition(".")[2].rstrip("0123456789")


def _crc32(path: str, end: int | None = None) -> int:
    """The checksum of a file, up to a byte."""
    value, left = 0, os.path.getsize(path) if end is None else end
    with open(path, "rb") as file:
        while left > 0 and (chunk := file.read(min(_CHUNK, left))):
            value, left = zlib.crc32(chunk, value), left - len(chunk)
    return value
