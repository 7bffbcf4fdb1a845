"""Checking fairseq's binarized data before it is used.

fairseq-preprocess writes a ``.bin`` with token ids and an ``.idx`` with the places of the sentences in it. For our
dictionaries there is a ``.crc32`` beside them, one line: checksums of both files, the vocabulary and the side (the
language) they were written for. Version 0.1 wrote the line at the end of the ``.idx``, where it is still read. Data
without it, from fairseq alone, is checked for sizes, order and token ids.
"""

import itertools
import os
import re
import struct
import zlib
from pathlib import Path

import numpy as np
from fairseq.data.indexed_dataset import MMapIndexedDataset, data_file_path, index_file_path, infer_dataset_impl

from mist_fairseq.data.dictionary import TokenizerDictionary
from mist_fairseq.files.whole import write_text

_HEADER = 26  # bytes of an index before the sizes
_SIGNATURE, _DIGITS = "mist_fairseq crc32", 16
_LINE = re.compile(rf"{_SIGNATURE} ([0-9a-f]{{8}}) ([0-9a-f]{{8}}) ([0-9a-f]{{{_DIGITS}}}|-) (.+)\n")
_CHUNK, _LONGEST_LINE = 1 << 22, 1 << 12

AGAIN = "run fairseq-preprocess again"


def write_checksums(prefix: str, dictionary: TokenizerDictionary):
    """Write the ``.crc32`` of a ``.bin`` and ``.idx``; *prefix* is their path without these endings."""
    sums = f"{_crc32(data_file_path(prefix)):08x} {_crc32(index_file_path(prefix)):08x}"
    line = f"{_SIGNATURE} {sums} {dictionary.tokenizer.fingerprint()[:_DIGITS]} {_side(prefix)}\n"
    write_text(f"{prefix}.crc32", line)


def check_binarized(prefix: str, dictionary: TokenizerDictionary, combine: bool = False, impl: str | None = None):
    """Refuse data that is damaged, of another side or vocabulary, or of a format without such checks, by a ValueError.

    *prefix* is the path without ``.bin`` and ``.idx``; nothing is checked where both are missing. With *combine*
    further shards are, too, whose prefixes end in 1, 2, ... *impl* is the format, by default that of the files.
    """
    for number in itertools.count() if combine else [0]:
        shard = prefix + (str(number) if number else "")
        index, data = index_file_path(shard), data_file_path(shard)
        for path in (shard, index, data):
            if os.path.exists(path) and not os.path.isfile(path):
                raise ValueError(f"{path} is no file: {AGAIN}")
        if (impl or infer_dataset_impl(shard)) == "raw":
            continue
        missing = [path for path in (index, data) if not os.path.exists(path)]
        if len(missing) == 2:
            return
        if missing:
            raise ValueError(f"{missing[0]} is missing: {AGAIN}")
        _check_shard(shard, index, data, dictionary)


def _check_shard(prefix: str, index: str, data: str, dictionary: TokenizerDictionary):
    kind, sizes, pointers = _read_index(index)
    end = _HEADER + sizes.nbytes + pointers.nbytes
    with open(index, "rb") as file:
        file.seek(end)
        line = file.read(_LONGEST_LINE)
    if line:  # of version 0.1
        _compare(line, index, index, end, data, dictionary)
    elif os.path.exists(sums := f"{prefix}.crc32"):
        _compare(Path(sums).read_bytes()[:_LONGEST_LINE], sums, index, None, data, dictionary)
    ends = np.cumsum(sizes, dtype=np.int64) * kind.itemsize
    if (sizes < 1).any() or not np.array_equal(pointers, np.concatenate([[0], ends[:-1]])[: len(sizes)]):
        raise ValueError(f"{index} is damaged: the sentences do not follow each other. {AGAIN}")
    expected, size = int(ends[-1]) if len(ends) else 0, os.path.getsize(data)
    if expected != size:
        raise ValueError(f"{data} has {size:,} bytes, {index} says {expected:,}: {AGAIN}")
    if expected:
        ids = np.memmap(data, dtype=kind, mode="r")
        least, most = int(ids.min()), int(ids.max())
        if least < 0 or most >= len(dictionary):
            known = f"the dictionary beside it has those from 0 to {len(dictionary) - 1}"
            raise ValueError(f"{data} has the token ids {least} to {most}, {known}: {AGAIN}")


def _read_index(path: str) -> tuple[np.dtype, np.ndarray, np.ndarray]:
    """Type of the ids, sizes and places (in bytes) of the sentences."""
    try:
        index = MMapIndexedDataset.Index(path)
        kind, sizes, pointers = np.dtype(index.dtype), index.sizes.copy(), index._pointers.copy()
    except (AssertionError, AttributeError, KeyError, OverflowError, ValueError, struct.error) as error:
        raise ValueError(f"{path} is damaged, or no index of fairseq's --dataset-impl mmap: {AGAIN}") from error
    if kind.kind not in "iu":
        raise ValueError(f"{path} is damaged: its token ids are of {kind}. {AGAIN}")
    return kind, sizes, pointers


def _compare(line: bytes, source: str, index: str, end: int | None, data: str, dictionary: TokenizerDictionary):
    """Refuse files that are not as the line of checksums in *source* says; the index counts up to *end*."""
    match = _LINE.fullmatch(line.decode("utf-8", "replace"))
    if not match:
        raise ValueError(f"{source} is damaged in its line of checksums: {AGAIN}")
    for path, until, written in ((data, None, match.group(1)), (index, end, match.group(2))):
        if f"{_crc32(path, until):08x}" != written:
            raise ValueError(f"{path} is not as fairseq-preprocess wrote it (checksums differ): {AGAIN}")
    if match.group(3) not in ("-", dictionary.tokenizer.fingerprint()[:_DIGITS]):
        raise ValueError(f"{index} was written with another vocabulary than that of the dictionary beside it: {AGAIN}")
    side = _side(index.removesuffix(".idx"))
    if match.group(4) != side:
        raise ValueError(f"{index} was written as {match.group(4)!r} and is read as {side!r}: was it renamed? {AGAIN}")


def _side(prefix: str) -> str:
    """The language, without the number of a shard."""
    return Path(prefix).name.rpartition(".")[2].rstrip("0123456789")


def _crc32(path: str, end: int | None = None) -> int:
    """The checksum of a file, up to a byte."""
    value, left = 0, os.path.getsize(path) if end is None else end
    with open(path, "rb") as file:
        while left > 0 and (chunk := file.read(min(_CHUNK, left))):
            value, left = zlib.crc32(chunk, value), left - len(chunk)
    return value
