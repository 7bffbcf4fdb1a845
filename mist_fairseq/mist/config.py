"""Sizes, limits and special tokens: what is fixed before a model is built. Needs no torch."""

from dataclasses import dataclass
from typing import NamedTuple

# What may stand between the two products of a feed-forward network, under Hugging Face's names.
ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu")

# What is read off the last hidden states: as many tokens as the length classifier says, or a path through a graph.
HEADS = ("length", "dag")


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of the special tokens, under BERT's names."""

    pad: int
    unk: int
    cls: int
    sep: int
    mask: int
    others: tuple[int, ...] = ()  # further special and unused tokens

    @property
    def never_predicted(self) -> tuple[int, ...]:
        """Ids that no answer contains: all special tokens but [SEP], its end."""
        return self.pad, self.cls, self.mask, self.unk, *self.others


@dataclass
class PositionLimits:
    """The most tokens of a source and of a target, special ones counted; a task, its data and its model share it."""

    source: int
    target: int


class GraphSizes(NamedTuple):
    """Vertices of a graph: *upsample* times the source's tokens, at least *least* (``mist.dag``)."""

    upsample: int
    least: int


@dataclass
class EncoderConfig:
    """Sizes of an encoder, with BERT's names for what BERT has, and what it computes otherwise than BERT."""

    vocab_size: int
    hidden_size: int = 768
    layers: int = 12
    heads: int = 12
    ffn_size: int = 3072
    max_positions: int = 512
    token_types: int = 2
    source_type: int = 0
    target_type: int = 1
    length_classes: int = 512
    rel_pos_bins: int = 0
    max_rel_pos: int = 128
    layer_norm_eps: float = 1e-12
    activation: str = "gelu"
    embedding_size: int = 0  # of the embeddings, projected to the hidden size (ALBERT, ELECTRA); 0: they have that
    shared_layers: bool = False  # one layer that is run again and again (ALBERT)
    # ModernBERT's (Warner et al. 2024): LayerNorm before each part, x * activation(y) in the feed-forward network, no
    # biases, and rotary positions (Su et al. 2021) instead of a table; all layers but each n-th see only what is near.
    pre_norm: bool = False
    gated: bool = False
    without_biases: bool = False
    rotary_base: float = 0.0
    local_rotary_base: float = 0.0
    local_window: int = 0  # positions to either side; 0: every layer sees all
    global_every: int = 1
    untie_head: bool = False
    copy_head: bool = False
    # What is read off the target: tokens of a fixed length, or paths through a graph (``mist.dag``) of upsample times
    # the source's tokens, and at least so many vertices.
    head: str = "length"
    upsample: int = 4
    least_vertices: int = 48
    dropout: float = 0.1
    attention_dropout: float = 0.1

    def __post_init__(self) -> None:
        if self.heads < 1 or self.hidden_size % self.heads:
            raise ValueError(f"hidden size {self.hidden_size} is not a multiple of the {self.heads} attention heads")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation is {self.activation!r:.60}, expected one of {', '.join(ACTIVATIONS)}")
        if self.head not in HEADS:
            raise ValueError(f"head is {self.head!r:.60}, expected one of {', '.join(HEADS)}")
        if self.upsample < 1 or self.least_vertices < 3:
            raise ValueError(
                f"--upsample {self.upsample} --least-vertices {self.least_vertices}: expected at least 1, 3"
            )
        if self.head == "dag" and self.copy_head:
            raise ValueError("--copy-head is for --head length: paths copy nothing")
        if self.rotary_base and self.hidden_size // self.heads % 2:
            raise ValueError(f"rotary positions need heads of an even size, not {self.hidden_size // self.heads}")
        if self.local_window and (self.rel_pos_bins or self.global_every < 1):
            raise ValueError("local layers go with no relative position bias, and each n-th sees all, from n = 1 on")
        if self.local_window and bool(self.rotary_base) != bool(self.local_rotary_base):
            raise ValueError("rotary positions need two bases, that of layers that see all and that of local ones")
        # The first buckets hold one distance each, the others more and more of them, up to the largest distance.
        if self.rel_pos_bins and not 1 <= self.rel_pos_bins // 4 < self.max_rel_pos:
            raise ValueError(
                f"{self.rel_pos_bins} buckets of relative positions up to {self.max_rel_pos}: expected at least 4, and "
                "positions beyond a quarter of their number"
            )
        for name, token_type in (("source", self.source_type), ("target", self.target_type)):
            if not 0 <= token_type < self.token_types:
                raise ValueError(
                    f"{name} token type {token_type} is not one of the {self.token_types} token types, counted from 0: "
                    f"give more --token-types, or another --{name}-type-id"
                )

    @property
    def graph(self) -> GraphSizes | None:
        """The sizes of its graphs, if it has paths."""
        return GraphSizes(self.upsample, self.least_vertices) if self.head == "dag" else None

    def check_limits(self, limits: PositionLimits) -> None:
        """Refuse limits that the encoder has no positions or length classes for.

        Raises:
            ValueError: names the options that set them.
        """
        if limits.source + limits.target > self.max_positions:
            raise ValueError(
                f"--max-source-positions {limits.source} + --max-target-positions {limits.target} = "
                f"{limits.source + limits.target} exceed the model's {self.max_positions} positions: lower one of them"
            )
        check_length_classes(limits, self.length_classes)


def check_length_classes(limits: PositionLimits, length_classes: int) -> None:
    """Refuse targets longer than the length classifier can say; ValueError names the options."""
    if limits.target >= length_classes:
        raise ValueError(f"--max-target-positions {limits.target} needs more than {length_classes} --length-classes")


# What command lines, checkpoints and released folders call the sizes: their name -> EncoderConfig's.
OPTION_NAMES = {
    "encoder_layers": "layers",
    "encoder_embed_dim": "hidden_size",
    "encoder_ffn_embed_dim": "ffn_size",
    "encoder_attention_heads": "heads",
    "max_positions": "max_positions",
    "token_types": "token_types",
    "source_type_id": "source_type",
    "target_type_id": "target_type",
    "rel_pos_bins": "rel_pos_bins",
    "max_rel_pos": "max_rel_pos",
    "layer_norm_eps": "layer_norm_eps",
    "activation_fn": "activation",
    "embedding_size": "embedding_size",
    "shared_layers": "shared_layers",
    "pre_norm": "pre_norm",
    "gated_ffn": "gated",
    "without_biases": "without_biases",
    "rotary_base": "rotary_base",
    "local_rotary_base": "local_rotary_base",
    "local_window": "local_window",
    "global_every": "global_every",
    "length_classes": "length_classes",
    "untie_head": "untie_head",
    "copy_head": "copy_head",
    "head": "head",
    "upsample": "upsample",
    "least_vertices": "least_vertices",
    "dropout": "dropout",
    "attention_dropout": "attention_dropout",
}


@dataclass
class EncoderDecoderConfig:
    """Sizes of an encoder-decoder; it has ``max_positions`` for the source and as many for the target."""

    vocab_size: int
    hidden_size: int = 768
    encoder_layers: int = 6
    decoder_layers: int = 6
    heads: int = 12
    ffn_size: int = 3072
    max_positions: int = 512
    length_classes: int = 512
    dropout: float = 0.1
    attention_dropout: float = 0.1
    activation_dropout: float = 0.1

    def __post_init__(self) -> None:
        if self.heads < 1 or self.hidden_size % self.heads:
            raise ValueError(f"hidden size {self.hidden_size} is not a multiple of the {self.heads} attention heads")

    def check_limits(self, limits: PositionLimits) -> None:
        """As ``EncoderConfig.check_limits``; the positions of source and target are apart."""
        for side, limit in (("source", limits.source), ("target", limits.target)):
            if limit > self.max_positions:
                raise ValueError(
                    f"--max-{side}-positions {limit} exceeds the model's {self.max_positions} positions: lower it"
                )
        check_length_classes(limits, self.length_classes)


# As OPTION_NAMES, for EncoderDecoderConfig.
ENCODER_DECODER_OPTION_NAMES = {
    "encoder_layers": "encoder_layers",
    "decoder_layers": "decoder_layers",
    "encoder_embed_dim": "hidden_size",
    "encoder_ffn_embed_dim": "ffn_size",
    "encoder_attention_heads": "heads",
    "length_classes": "length_classes",
    "dropout": "dropout",
    "attention_dropout": "attention_dropout",
    "activation_dropout": "activation_dropout",
}
