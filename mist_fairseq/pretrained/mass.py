"""MASS (Song et al. 2019), as microsoft/MASS publishes it with ``MASS-summarization/mass/s2s_model.py``, over fairseq.

A folder has ``mass-base-uncased.pt``, a state dict, and ``dict.txt``.
"""

import logging
from collections.abc import Mapping

import torch
from torch import Tensor

from mist_fairseq.pretrained.folder import find_file, other_vocabulary, read_weights
from mist_fairseq.pretrained.names import Names, convert, split

logger = logging.getLogger(__name__)

POSITIONS = 512  # of the encoder and of the decoder
WEIGHTS, VOCABULARY = "mass-base-uncased.pt", "dict.txt"
PRETRAINED_HELP = f"folder with {WEIGHTS} and {VOCABULARY} of microsoft/MASS: the initial weights"
ADVICE = "give the checkpoint's sizes, --encoder-layers, --decoder-layers, --encoder-embed-dim and the like"


def encoder_decoder_names(decoder_attention: str) -> Names:
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


ENCODER_DECODER = encoder_decoder_names("self_attn")
# fairseq's own transformer.
TRANSFORMER: Names = {
    "encoder.layernorm_embedding": "encoder.emb_layer_norm",
    "decoder.layernorm_embedding": "decoder.emb_layer_norm",
    "decoder.output_projection": "decoder.embed_tokens",
}
IGNORED = {"encoder.version", "decoder.version", "decoder.embed_tokens.weight"}
_OPTIONAL = {"encoder.version", "decoder.version", "length_head.weight"}


def check_mass_vocabulary(folder: str, symbols: list[str]):
    """Refuse data of other *symbols* than those of the folder's ``dict.txt``; errors as of ``check_vocabulary``."""
    path = find_file(folder, [VOCABULARY])
    lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    expected = [line.rpartition(" ")[0] for line in lines]  # lines "token count"
    if expected != symbols:
        raise other_vocabulary(path, len(expected), len(symbols), "and the vocab.txt of BERT (uncased)")


def read_mass(folder: str, own: Mapping[str, Tensor], names: Names, first_position: int = 0) -> dict[str, Tensor]:
    """MASS's weights under the names of a model of ours or of fairseq's.

    Args:
        folder: with the weights.
        own: the model's state dict, for its names and shapes.
        names: ``ENCODER_DECODER`` or ``TRANSFORMER``.
        first_position: row of the first position in MASS's tables that the model has.

    Raises:
        FileNotFoundError: there is no weights file.
        ValueError: it cannot be read, lacks a weight, has one too many or one of another shape (names the weight).
    """
    path = find_file(folder, [WEIGHTS])
    state = tidy(read_weights(path), str(path))
    state |= {name: table[first_position:] for name, table in state.items() if name.endswith("embed_positions.weight")}
    converted = convert(state, own, names, str(path), ADVICE, _OPTIONAL, IGNORED)
    logger.info("loaded %d tensors from %s", len(converted), path)
    return converted


def tidy(state: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """Query, key and value apart, which may stand as one ``in_proj_weight``; one table of words, not two."""
    words = [tensor for name, tensor in state.items() if name.endswith("coder.embed_tokens.weight")]
    if len(words) == 2 and not torch.equal(*words):
        raise ValueError(f"{source}: encoder.embed_tokens.weight and decoder.embed_tokens.weight differ")
    return split(state, "in_proj_", ["q_proj.", "k_proj.", "v_proj."])
