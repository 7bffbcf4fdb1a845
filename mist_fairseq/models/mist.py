"""fairseq's model: an ``Encoder`` of ``mist.encoder`` with ``mist.objective`` as its ``forward``."""

import logging
from dataclasses import dataclass, field
from typing import Any, Optional

import torch
from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from fairseq.models import BaseFairseqModel, register_model, register_model_architecture
from omegaconf import II
from torch import Tensor, nn

from mist_fairseq.data.dictionary import TokenizerDictionary
from mist_fairseq.engines import build_engine
from mist_fairseq.generate.decoding import Engine
from mist_fairseq.mist.config import OPTION_NAMES, EncoderConfig, PositionLimits
from mist_fairseq.mist.encoder import Encoder
from mist_fairseq.mist.objective import Batch, Objective, Predictions
from mist_fairseq.pretrained.folder import check_vocabulary, check_weights, load_pretrained, read_sizes
from mist_fairseq.release.folder import Released

logger = logging.getLogger(__name__)

PRECISIONS = ChoiceEnum(["fp32", "bf16", "int8"])
_PRETRAINED_HELP = (
    "folder with config.json, vocab.txt and model.safetensors or pytorch_model.bin of a BERT, MiniLM or UniLM encoder, "
    "or a model that scripts/export.py wrote; sets the sizes and the initial weights"
)


@dataclass
class MistConfig(FairseqDataclass):
    """Defaults are ``mist_base``; ``--pretrained`` replaces the sizes by its folder's."""

    pretrained: Optional[str] = field(default=None, metadata={"help": _PRETRAINED_HELP})
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


@register_model("mist", dataclass=MistConfig)
class MistModel(BaseFairseqModel):
    """An encoder, trained and run as the paper says.

    Args:
        cfg: sizes and precision.
        dictionary: has the tokenizer; the checkpoint remembers its fingerprint and refuses another.
        limits: the task's. A checkpoint brings the limits it was trained with, and sets them here.
    """

    architecture = "mist"  # in released folders
    encoder: Any
    trained_limits: Tensor
    fingerprint: Tensor

    def __init__(self, cfg: MistConfig, dictionary: TokenizerDictionary, limits: PositionLimits):
        super().__init__()
        self.precision = str(cfg.precision)
        self.dictionary = dictionary
        self.limits = limits
        self.encoder = self.build_encoder(cfg, len(dictionary))
        self.engine: Engine | None = None  # what runs the two passes in generation
        # In the state dict, because a resumed training gets nothing else of its checkpoint's configuration.
        self.register_buffer("trained_limits", torch.tensor([limits.source, limits.target]))
        self.register_buffer("fingerprint", torch.tensor(list(bytes.fromhex(dictionary.tokenizer.fingerprint()))))

    @property
    def released(self) -> Released:
        """The model as what ``release`` writes."""
        return Released(self.encoder, self.dictionary.tokenizer, self.limits)

    @classmethod
    def build_model(cls, cfg, task):
        """Called by the task's ``build_model``."""
        return cls(cfg, task.dictionary, task.limits)

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        """As ``MistGenerator.from_pretrained``."""
        from mist_fairseq import MistGenerator

        return MistGenerator.from_pretrained(*args, **kwargs)

    @classmethod
    def build_encoder(cls, cfg: MistConfig, vocab_size: int) -> nn.Module:
        """The encoder with the sizes of *cfg*."""
        return Encoder(cls.encoder_config(cfg, vocab_size))

    @staticmethod
    def encoder_config(cfg: MistConfig, vocab_size: int) -> EncoderConfig:
        """The sizes that the options say."""
        return EncoderConfig(vocab_size, **{size: getattr(cfg, option) for option, size in OPTION_NAMES.items()})

    @classmethod
    def pretrained_sizes(cls, folder: str, dictionary: TokenizerDictionary) -> dict[str, int]:
        """What ``--pretrained`` sets of the configuration. Refuses another vocabulary than the folder's."""
        check_vocabulary(folder, dictionary.tokenizer)
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
        """Refuse limits that the model has no positions for, once a checkpoint may have brought its own."""
        self.encoder.config.check_limits(self.limits)

    def autocast(self):
        """Context in which matrix products run in the model's precision."""
        enabled = self.precision == "bf16"
        return torch.autocast(self.trained_limits.device.type, dtype=torch.bfloat16, enabled=enabled)

    def prepare_for_inference_(self, cfg):
        """Called by fairseq-generate: builds the engine of ``--accelerate`` in the command line's ``--precision``."""
        super().prepare_for_inference_(cfg)
        self.build_engine_(str(getattr(cfg.task, "accelerate", "auto")), str(cfg.task.precision))

    def build_engine_(self, accelerate: str, precision: str):
        """Build what generation runs the passes with; errors as of ``engines.build_engine``."""
        self.engine = build_engine(self.encoder, self.dictionary.tokenizer.special, accelerate, precision)

    def load_state_dict(self, state_dict, strict=True, model_cfg=None, args=None):
        """Load a checkpoint and its position limits; ValueError if it was trained with another vocabulary."""
        fingerprint = state_dict.get("fingerprint")
        if fingerprint is not None and not torch.equal(fingerprint.cpu(), self.fingerprint.cpu()):
            message = (
                "the data was binarized with another vocabulary than the checkpoint was trained with: run "
                "fairseq-preprocess with --joined-dictionary --srcdict and the dict.*.txt of the training data"
            )
            logger.error(message)  # fairseq-train itself only says that the architectures do not match
            raise ValueError(message)
        result = super().load_state_dict(state_dict, strict, model_cfg, args)
        trained, given = self.trained_limits.tolist(), [self.limits.source, self.limits.target]
        if trained != given:
            message = "the checkpoint's --max-source-positions %d --max-target-positions %d replace the given %d and %d"
            logger.warning(message, *trained, *given)
            self.limits.source, self.limits.target = trained
        return result

    def forward(self, objective: Objective, **batch) -> Predictions:
        """The passes of a training step, all in one forward so that DistributedDataParallel sees them.

        *batch* are the tensors of ``mist.objective.Batch``, by their names.
        """
        special = self.dictionary.tokenizer.special
        with self.autocast():
            return objective.predict(self.encoder, Batch(**batch), special, self.limits.source)


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
