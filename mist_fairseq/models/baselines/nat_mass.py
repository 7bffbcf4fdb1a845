"""NAT initialised from MASS, the paper's baseline: MASS's encoder-decoder behind the interface of ``Encoder``.

As in the authors' ``MASS-NAT`` (kongds/MIST), MASS's decoder (Song et al. 2019) sees the whole target instead of its
beginning, and the target's length is predicted from the mean of the encoder's last hidden states. Training and
decoding are those of the encoder model: its ``forward``, criterion and generator run over ``encode_source`` and
``decode_target``. Here the source state holds what the cross-attention of each decoder layer needs of the source.

Dimensions are those of ``models/encoder.py``.
"""

import re
from dataclasses import dataclass, field
from typing import Optional

import torch
from fairseq.dataclass import FairseqDataclass
from fairseq.models import register_model
from omegaconf import II
from torch import Tensor

from mist_fairseq.data.dictionary import TokenizerDictionary
from mist_fairseq.mist.config import EncoderDecoderConfig
from mist_fairseq.mist.encoder_decoder import *
from mist_fairseq.mist.encoder_decoder import EncoderDecoder
from mist_fairseq.models.baselines.mass import MASS_POSITIONS, PRETRAINED_HELP, check_mass_dictionary, read_mass
from mist_fairseq.models.mist import PRECISIONS, MistModel


@dataclass
class NatMassConfig(FairseqDataclass):
    """Defaults are MASS-base."""

    pretrained: Optional[str] = field(default=None, metadata={"help": PRETRAINED_HELP})
    encoder_layers: int = field(default=6, metadata={"help": "number of encoder layers"})
    decoder_layers: int = field(default=6, metadata={"help": "number of decoder layers"})
    encoder_embed_dim: int = field(default=768, metadata={"help": "hidden size of encoder and decoder"})
    encoder_ffn_embed_dim: int = field(default=3072, metadata={"help": "inner size of the feed-forward networks"})
    encoder_attention_heads: int = field(default=12, metadata={"help": "number of attention heads"})
    length_classes: int = field(default=512, metadata={"help": "classes of the length classifier"})
    dropout: float = field(default=0.1, metadata={"help": "dropout of embeddings and sub-layers"})
    attention_dropout: float = field(default=0.1, metadata={"help": "dropout of attention weights"})
    activation_dropout: float = field(default=0.1, metadata={"help": "dropout inside the feed-forward networks"})
    precision: PRECISIONS = II("task.precision")


# MASS's name -> ours; what has the same name is one matrix, in this order.
_NAMES = {
    "embed_positions": "positions",
    "emb_layer_norm": "norm",
    "self_attn.q_proj": "self_attention.qkv",
    "self_attn.k_proj": "self_attention.qkv",
    "self_attn.v_proj": "self_attention.qkv",
    "self_attn.out_proj": "self_attention.output",
    "self_attn_layer_norm": "self_attention.norm",
    "encoder_attn.q_proj": "cross_attention.query",
    "encoder_attn.k_proj": "cross_attention.key_value",
    "encoder_attn.v_proj": "cross_attention.key_value",
    "encoder_attn.out_proj": "cross_attention.output",
    "encoder_attn_layer_norm": "cross_attention.norm",
    "fc1": "ffn.inner",
    "fc2": "ffn.outer",
    "final_layer_norm": "ffn.norm",
}


def convert_mass(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """``EncoderDecoder``'s weights, but the length classifier's, from those that ``read_mass`` returns."""
    parts = {}
    for name, tensor in state.items():
        ((side, layer, module, kind),) = re.findall(r"^(\w+)\.(layers\.\d+\.)?(.+)\.(\w+)$", name)
        if module == "embed_tokens":
            parts["word_embeddings.weight"] = [tensor]
        elif module == "embed_positions":
            parts[f"{side}.positions.weight"] = [tensor[-MASS_POSITIONS:]]  # before them are unused ones
        else:
            parts.setdefault(f"{side}.{layer}{_NAMES[module]}.{kind}", []).append(tensor)
    return {name: torch.cat(tensors) for name, tensors in parts.items()}


@register_model("nat_mass", dataclass=NatMassConfig)
class NatMassModel(MistModel):
    """``MistModel`` over an ``EncoderDecoder``. Args: as there."""

    encoder: EncoderDecoder  # type: ignore[assignment]
    architecture = "nat_mass"

    @classmethod
    def build_encoder(cls, cfg: NatMassConfig, vocab_size: int) -> EncoderDecoder:  # type: ignore[override]
        """The encoder-decoder with the sizes of *cfg*."""
        return EncoderDecoder(
            EncoderDecoderConfig(
                vocab_size=vocab_size,
                hidden_size=cfg.encoder_embed_dim,
                encoder_layers=cfg.encoder_layers,
                decoder_layers=cfg.decoder_layers,
                heads=cfg.encoder_attention_heads,
                ffn_size=cfg.encoder_ffn_embed_dim,
                length_classes=cfg.length_classes,
                dropout=cfg.dropout,
                attention_dropout=cfg.attention_dropout,
                activation_dropout=cfg.activation_dropout,
            )
        )

    @classmethod
    def pretrained_sizes(cls, folder: str, dictionary: TokenizerDictionary) -> dict[str, int]:
        """None: the folder holds no configuration. Refuses another vocabulary than the folder's."""
        check_mass_dictionary(folder, dictionary)
        return {}

    def load_pretrained(self, folder: str):
        """Load MASS's weights; only the length classifier starts at random. Errors as in ``read_mass``."""
        config = self.encoder.config
        state = read_mass(
            folder,
            config.vocab_size,
            config.hidden_size,
            config.ffn_size,
            config.encoder_layers,
            config.decoder_layers,
            self.dictionary.pad(),
        )
        self.encoder.load_state_dict(self.encoder.state_dict() | convert_mass(state))
