"""BANG (Qi et al. 2020), as microsoft/BANG publishes it: a folder with BERT's ``vocab.txt`` and one ``*.pt``.

All forms of BANG have the same names of weights.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mist_fairseq.pretrained.folder import read_weights
from mist_fairseq.pretrained.mass import ADVICE, IGNORED, encoder_decoder_names, tidy
from mist_fairseq.pretrained.names import convert

logger = logging.getLogger(__name__)

NAMES = {**encoder_decoder_names("ngram_self_attn"), "mask_embedding": "decoder.ngram_input_embed.weight"}


class _Meter:
    """Stands for what fairseq 0.9, BANG's, stores beside the weights: numbers only."""


_METERS: list[Any] = [(_Meter, f"fairseq.meters.{name}") for name in ("AverageMeter", "TimeMeter", "StopwatchMeter")]


def read_bang(folder: str, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """BANG's weights under the names of a ``MaskDecoder``, whose state dict is *own*.

    Of the two rows that some files have as ``ngram_input_embed`` the last is the [MASK] of the parallel form; of
    tables with more positions than ours the first are taken. Both are what BANG's code does.

    Raises:
        FileNotFoundError: the folder has no ``*.pt``.
        ValueError: it has several, or the file cannot be read, lacks a weight, has an unknown one or one of another
            shape (names the weight and both shapes).
    """
    paths = sorted(Path(folder).glob("*.pt"))
    if not paths:
        raise FileNotFoundError(f"--pretrained {folder}: there is no *.pt in it")
    if len(paths) > 1:
        raise ValueError(f"--pretrained {folder}: expected one *.pt, found {', '.join(path.name for path in paths)}")
    source = str(paths[0])
    with torch.serialization.safe_globals(_METERS):
        state = tidy(read_weights(paths[0]), source)
    for side in ("encoder", "decoder"):
        name = f"{side}.embed_positions.weight"
        if name in state:
            state[name] = state[name][: len(own[f"{side}.positions.weight"])]
    masks = state.get("decoder.ngram_input_embed.weight")
    if masks is not None and masks.dim() == 2 and 1 <= len(masks) <= 2:
        state["decoder.ngram_input_embed.weight"] = masks[-1]
    converted = convert(state, own, NAMES, source, ADVICE, ignored=IGNORED)
    logger.info("loaded %d tensors from %s", len(converted), source)
    return converted
