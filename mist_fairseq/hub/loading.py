"""A model by the name of its folder or its name on the hub, by whichever generator can run it."""

import itertools
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mist_fairseq.files.exported import CONFIG, SUMS, read_any_config
from mist_fairseq.files.reading import read_json
from mist_fairseq.generate.decoding import whole_number
from mist_fairseq.generate.text_generator import TextGenerator
from mist_fairseq.pretrained.hub import local_folder
from mist_fairseq.release.onnx_folder import DICTIONARY, FILES, FORMAT


def find_model(name: str, precision: str | None = None) -> tuple[str, bool]:
    """The folder of a model, fetched if *name* is one on the hub, and whether it is ONNX; errors as of its reader."""
    is_onnx = read_any_config(local_folder(name, [CONFIG])).get("format") == FORMAT
    return local_folder(name, _files(FILES.get(precision or "fp32", ())) if is_onnx else None), is_onnx


def fetch_model(name: str) -> str:
    """The folder of a model or pre-trained encoder, with all files; errors as of ``local_folder``."""
    is_onnx = read_json(Path(local_folder(name, [CONFIG])) / CONFIG).get("format") == FORMAT
    return local_folder(name, _files(itertools.chain(*FILES.values())) if is_onnx else None)


def _files(weights: Iterable[str]) -> list[str]:
    return [CONFIG, SUMS, DICTIONARY, *weights]


def load_generator(folder: str, **options: Any) -> TextGenerator:
    """Load the model of a folder, or of a name on the hub: ONNX if its ``config.json`` says so, else PyTorch.

    *options* are ``precision``, ``accelerate``, ``device`` and ``threads``, as far as they are not to be the model's
    defaults.
    """
    whole_number("--threads", options.get("threads", 1))
    if read_any_config(local_folder(folder, [CONFIG])).get("format") == FORMAT:
        from mist_fairseq import OnnxGenerator

        return OnnxGenerator.from_pretrained(folder, **options)
    if "threads" in options:
        os.environ["OMP_NUM_THREADS"] = str(options.pop("threads"))  # PyTorch, not loaded yet, reads it
    try:
        from mist_fairseq import MistGenerator
    except ModuleNotFoundError as error:
        raise ImportError(f"{folder} is no ONNX folder (scripts/export.py --to onnx), and {error}") from error

    return MistGenerator.from_pretrained(folder, **options)
