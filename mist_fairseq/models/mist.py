"""The fairseq model: an ``Encoder`` with the paper's training computation as its ``forward``."""

import copy
import logging
from dataclasses import dataclass, field
from typing import Optional

import torch
from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from fairseq.models import BaseFairseqModel, register_model, register_model_architecture
from omegaconf import II
from torch import Tensor

from mist_fairseq.data.dictionary import TokenizerDictionary
from mist_fairseq.engines import build_engine
from mist_fairseq.mist.encoder import Encoder, EncoderConfig, argmax, padding_mask, row_chunks
from mist_fairseq.mist.glancing import glance, sentence_noise
from mist_fairseq.mist.mixing import mix_source
from mist_fairseq.pretrained.folder import check_vocabulary, check_weights, load_pretrained, read_sizes

logger = logging.getLogger(__name__)

PRECISIONS = ChoiceEnum(["fp32", "bf16", "int8"])


@dataclass
class MistConfig(FairseqDataclass):
    """Defaults are ``mist_base``; ``--pretrained`` replaces the sizes by its folder's."""

    pretrained: Optional[str] = field(
        default=None,
        metadata={
            "help": "folder with config.json, vocab.txt and model.safetensors or pytorch_model.bin of a BERT, "
            "MiniLM or UniLM encoder, or a model that scripts/export.py wrote; sets the sizes and the initial weights"
        },
    )
    encoder_layers: int = field(default=12, metadata={"help": "number of layers"})
    encoder_embed_dim: int = field(default=768, metadata={"help": "hidden size"})
    encoder_ffn_embed_dim: int = field(default=3072, metadata={"help": "inner size of the feed-forward network"})
    encoder_attention_heads: int = field(default=12, metadata={"help": "number of attention heads"})
    max_positions: int = field(default=512, metadata={"help": "positions the model knows, source and target together"})
    token_types: int = field(default=2, metadata={"help": "number of token types"})
    source_type_id: int = field(default=0, metadata={"help": "token type of the source"})
    target_type_id: int = field(default=1, metadata={"help": "token type of the target"})
    rel_pos_bins: int = field(default=0, metadata={"help": "buckets of UniLM's relative position bias; 0: none"})
    max_rel_pos: int = field(default=128, metadata={"help": "distance from which on all share the last bucket"})
    length_classes: int = field(default=512, metadata={"help": "classes of the length classifier"})
    untie_head: bool = field(
        default=False, metadata={"help": "let the output matrix start as a copy of the word embeddings, not share them"}
    )
    dropout: float = field(default=0.1, metadata={"help": "dropout of embeddings and sub-layers"})
    attention_dropout: float = field(default=0.1, metadata={"help": "dropout of attention weights"})
    precision: PRECISIONS = II("task.precision")  # type: ignore[valid-type]


@dataclass
class PositionLimits:
    """Most tokens of a source and of a target, special ones counted; shared by a task, its data and its model."""

    source: int
    target: int


@register_model("mist", dataclass=MistConfig)
class MistModel(BaseFairseqModel):
    """An ``Encoder``, trained and run as the paper says.

    Args:
        cfg: sizes and precision.
        dictionary: the tokenizer; the checkpoint remembers its fingerprint and refuses another.
        limits: the task's. A checkpoint brings the limits it was trained with, and sets them here.
    """

    def __init__(self, cfg: MistConfig, dictionary: TokenizerDictionary, limits: PositionLimits):
        super().__init__()
        self.precision = str(cfg.precision)
        self.dictionary = dictionary
        self.limits = limits
        self.encoder = self.build_encoder(cfg, len(dictionary))
        self.engine = None  # what runs the encoder's passes in generation, instead of the encoder
        self.register_buffer("never_predicted", torch.tensor(dictionary.never_predicted()), persistent=False)
        # In the state dict, because a resumed training gets nothing else of its checkpoint's configuration.
        self.register_buffer("trained_limits", torch.tensor([limits.source, limits.target]))
        self.register_buffer("fingerprint", torch.tensor(list(bytes.fromhex(dictionary.fingerprint()))))

    @classmethod
    def build_model(cls, cfg, task):
        """Called by the task's ``build_model``."""
        return cls(cfg, task.dictionary, task.limits)

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        """As ``hub_interface.MistGenerator.from_pretrained``."""
        from mist_fairseq.hub.mist_generator import MistGenerator

        return MistGenerator.from_pretrained(*args, **kwargs)

    @classmethod
    def build_encoder(cls, cfg: MistConfig, vocab_size: int) -> Encoder:
        """The encoder with the sizes of *cfg*."""
        return Encoder(
            EncoderConfig(
                vocab_size=vocab_size,
                hidden_size=cfg.encoder_embed_dim,
                layers=cfg.encoder_layers,
                heads=cfg.encoder_attention_heads,
                ffn_size=cfg.encoder_ffn_embed_dim,
                max_positions=cfg.max_positions,
                token_types=cfg.token_types,
                source_type=cfg.source_type_id,
                target_type=cfg.target_type_id,
                length_classes=cfg.length_classes,
                rel_pos_bins=cfg.rel_pos_bins,
                max_rel_pos=cfg.max_rel_pos,
                untie_head=cfg.untie_head,
                dropout=cfg.dropout,
                attention_dropout=cfg.attention_dropout,
            )
        )

    @classmethod
    def pretrained_sizes(cls, folder: str, dictionary: TokenizerDictionary) -> dict[str, int]:
        """What ``--pretrained`` sets of the configuration. Refuses another vocabulary than the folder's."""
        check_vocabulary(folder, dictionary)
        sizes = read_sizes(folder)
        check_weights(folder, sizes, len(dictionary))
        return sizes

    def load_pretrained(self, folder: str):
        """Load the weights of ``--pretrained``."""
        load_pretrained(self.encoder, folder)

    def max_positions(self) -> tuple[int, int]:
        """The limits of source and target."""
        return self.limits.source, self.limits.target

    def check_limits(self):
        """Refuse limits that the model has no positions or length classes for.

        Not when the model is built: only then may a checkpoint bring the limits it was trained with.
        """
        self.check_positions()
        target, classes = self.limits.target, self.encoder.config.length_classes
        if target >= classes:
            raise ValueError(f"--max-target-positions {target} needs more than {classes} --length-classes")

    def check_positions(self):
        """Refuse limits that are together beyond the model's positions."""
        source, target, known = self.limits.source, self.limits.target, self.encoder.config.max_positions
        if source + target > known:
            raise ValueError(
                f"--max-source-positions {source} + --max-target-positions {target} = {source + target} exceed the "
                f"model's {known} positions: lower one of them"
            )

    def without_engine(self) -> "MistModel":
        """The same model, with the same parameters, for who builds another engine."""
        twin = copy.copy(self)
        twin.engine = None
        return twin

    def autocast(self, precision: str | None = None):
        """Context in which matrix products run in *precision*, the model's own by default."""
        enabled = (precision or self.precision) == "bf16"
        return torch.autocast(self.trained_limits.device.type, dtype=torch.bfloat16, enabled=enabled)

    def prepare_for_inference_(self, cfg):
        """Called by fairseq-generate: takes the command line's precision and builds the engine of ``--accelerate``.

        With bf16, weights of matrix products are kept in bf16, once and for all: autocast would read and round all of
        them anew for every batch. The results are the same.
        """
        super().prepare_for_inference_(cfg)
        # The generator's precision, whatever the checkpoint was trained in.
        self.accelerate_(str(getattr(cfg.task, "accelerate", "auto")), str(cfg.task.precision))

    def accelerate_(self, accelerate: str, precision: str):
        """Set the precision and build the engine that generation is to use; errors as of ``engines.build_engine``."""
        self.precision = precision
        if precision == "bf16":
            self.encoder.keep_in_(torch.bfloat16)
        with torch.no_grad():
            self.engine = build_engine(self.encoder, self.never_predicted, accelerate, precision)

    def load_state_dict(self, state_dict, strict=True, model_cfg=None, args=None):
        """Load a checkpoint and take over the position limits it was trained with.

        Raises:
            ValueError: the checkpoint was trained with another vocabulary.
        """
        fingerprint = state_dict.get("fingerprint")
        if fingerprint is not None and not torch.equal(fingerprint.cpu(), self.fingerprint.cpu()):
            message = (
                "the data was binarized with another vocabulary than the checkpoint was trained with: run "
                "fairseq-preprocess with --joined-dictionary --srcdict and the dict.*.txt of the training data"
            )
            logger.error(message)  # fairseq-train itself only says that the architectures do not match
            raise ValueError(message)
        result = super().load_state_dict(state_dict, strict, model_cfg, args)
        source, target = self.trained_limits.tolist()
        if (source, target) != (self.limits.source, self.limits.target):
            logger.warning(
                "the checkpoint was trained with --max-source-positions %d --max-target-positions %d, "
                "which replace the given %d and %d",
                source,
                target,
                self.limits.source,
                self.limits.target,
            )
            self.limits.source, self.limits.target = source, target
        return result

    def predict(self, logits: Tensor) -> Tensor:
        """Likeliest tokens, never [PAD], [CLS] or [MASK]. *Shapes:* (N, V) -> (N)."""
        tokens = torch.empty(len(logits), dtype=torch.long, device=logits.device)
        for rows in row_chunks(logits):
            tokens[rows] = argmax(logits[rows].index_fill(-1, self.never_predicted, float("-inf")))
        return tokens

    def mix(
        self, pseudo: Tensor, pseudo_lengths: Tensor, source: Tensor, source_lengths: Tensor
    ) -> tuple[Tensor, Tensor]:
        """``[CLS] Y_p [SEP] X [SEP]`` with this model's limit and tokens; shapes as in ``mix_source``."""
        return mix_source(
            pseudo,
            pseudo_lengths,
            source,
            source_lengths,
            limit=self.limits.source,
            sep=self.dictionary.eos(),
            pad=self.dictionary.pad(),
        )

    def forward(
        self,
        src_tokens: Tensor,
        src_lengths: Tensor,
        target_tokens: Tensor,
        target_lengths: Tensor,
        ids: Tensor,
        src_index: Tensor,
        target_index: Tensor,
        mixed_index: Tensor,
        glancing_ratio: float = 0.0,
        mixing: bool = True,
        mist_targets: str = "pseudo",
    ) -> dict[str, Tensor | None]:
        """The whole training computation: glancing, NAT pass, mixing, MIST pass (equations 2-4).

        All of it stands in one forward so that DistributedDataParallel sees it. Glancing and NAT share one source
        encoding. Evaluation does not glance: nothing of the target is revealed.

        Args:
            src_tokens: ``[CLS] X [SEP]``, right-padded, *Shape:* (B, S).
            src_lengths: *Shape:* (B).
            target_tokens: ``Y [SEP]``, right-padded, *Shape:* (B, T).
            target_lengths: *Shape:* (B).
            ids: of the sentences, for the random choices of glancing, *Shape:* (B).
            src_index, target_index, mixed_index: flat positions to compute in source, target and mixed source, from
                the collater, *Shapes:* (N_S), (N), (N_M). On a GPU, reading them off the lengths would wait.
            glancing_ratio: share of wrong tokens whose number is revealed.
            mixing: run the MIST pass.
            mist_targets: what it mixes in: the NAT pass's ``pseudo`` target (the paper's MIST), the ``reference`` or
                ``random`` tokens, to tell what the gain comes from.

        Returns:
            ``nat_logits`` (N, V) and the likeliest ``nat_tokens`` (N); ``mist_logits`` and ``mist_tokens`` likewise,
            None without mixing; ``length_logits`` (B, classes); ``revealed``: number of target tokens shown, a scalar.
        """
        encoder = self.encoder
        with self.autocast():
            source = encoder.encode_source(src_tokens, src_lengths, src_index)
            real = padding_mask(target_lengths, target_tokens.shape[1])
            masked = target_tokens.masked_fill(real, self.dictionary.mask())  # Y_M
            revealed = torch.zeros_like(real)
            if self.training and glancing_ratio > 0:
                with torch.no_grad():
                    hidden = encoder.decode_target(masked, target_lengths, target_index, source)
                    first_look = self._scatter(self.predict(encoder.token_logits(hidden)), target_index, target_tokens)
                # fairseq sets torch's seed anew for each update, from --seed and the number of the update.
                noise = sentence_noise(ids, target_tokens.shape[1], torch.initial_seed())
                masked, revealed = glance(
                    target_tokens, first_look, real, noise, glancing_ratio, self.dictionary.mask()
                )
            nat_logits = encoder.token_logits(encoder.decode_target(masked, target_lengths, target_index, source))
            nat_tokens = self.predict(nat_logits.detach())
            mist_logits = mist_tokens = None
            if mixing:
                if mist_targets == "pseudo":
                    pseudo = self._scatter(nat_tokens, target_index, target_tokens)
                elif mist_targets == "reference":
                    pseudo = target_tokens
                else:
                    pseudo = self._random_targets(ids, target_tokens, target_lengths)
                mixed = encoder.encode_source(*self.mix(pseudo, target_lengths, src_tokens, src_lengths), mixed_index)
                mist_logits = encoder.token_logits(encoder.decode_target(masked, target_lengths, target_index, mixed))
                mist_tokens = self.predict(mist_logits.detach())
            return {
                "nat_logits": nat_logits,
                "nat_tokens": nat_tokens,
                "mist_logits": mist_logits,
                "mist_tokens": mist_tokens,
                "length_logits": encoder.length_logits(source),
                "revealed": revealed.sum(),
            }

    def _random_targets(self, ids: Tensor, target: Tensor, lengths: Tensor) -> Tensor:
        """Tokens drawn from the whole vocabulary, then [SEP], as long as the targets. *Shapes:* as in ``forward``."""
        noise = sentence_noise(ids, target.shape[1], ~torch.initial_seed())  # other numbers than those for glancing
        tokens = noise.remainder(len(self.dictionary))
        tokens = torch.where(torch.isin(tokens, self.never_predicted), self.dictionary.unk(), tokens)
        return tokens.scatter(1, lengths[:, None] - 1, self.dictionary.eos())

    def _scatter(self, tokens: Tensor, index: Tensor, target: Tensor) -> Tensor:
        """Tokens at their places in a target, padding elsewhere. *Shapes:* (N), (N), (B, T) -> (B, T)."""
        filled = torch.full_like(target, self.dictionary.pad())
        filled.view(-1)[index] = tokens
        return filled


@register_model_architecture("mist", "mist_base")
def mist_base(args):
    """12 layers, 768 wide, 12 heads: the paper's BERT-base."""


@register_model_architecture("mist", "mist_small")
def mist_small(args):
    """12 layers, 384 wide, 12 heads: the paper's BERT-small (MiniLM)."""
    args.encoder_embed_dim = getattr(args, "encoder_embed_dim", 384)
    args.encoder_ffn_embed_dim = getattr(args, "encoder_ffn_embed_dim", 1536)


@register_model_architecture("mist", "mist_tiny")
def mist_tiny(args):
    """3 layers, 128 wide, 4 heads: for the quickstart and tests."""
    args.encoder_layers = getattr(args, "encoder_layers", 3)
    args.encoder_embed_dim = getattr(args, "encoder_embed_dim", 128)
    args.encoder_ffn_embed_dim = getattr(args, "encoder_ffn_embed_dim", 512)
    args.encoder_attention_heads = getattr(args, "encoder_attention_heads", 4)
