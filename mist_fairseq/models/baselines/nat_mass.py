"""NAT initialised from MASS, the paper's baseline: MASS's encoder-decoder behind the interface of ``Encoder``.

As in the authors' ``MASS-NAT`` (kongds/MIST), MASS's decoder (Song et al. 2019) sees the whole target instead of its
beginning, and the target's length is predicted from the mean of the encoder's last hidden states. Training and
decoding are those of the encoder model: its ``forward``, criterion and generator run over ``encode_source`` and
``decode_target``. Here the source state holds what the cross-attention of each decoder layer needs of the source.

Dimensions are those of ``models/encoder.py``.
"""

import re
from dataclasses import dataclass, field
from typing import Any, Optional

import torch
import torch.nn.functional as F
from fairseq.dataclass import FairseqDataclass
from fairseq.models import register_model
from omegaconf import II
from torch import Tensor, nn

from mist_fairseq.data.dictionary import TokenizerDictionary
from mist_fairseq.mist.encoder import (
    LengthHead,
    SourceState,
    TokenHead,
    initialise_as_bert,
    keep_linear_in_,
    pack,
    padding_mask,
    unpack,
)
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


@dataclass
class EncoderDecoderConfig:
    """Sizes of the encoder-decoder; ``max_positions`` are those of the source and those of the target."""

    vocab_size: int
    hidden_size: int = 768
    encoder_layers: int = 6
    decoder_layers: int = 6
    heads: int = 12
    ffn_size: int = 3072
    max_positions: int = MASS_POSITIONS
    length_classes: int = 512
    dropout: float = 0.1
    attention_dropout: float = 0.1
    activation_dropout: float = 0.1

    def __post_init__(self):
        if self.hidden_size % self.heads:
            raise ValueError(f"hidden size {self.hidden_size} is not a multiple of the {self.heads} attention heads")


class Attention(nn.Module):
    """What self- and cross-attention share: attention over padded rows, then output, residual and LayerNorm."""

    def __init__(self, config: EncoderDecoderConfig):
        super().__init__()
        self.heads = config.heads
        self.dropout = config.dropout
        self.attention_dropout = config.attention_dropout
        self.output = nn.Linear(config.hidden_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size)

    def _split(self, rows: Tensor, index: Tensor, shape: tuple[int, int]) -> tuple[Tensor, ...]:
        """k projections side by side, (N, k * D), at *index* of a padded batch (B, L) -> k times (B, H, L, d)."""
        parts = rows.shape[1] // self.output.in_features
        padded = unpack(rows, index, *shape).view(*shape, parts, self.heads, -1)  # (B, L, k, H, d)
        return padded.permute(2, 0, 3, 1, 4).unbind(0)

    def _attend(self, x: Tensor, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, index: Tensor) -> Tensor:
        """*Shapes:* (N, D), (B, H, L, d), twice (B, H, K, d), (B, 1, 1, K), (N) -> (N, D)."""
        dropout = self.attention_dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
        attended = self.output(pack(attended.transpose(1, 2).flatten(2), index))
        return self.norm(x + F.dropout(attended, self.dropout, self.training))


class SelfAttention(Attention):
    """Each position of a sequence sees all of it."""

    def __init__(self, config: EncoderDecoderConfig):
        super().__init__(config)
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)

    def forward(self, x: Tensor, index: Tensor, mask: Tensor, shape: tuple[int, int]) -> Tensor:
        """Attention, residual and LayerNorm. -> (N, D).

        Args:
            x: packed rows, *Shape:* (N, D).
            index: their flat positions in a padded batch, *Shape:* (N).
            mask: True at real positions, *Shape:* (B, 1, 1, L).
            shape: (B, L) of the padded batch.
        """
        query, key, value = self._split(self.qkv(x), index, shape)
        return self._attend(x, query, key, value, mask, index)


class CrossAttention(Attention):
    """Each target position sees the encoded source."""

    def __init__(self, config: EncoderDecoderConfig):
        super().__init__(config)
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key_value = nn.Linear(config.hidden_size, 2 * config.hidden_size)

    def keys_values(self, source: Tensor, index: Tensor, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Of the encoder's last hidden states, *Shapes:* (N, D), (N), (B, S) -> twice (B, H, S, d)."""
        key, value = self._split(self.key_value(source), index, shape)
        return key, value

    def forward(
        self, x: Tensor, key: Tensor, value: Tensor, index: Tensor, mask: Tensor, shape: tuple[int, int]
    ) -> Tensor:
        """As in ``SelfAttention``, with keys and values of the source and *mask* (B, 1, 1, S) of its real positions."""
        (query,) = self._split(self.query(x), index, shape)
        return self._attend(x, query, key, value, mask, index)


class FeedForward(nn.Module):
    """Feed-forward network, residual and LayerNorm."""

    def __init__(self, config: EncoderDecoderConfig):
        super().__init__()
        self.dropout = config.dropout
        self.activation_dropout = config.activation_dropout
        self.inner = nn.Linear(config.hidden_size, config.ffn_size)
        self.outer = nn.Linear(config.ffn_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """*Shape:* (N, D), in and out."""
        inner = F.dropout(F.gelu(self.inner(x)), self.activation_dropout, self.training)
        return self.norm(x + F.dropout(self.outer(inner), self.dropout, self.training))


class Layer(nn.Module):
    """One post-LN layer, in the decoder with cross-attention."""

    def __init__(self, config: EncoderDecoderConfig, decoder: bool):
        super().__init__()
        self.self_attention = SelfAttention(config)
        self.cross_attention = CrossAttention(config) if decoder else None
        self.ffn = FeedForward(config)


class Stack(nn.Module):
    """Encoder or decoder: positions, the LayerNorm after the embeddings, layers."""

    def __init__(self, config: EncoderDecoderConfig, layers: int, decoder: bool):
        super().__init__()
        self.positions = nn.Embedding(config.max_positions, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size)
        self.layers: Any = nn.ModuleList(Layer(config, decoder) for _ in range(layers))


class EncoderDecoder(TokenHead, nn.Module):
    """MASS's encoder and decoder, one matrix for all embeddings and the output, and a length classifier."""

    def __init__(self, config: EncoderDecoderConfig):
        super().__init__()
        self.config = config
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.encoder = Stack(config, config.encoder_layers, decoder=False)
        self.decoder = Stack(config, config.decoder_layers, decoder=True)
        self.length_head = LengthHead(config.hidden_size, config.length_classes)
        # Of its own only where the embeddings' precision is not that of matrix products.
        self.output_weight: nn.Parameter | None = None
        self.apply(initialise_as_bert)

    def encode_source(self, tokens: Tensor, lengths: Tensor, index: Tensor) -> SourceState:
        """Run the encoder; the state's keys and values are those of each decoder layer's cross-attention.

        Args:
            tokens: ``[CLS] X [SEP]``, right-padded, *Shape:* (B, S).
            lengths: real tokens of each, *Shape:* (B).
            index: flat positions to compute, at least the real ones, *Shape:* (N), into B * S.
        """
        B, S = shape = tokens.shape
        x = self._embed(tokens, index, self.encoder)
        mask = padding_mask(lengths, S)[:, None, None]
        for layer in self.encoder.layers:
            x = layer.ffn(layer.self_attention(x, index, mask, shape))
        seen = [layer.cross_attention.keys_values(x, index, shape) for layer in self.decoder.layers]
        return SourceState([key for key, _ in seen], [value for _, value in seen], unpack(x, index, B, S), lengths)

    def decode_target(self, tokens: Tensor, lengths: Tensor, index: Tensor, source: SourceState) -> Tensor:
        """Run the decoder, whose positions see the whole target and source. Target positions count from the first.

        Args:
            tokens: the target, partly or wholly [MASK], right-padded, *Shape:* (B, T).
            lengths: real tokens of each, *Shape:* (B).
            index: flat positions of the real tokens, *Shape:* (N), into B * T.
            source: the same sentences' source state.

        Returns:
            Last hidden states at *index*, *Shape:* (N, D).
        """
        shape = tokens.shape
        x = self._embed(tokens, index, self.decoder)
        mask = padding_mask(lengths, shape[1])[:, None, None]
        source_mask = padding_mask(source.lengths, source.hidden.shape[1])[:, None, None]
        for layer, key, value in zip(self.decoder.layers, source.keys, source.values):
            x = layer.self_attention(x, index, mask, shape)
            x = layer.ffn(layer.cross_attention(x, key, value, index, source_mask, shape))
        return x

    def keep_in_(self, precision: torch.dtype):
        """Convert the weights of matrix products, for inference under autocast to *precision*."""
        keep_linear_in_(self, precision)
        self.output_weight = nn.Parameter(self.word_embeddings.weight.detach().to(precision))

    def length_logits(self, source: SourceState) -> Tensor:
        """Scores of each target length, the final [SEP] counted, from the mean over the source. -> (B, classes)."""
        return self.length_head(source)

    def token_logits(self, hidden: Tensor) -> Tensor:
        """Scores of the tokens. *Shapes:* (N, D) -> (N, V), in the precision of the computation."""
        return F.linear(hidden, self.word_embeddings.weight if self.output_weight is None else self.output_weight)

    def _embed(self, tokens: Tensor, index: Tensor, stack: Stack) -> Tensor:
        """*Shapes:* (B, L), (N) -> packed (N, D)."""
        words = self.word_embeddings(pack(tokens[:, :, None], index)[:, 0])
        x = words * self.config.hidden_size**0.5 + stack.positions(index % tokens.shape[1])
        return F.dropout(stack.norm(x), self.config.dropout, self.training)


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

    def check_positions(self):
        """Refuse limits beyond the positions of the source or of the target."""
        known = self.encoder.config.max_positions
        for side, limit in (("source", self.limits.source), ("target", self.limits.target)):
            if limit > known:
                raise ValueError(f"--max-{side}-positions {limit} exceeds MASS's {known} positions: lower it")
