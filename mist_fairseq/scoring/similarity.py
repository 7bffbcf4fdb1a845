"""Cosines of sentence vectors (Reimers and Gurevych 2019): whether the meaning is the same, whatever the words.

Texts are read as they are, in no protocol's tokens. The encoder decides what is similar: all-MiniLM-L6-v2 has learned
from Quora's duplicate questions, among others.
"""

from functools import lru_cache
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
from sacrebleu.metrics.base import Score

from mist_fairseq.extras import install_line
from mist_fairseq.scoring.summed import SummedMetric


class Similarity(SummedMetric):
    """Mean cosine of outputs and references, in percent, of several the best; with sacrebleu's interface.

    Args:
        encoder: the folder of a sentence encoder, or of any encoder that transformers loads: the mean of its vectors.

    Raises:
        ImportError: the package is not installed; says how to install it.
        OSError: there is no such folder.
        RuntimeError: it holds no encoder.
    """

    def __init__(self, encoder: str | Path):
        super().__init__()
        self._encoder = str(encoder)
        _load(self._encoder)

    def _extract_corpus_statistics(self, hypotheses, references):
        self.num_refs = len(references)
        outputs = _vectors(self._encoder, tuple(hypotheses))
        best = np.full(len(outputs), -1.0)
        for stream in self._streams(references):
            cosines = (outputs * _vectors(self._encoder, tuple(text or "" for text in stream))).sum(-1)
            there = [text is not None for text in stream]
            best[there] = np.maximum(best, cosines)[there]
        return [[float(cosine), 1] for cosine in best]

    def _streams(self, references):
        return references

    def _compute_score_from_stats(self, stats):
        total, sentences = stats
        return Score("Similarity", 100 * float(total) / float(sentences))

    def _extract_reference_info(self, refs):
        raise NotImplementedError("whole corpora are encoded")

    _compute_segment_statistics: Any = _extract_reference_info


class SourceSimilarity(Similarity):
    """The same with the source, which stands before the references: 100 for a copy."""

    def _streams(self, references):
        return references[:1]


@lru_cache(maxsize=1)
def _load(folder: str):
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"{folder} is not a folder: scripts/get_pretrained.py minilm-l6 DIR makes one")
    try:
        from sentence_transformers import SentenceTransformer
    except ModuleNotFoundError as error:
        raise ImportError(f"sentence vectors need sentence-transformers: {install_line('similarity')}") from error
    try:
        return SentenceTransformer(folder, device="cpu", local_files_only=True)
    except (LookupError, OSError, RuntimeError, TypeError, ValueError) as error:
        why = shorten(str(error), 200)  # transformers lists all it knows
        raise RuntimeError(f"{folder} is not a sentence encoder's: {why}") from error


@lru_cache(maxsize=32)  # outputs are compared with references and sources, under several protocols
def _vectors(folder: str, texts: tuple[str, ...]) -> np.ndarray:
    """Vectors of length 1, (texts, width)."""
    return _load(folder).encode(list(texts), batch_size=64, normalize_embeddings=True, show_progress_bar=False)
