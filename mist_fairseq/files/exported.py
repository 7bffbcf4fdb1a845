"""Exported folders: a ``config.json``, other files, and ``SHA256SUMS``, which ``sha256sum -c`` reads, too."""

import hashlib
import json
import math
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mist_fairseq.files.reading import read_json
from mist_fairseq.files.whole import whole_file, write_text

CONFIG, SUMS = "config.json", "SHA256SUMS"

_TOKEN_TABLES = ("word_embeddings.weight", "head.weight", "head.bias")
_AGAIN = "export the model again with scripts/export.py"


def digest(path: Path) -> str:
    """The SHA-256 of a file, as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_sums(folder: Path, names: Iterable[str]):
    """Write the checksums of files in a folder."""
    lines = [f"{digest(folder / name)}  {name}\n" for name in names]
    write_text(folder / SUMS, "".join(lines))


def read_sums(folder: Path) -> dict[str, str]:
    """The checksum of each file that the ``SHA256SUMS`` of a folder names; of a folder without one, none."""
    path = folder / SUMS
    if not path.is_file():
        return {}
    return {line[66:]: line[:64] for line in path.read_text(encoding="utf-8", errors="replace").splitlines()}


def check_sums(folder: Path, names: Iterable[str], advice: str):
    """Compare files with the ``SHA256SUMS`` beside them, if it is there; ValueError names a damaged one."""
    path = folder / SUMS
    if not path.is_file():
        return
    sums = read_sums(folder)
    for name in names:
        if name == CONFIG and name not in sums:  # of a folder that write_folder wrote
            continue
        if name not in sums:
            raise ValueError(f"{path} does not name {name}: {advice}")
        if digest(folder / name) != sums[name]:
            other = f"is not the file that {SUMS} beside it was written for"
            raise ValueError(f"{folder / name} is damaged, or {other}: {advice}")


def write_folder(
    folder: str, config: dict[str, Any], files: Mapping[str, Iterable[bytes]], overwrite: bool = False
) -> list[str]:
    """Write files, given in pieces, their checksums and, last, ``config.json``: what is half written has none.

    Returns the names of all files. FileExistsError: the folder has such files already, and *overwrite* is off.
    """
    path, names = Path(folder), [CONFIG, *files, SUMS]
    there = [name for name in names if (path / name).exists()]
    if there and not overwrite:
        advice = "choose another folder or allow to overwrite it (--overwrite)"
        raise FileExistsError(f"{folder} has {', '.join(there)} already: {advice}")
    (path / CONFIG).unlink(missing_ok=True)
    for name, pieces in files.items():
        with whole_file(path / name) as partial, open(partial, "wb") as file:
            file.writelines(pieces)
    write_sums(path, files)
    write_text(path / CONFIG, json.dumps(config, indent=2) + "\n")
    return names


def read_any_config(folder: str) -> dict[str, Any]:
    """The ``config.json`` of a folder; FileNotFoundError says what is to be done with one that has none."""
    path = Path(folder)
    if not (path / CONFIG).is_file():
        what = "it holds checkpoints: name one, or export it" if any(path.glob("*.pt")) else _AGAIN
        raise FileNotFoundError(f"{folder} has no {CONFIG}: {what}")
    return read_json(path / CONFIG)


def read_config(folder: str, kind: str, version: int, files: list[str], advice: str) -> dict[str, Any]:
    """The ``config.json`` of an exported folder, whose ``format`` and version must be *kind* and *version*.

    *files* are the others that must be there, with the right checksums; *advice* is what to do with another kind.
    """
    path = Path(folder)
    config = read_any_config(folder)
    if config.get("format") != kind:
        given = config.get("format", config.get("model_type"))
        raise ValueError(f"{path / CONFIG} is not what is needed: its format is {given!r}, expected {kind!r}. {advice}")
    if config.get("version") != version:
        raise ValueError(f"{path / CONFIG}: version is {config.get('version')!r}, expected {version}: {_AGAIN}")
    for name in (SUMS, *files):
        if not (path / name).is_file():
            raise FileNotFoundError(f"{folder} has no {name}: {_AGAIN}")
    check_sums(path, files, _AGAIN)
    return config


def count_parameters(weights: Path, config: Mapping[str, Any]) -> int:
    """How many numbers of a model were trained, of a file in safetensors' format and the ``config.json`` beside it.

    Other numbers of ONNX folders do not count: rows behind the last token in tables of the vocabulary, scales of int8,
    tables that follow from the sizes. ValueError: the file is damaged.
    """
    try:
        with open(weights, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            tensors = json.loads(file.read(length))
    except (MemoryError, OverflowError, ValueError, struct.error) as error:
        raise ValueError(f"{weights} is damaged: {error}") from error
    sizes, number = config.get("encoder", {}), 0
    for name, tensor in tensors.items():
        if name == "__metadata__" or tensor["dtype"] == "I64":
            continue
        if name == "relative_bias.weight":  # of each distance, in place of each bin
            number += sizes["rel_pos_bins"] * sizes["heads"]
        elif name in _TOKEN_TABLES and "vocabulary_size" in config:
            number += math.prod([config["vocabulary_size"], *tensor["shape"][1:]])
        elif not name.endswith(".scale") and not name.startswith(("cosines.", "sines.")):
            number += math.prod(tensor["shape"])
    return number
