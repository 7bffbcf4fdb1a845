"""MASS (Song et al. 2019) and BANG (Qi et al. 2020), as microsoft/MASS and microsoft/BANG publish their weights.

A folder of MASS has ``dict.txt`` and ``mass-base-uncased.pt``, a state dict of their ``mass/s2s_model.py``; one of BANG
has BERT's ``vocab.txt`` and one ``*.pt``. All forms of BANG have the same names of weights.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mist_fairseq.pretrained.names import Names, convert, split
from mist_fairseq.pretrained.weights import find_file, other_vocabulary, read_weights

logger = logging.getLogger(__name__)

POSITIONS = 512  # of MASS's encoder and of its decoder
WEIGHTS, VOCABULARY = "mass-base-uncased.pt", "dict.txt"
PRETRAINED_HELP = f"folder with {WEIGHTS} and {VOCABULARY} of microsoft/MASS: the initial weights"
_ADVICE = "give the checkpoint's sizes, --encoder-layers, --decoder-layers, --encoder-embed-dim and the like"


def _names(decoder_attention: str) -> Names:
    """``EncoderDecoder``'s and fairseq's names, of a decoder whose self-attention is called *decoder_attention*."""
    names: dict[str, str | list[str]] = {"word_embeddings": "encoder.embed_tokens"}
    for side, attention in (("encoder", "self_attn"), ("decoder", decoder_attention)):
        layer = f"{side}.layers.{{}}."
        names |= {
            f"{side}.positions": f"{side}.embed_positions",
            f"{side}.norm": f"{side}.emb_layer_norm",
            layer + "self_attention.qkv": [f"{layer}{attention}.{one}_proj" for one in "qkv"],
            layer + "self_attention.relative": f"{layer}{attention}.relative_linear",
            layer + "self_attention.output": f"{layer}{attention}.out_proj",
            layer + "self_attention.norm": layer + "self_attn_layer_norm",
            layer + "cross_attention.query": layer + "encoder_attn.q_proj",
            layer + "cross_attention.key_value": [f"{layer}encoder_attn.{one}_proj" for one in "kv"],
            layer + "cross_attention.output": layer + "encoder_attn.out_proj",
            layer + "cross_attention.norm": layer + "encoder_attn_layer_norm",
            layer + "ffn.inner": layer + "fc1",
            layer + "ffn.outer": layer + "fc2",
            layer + "ffn.norm": layer + "final_layer_norm",
        }
    return names


ENCODER_DECODER = _names("self_attn")
# fairseq's own transformer.
TRANSFORMER: Names = {
    "encoder.layernorm_embedding": "encoder.emb_layer_norm",
    "decoder.layernorm_embedding": "decoder.emb_layer_norm",
    "decoder.output_projection": "decoder.embed_tokens",
}
_BANG = {**_names("ngram_self_attn"), "mask_embedding": "decoder.ngram_input_embed.weight"}
_IGNORED = {"encoder.version", "decoder.version", "decoder.embed_tokens.weight"}
_OPTIONAL = {"encoder.version", "decoder.version", "length_head.weight"}


class _Meter:
    """Stands for what fairseq 0.9, BANG's, stores beside the weights: numbers only."""


_METERS: list[Any] = [(_Meter, f"fairseq.meters.{name}") for name in ("AverageMeter", "TimeMeter", "StopwatchMeter")]


def check_mass_vocabulary(folder: str, symbols: list[str]):
    """Refuse data of other *symbols* than those of the folder's ``dict.txt``; errors as of ``check_vocabulary``."""
    path = find_file(folder, [VOCABULARY])
    lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    expected = [line.rpartition(" ")[0] for line in lines]  # lines "token count"
    if expected != symbols:
        raise other_vocabulary(path, len(expected), len(symbols), "and the vocab.txt of BERT (uncased)")


def read_mass(folder: str, own: Mapping[str, Tensor], names: Names, first_position: int = 0) -> dict[str, Tensor]:
    """MASS's weights under the names of a model of ours or of fairseq's, whose state dict is *own*.

    *names* are ``ENCODER_DECODER`` or ``TRANSFORMER``. The model has MASS's positions from *first_position* on.
    """
    path = find_file(folder, [WEIGHTS])
    state = _read(path)
    state |= {name: table[first_position:] for name, table in state.items() if name.endswith("embed_positions.weight")}
    return _convert(state, own, names, path)


def read_bang(folder: str, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """BANG's weights under the names of a ``MaskDecoder``, whose state dict is *own*. Errors as of ``convert``.

    As in BANG's code, the last of the two rows that some files have as ``ngram_input_embed`` is the [MASK] of the
    parallel form, and of tables with more positions than ours the first are taken.
    """
    paths = sorted(Path(folder).glob("*.pt"))
    if not paths:
        raise FileNotFoundError(f"--pretrained {folder}: there is no *.pt in it")
    if len(paths) > 1:
        raise ValueError(f"--pretrained {folder}: expected one *.pt, found {', '.join(path.name for path in paths)}")
    with torch.serialization.safe_globals(_METERS):
        state = _read(paths[0])
    for side in ("encoder", "decoder"):
        name = f"{side}.embed_positions.weight"
        if name in state:
            state[name] = state[name][: len(own[f"{side}.positions.weight"])]
    masks = state.get("decoder.ngram_input_embed.weight")
    if masks is not None and masks.dim() == 2 and 1 <= len(masks) <= 2:
        state["decoder.ngram_input_embed.weight"] = masks[-1]
    return _convert(state, own, _BANG, paths[0])


def _read(path: Path) -> dict[str, Tensor]:
    """Query, key and value apart, which may stand as one ``in_proj_weight``; one table of words, not two."""
    state = read_weights(path)
    words = [tensor for name, tensor in state.items() if name.endswith("coder.embed_tokens.weight")]
    if len(words) == 2 and not torch.equal(*words):
        raise ValueError(f"{path}: encoder.embed_tokens.weight and decoder.embed_tokens.weight differ")
    return split(state, "in_proj_", ["q_proj.", "k_proj.", "v_proj."])


def _convert(state: dict[str, Tensor], own: Mapping[str, Tensor], names: Names, path: Path) -> dict[str, Tensor]:
    converted = convert(state, own, names, str(path), _ADVICE, _OPTIONAL, _IGNORED)
    logger.info("loaded %d tensors from %s", len(converted), path)
    return converted
