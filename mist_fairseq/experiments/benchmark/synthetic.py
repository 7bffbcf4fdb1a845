"""Data of given lengths and a vocabulary of BERT's size, for timing models with random weights."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from fairseq.data import indexed_dataset

from mist_fairseq.data.dictionary import TokenizerDictionary
from mist_fairseq.experiments.benchmark.yaml_files import read_yaml
from mist_fairseq.text.tokenizer import CLS, MASK, PAD, SEP, UNK
from mist_fairseq.text.wordpiece import wordpiece_tokenizer

# Tokens of a source, [CLS] and [SEP] counted, and of a target, [SEP] counted: about the means of the paper's data.
PROFILES: dict[str, dict[str, Mapping[int, float]]] = {
    "quora": {"source": {14: 1}, "target": {14: 1}},
    "squad_qg": {"source": {150: 1}, "target": {14: 1}},
    "xsum": {"source": {464: 1}, "target": {28: 1}},
}
VOCABULARY = 30522  # BERT's, uncased
_FIRST_WORD = 104


def read_profile(name: str) -> dict[str, Mapping[int, float]]:
    """A known profile, or a YAML file with ``source`` and ``target``: a length, or lengths with their probabilities.

    Raises:
        ValueError: it is neither, or a length is not possible.
    """
    if name in PROFILES:
        return PROFILES[name]
    if not Path(name).is_file():
        raise ValueError(f"no profile {name!r}: expected {', '.join(PROFILES)} or a YAML file")
    content = read_yaml(Path(name))
    if not isinstance(content, dict) or set(content) != {"source", "target"}:
        raise ValueError(f"{name}: expected source and target, got {content!r}")
    profile: dict[str, Mapping[int, float]] = {}
    for side, given in content.items():
        lengths = list(given.items()) if isinstance(given, dict) else [(given, 1)]
        for length, weight in lengths:
            if not isinstance(length, int) or length < 3 or not isinstance(weight, (int, float)) or weight < 0:
                raise ValueError(f"{name}: {side} has length {length!r} with weight {weight!r}, expected at least 3")
        profile[side] = dict(lengths)
    return profile


def write_data(folder: Path, profile: dict[str, Mapping[int, float]], sentences: int, subset: str = "test"):
    """A folder of binarized data with random words: dictionaries and one split, as fairseq-preprocess writes them.

    Args:
        folder: to write to.
        profile: see ``PROFILES``.
        sentences: how many.
        subset: name of the split.
    """
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
