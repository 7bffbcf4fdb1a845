"""fairseq's model: an ``Encoder`` of ``mist.encoder`` with ``mist.objective`` as its ``forward``."""

import logging
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Optional

import torch
from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from fairseq.models import BaseFairseqModel, register_model, register_model_architecture
from omegaconf import II
from torch import Tensor, nn

from mist_fairseq.data.dictionary import TokenizerDictionary
from mist_fairseq.engines import build_engine
from mist_fairseq.generate.decoding import Engine, option
from mist_fairseq.mist.batch import Batch
from mist_fairseq.mist.config import ACTIVATIONS, HEADS, OPTION_NAMES, EncoderConfig, PositionLimits
from mist_fairseq.mist.encoder import Encoder
from mist_fairseq.mist.objective import Objective, Predictions
from mist_fairseq.pretrained.weights import check_vocabulary, check_weights, load_pretrained, read_sizes
from mist_fairseq.release.folder import Released

logger = logging.getLogger(__name__)

PRECISIONS = ChoiceEnum(["fp32", "bf16", "int8"])
_PRETRAINED_HELP = (
    "folder with config.json, vocabulary and model.safetensors or pytorch_model.bin of an encoder of a family that "
    "docs/encoders.md lists, or a model that scripts/export.py wrote; or org/name, org/name@revision of either on the "
    "Hugging Face hub; sets the sizes and the initial weights"
)


def set_defaults(args: Any, **defaults):
    """Set the options that the command line did not."""
    for name, default in defaults.items():
        if not hasattr(args, name):
            setattr(args, name, default)


@dataclass
class MistConfig(FairseqDataclass):
    """Defaults are ``mist_base``; ``--pretrained`` replaces the sizes by its folder's."""

    pretrained: Optional[str] = option(None, _PRETRAINED_HELP)
    encoder_layers: int = option(12, "number of layers")
    encoder_embed_dim: int = option(768, "hidden size")
    encoder_ffn_embed_dim: int = option(3072, "inner size of the feed-forward network")
    encoder_attention_heads: int = option(12, "number of attention heads")
    max_positions: int = option(512, "positions the model knows, source and target together")
    token_types: int = option(2, "number of token types")
    source_type_id: int = option(0, "token type of the source")
    target_type_id: int = option(1, "token type of the target")
    rel_pos_bins: int = option(0, "buckets of UniLM's relative position bias; 0: none")
    max_rel_pos: int = option(128, "distance from which on all share the last bucket")
    layer_norm_eps: float = option(1e-12, "what LayerNorm adds to the variance")
    activation_fn: ChoiceEnum(ACTIVATIONS) = option("gelu", "of the feed-forward network")  # type: ignore[valid-type]
    embedding_size: int = option(0, "size of the embeddings, which are projected to the hidden size; 0: that size")
    shared_layers: bool = option(False, "run one layer again and again, as ALBERT")
    pre_norm: bool = option(False, "LayerNorm before attention and feed-forward network, not after, as ModernBERT")
    gated_ffn: bool = option(False, "multiply half of the feed-forward network with the other, as ModernBERT")
    without_biases: bool = option(False, "no biases in products and LayerNorms, as ModernBERT")
    rotary_base: float = option(0.0, "base of rotary positions; 0: a table of positions")
    local_rotary_base: float = option(0.0, "the same in layers that see only what is near")
    local_window: int = option(0, "how many positions to either side such layers see; 0: there are none")
    global_every: int = option(1, "each n-th layer from the first on sees all")
    length_classes: int = option(512, "classes of the length classifier")
    untie_head: bool = option(False, "let the output matrix start as a copy of the word embeddings, not share them")
    copy_head: bool = option(False, "let each target position copy a source token, too, beside the vocabulary")
    head: ChoiceEnum(HEADS) = option(  # type: ignore[valid-type]
        "length", "predict the target's length and its tokens, or paths through a graph (DA-Transformer)"
    )
    upsample: int = option(4, "vertices of a graph, times the source's tokens; --max-target-positions is the most")
    least_vertices: int = option(48, "vertices of a short source's graph")
    fresh_head: bool = option(False, "start the masked-LM head's transform at random, whatever --pretrained brings")
    dropout: float = option(0.1, "dropout of embeddings and sub-layers")
    attention_dropout: float = option(0.1, "dropout of attention weights")
    checkpoint_activations: bool = option(False, "compute the layers again for the backward pass: less memory, slower")
    precision: PRECISIONS = II("task.precision")  # type: ignore[valid-type]


@register_model("mist", dataclass=MistConfig)
class MistModel(BaseFairseqModel):
    """An encoder, trained and run as the paper says.

    A checkpoint remembers the fingerprint of its dictionary's tokenizer and refuses another. It brings the limits that
    it was trained with, and sets them in *limits*, the task's.
    """

    architecture = "mist"  # in released folders
    encoder: Any
    trained_limits: Tensor
    fingerprint: Tensor

    def __init__(self, cfg: MistConfig, dictionary: TokenizerDictionary, limits: PositionLimits):
        super().__init__()
        self.precision, self.fresh_head = str(cfg.precision), getattr(cfg, "fresh_head", False)
        self.dictionary = dictionary
        self.limits = limits
        self.encoder = self.build_encoder(cfg, len(dictionary))
        self.encoder.checkpoint_activations = getattr(cfg, "checkpoint_activations", False)
        self.updates = 0  # made in training so far
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
        """The sizes that the options say; an option that is newer than a checkpoint has its default."""
        said = {size: getattr(cfg, option) for option, size in OPTION_NAMES.items() if hasattr(cfg, option)}
        return EncoderConfig(vocab_size, **said)

    @classmethod
    def pretrained_sizes(cls, folder: str, dictionary: TokenizerDictionary) -> dict[str, int]:
        """What ``--pretrained`` sets of the configuration. Refuses another vocabulary than the folder's."""
        check_vocabulary(folder, dictionary.tokenizer)
        sizes = read_sizes(folder)
        check_weights(folder, sizes, len(dictionary))
        return sizes

    def load_pretrained(self, folder: str):
        """Load the weights of ``--pretrained``."""
        load_pretrained(self.encoder, folder, self.fresh_head)

    def max_positions(self) -> tuple[int, int]:
        """The limits of source and target."""
        return self.limits.source, self.limits.target

    def check_limits(self):
        """Refuse limits that the model has no positions for, once a checkpoint may have brought its own."""
        self.encoder.config.check_limits(self.limits)

    def prepare_for_inference_(self, cfg):
        """Called by fairseq-generate: builds the engine of ``--accelerate`` in the command line's ``--precision``."""
        super().prepare_for_inference_(cfg)
        accelerate, precision = str(getattr(cfg.task, "accelerate", "auto")), str(cfg.task.precision)
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

    def set_num_updates(self, num_updates):
        """Called by fairseq before each update."""
        super().set_num_updates(num_updates)
        self.updates = num_updates

    def forward(self, objective: Objective, **batch) -> Predictions:
        """All passes of a training step, for DistributedDataParallel to see; *batch* are the tensors of ``Batch``."""
        special, device = self.dictionary.tokenizer.special, self.trained_limits.device.type
        # Not a disabled autocast, which would cancel that of --amp.
        with torch.autocast(device, dtype=torch.bfloat16) if self.precision == "bf16" else nullcontext():
            limits = self.limits.source, self.limits.target
            return objective.predict(self.encoder, Batch(**batch), special, *limits, self.updates)


@register_model_architecture("mist", "mist_base")
def mist_base(args):
    """12 layers, 768 wide, 12 heads: the paper's BERT-base."""


@register_model_architecture("mist", "mist_small")
def mist_small(args):
    """12 layers, 384 wide, 12 heads: the paper's BERT-small (MiniLM)."""
    set_defaults(args, encoder_embed_dim=384, encoder_ffn_embed_dim=1536)


@register_model_architecture("mist", "mist_tiny")
def mist_tiny(args):
    """3 layers, 128 wide, 4 heads: for the quickstart and tests."""
    set_defaults(args, encoder_layers=3, encoder_embed_dim=128, encoder_ffn_embed_dim=512, encoder_attention_heads=4)
