"""What a benchmark is given: a list of systems, and data of any lengths with random words."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from reprlib import repr as short
from typing import Any

import numpy as np
import torch
import yaml
from fairseq.data import indexed_dataset

from mist_fairseq.data.dictionary import TokenizerDictionary
from mist_fairseq.engines import PRECISIONS
from mist_fairseq.text.tokenizer import CLS, MASK, PAD, SEP, UNK
from mist_fairseq.text.wordpiece import wordpiece_tokenizer

ENGINES = ["fairseq", "ctranslate2", "huggingface", "onnx"]
GROUPS = ["AR", "Semi-NAR", "NAR"]
_SETTINGS = ["data", "subset", "reference", "source", "protocol", "metrics"]

Profile = dict[str, Mapping[int, float]]
# Tokens of a source, [CLS] and [SEP] counted, and of a target, [SEP] counted: about the means of the paper's data.
PROFILES: dict[str, Profile] = {
    "quora": {"source": {14: 1}, "target": {14: 1}},
    "squad_qg": {"source": {150: 1}, "target": {14: 1}},
    "xsum": {"source": {464: 1}, "target": {28: 1}},
    "long": {"source": {2048: 1}, "target": {28: 1}},  # as ModernBERT takes them
}
VOCABULARY = 30522  # BERT's, uncased
_FIRST_WORD = 104


@dataclass
class Entry:
    """One system of the list."""

    name: str
    path: str | None = None  # a checkpoint of fairseq, or
    arguments: str | None = None  # for random weights what fairseq-train would be given: --task, --arch, sizes
    engine: str = "fairseq"
    group: str = "NAR"  # as in the paper's tables
    precision: str = "fp32"
    options: dict = field(default_factory=dict)  # of task, model, generation by fairseq's names: beam, decoding, ...
    data: str = ""  # binarized
    folder: str = ""  # where data and path are looked for
    passes: dict[int, float] | None = None  # probability of each number of passes, where lengths are prescribed

    @property
    def data_path(self) -> str:
        """The folder of data, from where this process runs."""
        return os.path.join(self.folder, self.data)

    @property
    def needs_gpu(self) -> bool:
        """Whether it runs on a GPU only."""
        return self.options.get("accelerate") == "cudagraph"

    def __post_init__(self):
        if not self.name or not isinstance(self.name, str):
            raise ValueError(f"a system's name is {short(self.name)}, expected text")
        where = f"system {short(self.name)}"
        if (self.path is None) == (self.arguments is None):
            raise ValueError(f"{where}: give either path, a checkpoint, or arguments, for random weights")
        for key, expected in _EXPECTED.items():
            value, name = getattr(self, key), getattr(expected, "__name__", expected)
            if value not in expected if isinstance(expected, list) else not isinstance(value, expected):
                raise ValueError(f"{where}: {key} is {short(value)}, expected {name}")


_EXPECTED: dict[str, Any] = {"engine": ENGINES, "group": GROUPS, "precision": PRECISIONS, "data": str, "options": dict}
_EXPECTED |= {"path": str | None, "arguments": str | None, "passes": dict | None}


def read_yaml(path: Path):
    """Return the plain values of a YAML file; a ValueError names a file that is none."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    # PyYAML's own errors, and what it lets through of values that are not of their type, such as dates.
    except (yaml.YAMLError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not YAML: {error}") from error


def read_entries(path: Path) -> tuple[list[Entry], dict]:
    """Read the systems of a YAML file, and its other settings.

    Top level: ``systems``, a list of ``Entry``, and common to all ``data``, ``subset``, ``reference``, ``source``,
    ``protocol`` and ``metrics``. Files are looked for from the YAML file's folder on. A ValueError says what is wrong.
    """
    content = read_yaml(path)
    if not isinstance(content, dict) or not isinstance(content.get("systems"), list):
        raise ValueError(f"{path} has no list of systems")
    settings = {key: value for key, value in content.items() if key != "systems"}
    entries, keys = [], [one.name for one in fields(Entry) if one.name != "folder"]
    where = str(path)
    try:
        _check_keys(settings, _SETTINGS)
        for given in content["systems"]:
            where = f"{path}: a system is {short(given)}"
            _check_keys(given, keys)
            entries.append(Entry(**{"name": "", "data": settings.get("data", ""), **given, "folder": str(path.parent)}))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error
    check_names(entries, str(path))
    for key in ("reference", "source"):
        if settings.get(key):
            settings[key] = str(path.parent / str(settings[key]))
    return entries, settings


def check_names(entries: list[Entry], where: str):
    """Refuse two systems of the same name; *where* is how the message begins."""
    if len({entry.name for entry in entries}) < len(entries):
        raise ValueError(f"{where}: two systems have the same name")


def _check_keys(given: dict, known: list[str]):
    if unknown := [short(key) for key in given if key not in known]:
        raise ValueError(f"{unknown[0]} is unknown, expected {', '.join(known)}")


def read_profile(name: str) -> Profile:
    """Return a known profile, or that of a YAML file: lengths, with weights if several, of source and target."""
    if name in PROFILES:
        return PROFILES[name]
    if not Path(name).is_file():
        raise ValueError(f"no profile {name!r}: expected {', '.join(PROFILES)} or a YAML file")
    content = read_yaml(Path(name))
    if not isinstance(content, dict) or set(content) != {"source", "target"}:
        raise ValueError(f"{name}: expected source and target, got {short(content)}")
    profile: Profile = {}
    for side, given in content.items():
        lengths = list(given.items()) if isinstance(given, dict) else [(given, 1)]
        for length, weight in lengths:
            if not isinstance(length, int) or length < 3 or not isinstance(weight, (int, float)) or weight < 0:
                raise ValueError(f"{name}: {side} has length {length!r} with weight {weight!r}, expected at least 3")
        profile[side] = dict(lengths)
    return profile


def write_data(folder: Path, profile: Profile, sentences: int, subset: str = "test"):
    """Write dictionaries of random words, and one split of a profile's lengths, as fairseq-preprocess does."""
    symbols = [f"[unused{i}]" for i in range(_FIRST_WORD)] + [f"w{i}" for i in range(_FIRST_WORD, VOCABULARY)]
    symbols[0], symbols[100:104] = PAD, [UNK, CLS, SEP, MASK]
    dictionary = TokenizerDictionary(wordpiece_tokenizer(symbols))
    random = np.random.default_rng(1)
    # [CLS] is not in the data: the task adds it.
    for lang, side, added in (("src", "source", 1), ("tgt", "target", 0)):
        dictionary.save(folder / f"dict.{lang}.txt")
        lengths, weights = zip(*profile[side].items())
        prefix = str(folder / f"{subset}.src-tgt.{lang}")
        builder = indexed_dataset.make_builder(f"{prefix}.bin", "mmap", len(dictionary))
        for length in random.choice(lengths, size=sentences, p=np.array(weights) / sum(weights)):
            words = random.integers(_FIRST_WORD, VOCABULARY, size=length - 1 - added)
            builder.add_item(torch.tensor([*words, dictionary.eos()]))
        builder.finalize(f"{prefix}.idx")
