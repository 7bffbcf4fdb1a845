"""BANG (Qi et al. 2020) in its non-autoregressive form, a baseline of the paper's tables.

After microsoft/BANG, ``bang/bang/bang_NAR.py`` and ``ngram_multihead_attention_NAR.py``: a post-LN encoder over
``X [SEP]``, and a decoder that reads nothing but [MASK]s, in one parallel pass. A [MASK] is one vector of its own
(``ngram_input_embed``, not the word embedding) plus a learned position, and sees the source, itself and the [MASK]s
before it, with the relative positions of ProphetNet. No length is predicted: the first [SEP] ends the sentence.

Training is fairseq's ``label_smoothed_cross_entropy``, of the target and its [SEP]; what lies behind does not count.
BANG's own criterion is the same in the form of fairseq 0.9, with a smoothing mass of e / V instead of e / (V - 1).

Dimensions are those of ``models/encoder.py``.
"""

import logging
import re
from argparse import Namespace
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Optional

import torch
import torch.nn.functional as F
from fairseq.dataclass import FairseqDataclass
from fairseq.dataclass.utils import gen_parser_from_dataclass
from fairseq.logging import meters
from fairseq.models import BaseFairseqModel, register_model, register_model_architecture
from torch import Tensor, nn

from mist_fairseq.data.dictionary import TokenizerDictionary
from mist_fairseq.mist.kernels import row_chunks
from mist_fairseq.mist.layers import initialise_as_bert, relative_position_bucket
from mist_fairseq.mist.packing import unpack
from mist_fairseq.models.baselines.nat_mass import (
    Attention,
    CrossAttention,
    EncoderDecoderConfig,
    FeedForward,
    SelfAttention,
)
from mist_fairseq.models.generator import AUTOREGRESSIVE_OPTIONS, refuse_options
from mist_fairseq.pretrained.bert import check_dictionary, read_weights

logger = logging.getLogger(__name__)

# Constants of BANG's attention.
BUCKETS = 32
MAX_DISTANCE = 128

# What fairseq 0.9, BANG's, stores beside the weights; these classes hold numbers only.
_METERS: list[Any] = [
    (kind, f"fairseq.meters.{kind.__name__}") for kind in (meters.AverageMeter, meters.TimeMeter, meters.StopwatchMeter)
]


@dataclass
class BangConfig(FairseqDataclass):
    """Defaults are BANG-base."""

    pretrained: Optional[str] = field(
        default=None,
        metadata={
            "help": "folder with vocab.txt of BERT (uncased) and one *.pt of microsoft/BANG: the initial weights"
        },
    )
    bang_length: Optional[int] = field(
        default=None,
        metadata={
            "help": "number of [MASK]s that generation reads, so most tokens of an output, its [SEP] counted; by "
            "default, as in BANG's code, what the longest source of the batch has"
        },
    )
    encoder_layers: int = field(default=6, metadata={"help": "number of encoder layers"})
    decoder_layers: int = field(default=6, metadata={"help": "number of decoder layers"})
    encoder_embed_dim: int = field(default=768, metadata={"help": "hidden size of encoder and decoder"})
    encoder_ffn_embed_dim: int = field(default=3072, metadata={"help": "inner size of the feed-forward networks"})
    encoder_attention_heads: int = field(default=12, metadata={"help": "number of attention heads"})
    max_positions: int = field(default=512, metadata={"help": "most tokens of a source, and of a target"})
    dropout: float = field(default=0.1, metadata={"help": "dropout of embeddings and sub-layers"})
    attention_dropout: float = field(default=0.1, metadata={"help": "dropout of attention weights"})
    activation_dropout: float = field(default=0.1, metadata={"help": "dropout inside the feed-forward networks"})


class MaskAttention(Attention):
    """Each [MASK] sees itself and those before it.

    A score is the scaled product of query and key plus a number for the bucket of their distance, which the layer's
    input at the query gives for each head (ProphetNet; Qi et al. 2020).
    """

    def __init__(self, config: EncoderDecoderConfig):
        super().__init__(config)
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.relative = nn.Linear(config.hidden_size, BUCKETS * config.heads)

    def forward(self, x: Tensor, index: Tensor, visible: Tensor, buckets: Tensor) -> Tensor:
        """Attention, residual and LayerNorm. -> (N, D).

        Args:
            x: packed rows, *Shape:* (N, D).
            index: their flat positions in a padded batch, *Shape:* (N).
            visible: what each query may see, *Shape:* (B, 1, T, T).
            buckets: of the distances from query to key, *Shape:* (T, T).
        """
        B, _, T, _ = visible.shape
        bias = unpack(self.relative(x), index, B, T).view(B, T, BUCKETS, self.heads).permute(0, 3, 1, 2)
        bias = bias.gather(3, buckets.expand(B, self.heads, T, T)).masked_fill(~visible, float("-inf"))
        query, key, value = self._split(self.qkv(x), index, (B, T))
        return self._attend(x, query, key, value, bias, index)


class EncoderLayer(nn.Module):
    """One layer over the source."""

    def __init__(self, config: EncoderDecoderConfig):
        super().__init__()
        self.self_attention = SelfAttention(config)
        self.ffn = FeedForward(config)


class DecoderLayer(nn.Module):
    """One layer over the [MASK]s."""

    def __init__(self, config: EncoderDecoderConfig):
        super().__init__()
        self.self_attention = MaskAttention(config)
        self.cross_attention = CrossAttention(config)
        self.ffn = FeedForward(config)


class Stack(nn.Module):
    """Encoder or decoder: positions, the LayerNorm after the embeddings, layers."""

    def __init__(self, config: EncoderDecoderConfig, positions: int, layers: int, layer: type[nn.Module]):
        super().__init__()
        self.positions = nn.Embedding(positions, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size)
        self.layers: Any = nn.ModuleList(layer(config) for _ in range(layers))


@dataclass
class Source:
    """An encoded source.

    Attributes:
        rows: last hidden states of the real tokens, *Shape:* (N, D).
        index: their flat positions, *Shape:* (N), into B * S.
        real: where they are, *Shape:* (B, S).
    """

    rows: Tensor
    index: Tensor
    real: Tensor


@register_model("bang_nar")
class BangNarModel(BaseFairseqModel):
    """BANG's encoder, and its decoder over [MASK]s.

    Args:
        cfg: sizes and the number of [MASK]s.
        dictionary: of source and target, for the special ids.

    Raises:
        ValueError: ``--bang-length`` is no number that the model has positions for.
    """

    # Without a dataclass in the registry, because fairseq would copy the configuration of an architecture that has its
    # model's name, and --pretrained would stay in what checkpoints store.

    def __init__(self, cfg: Namespace | BangConfig, dictionary: TokenizerDictionary):
        super().__init__()
        self.length = cfg.bang_length
        self.limit = cfg.max_positions
        if self.length is not None and not 1 <= self.length <= self.limit:
            raise ValueError(
                f"--bang-length is {self.length}, expected a number from 1 to --max-positions {self.limit}"
            )
        self.dictionary = dictionary
        config = EncoderDecoderConfig(
            vocab_size=len(dictionary),
            hidden_size=cfg.encoder_embed_dim,
            heads=cfg.encoder_attention_heads,
            ffn_size=cfg.encoder_ffn_embed_dim,
            dropout=cfg.dropout,
            attention_dropout=cfg.attention_dropout,
            activation_dropout=cfg.activation_dropout,
        )
        self.dropout = cfg.dropout
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.mask_embedding = nn.Parameter(torch.empty(config.hidden_size).normal_(std=0.02))
        # Positions count from 1 in the encoder and from 2 in the decoder.
        self.encoder = Stack(config, self.limit + 1, cfg.encoder_layers, EncoderLayer)
        self.decoder = Stack(config, self.limit + 2, cfg.decoder_layers, DecoderLayer)
        self.register_buffer("never_predicted", torch.tensor(dictionary.never_predicted()), persistent=False)
        self.apply(initialise_as_bert)

    @classmethod
    def add_args(cls, parser):
        """The options of ``BangConfig``."""
        gen_parser_from_dataclass(parser, BangConfig(), delete_default=True)

    @classmethod
    def build_model(cls, cfg, task):
        """Build the model; when training starts, with the weights of ``--pretrained``."""
        model = cls(cfg, task.target_dictionary)
        if cfg.pretrained:
            check_dictionary(cfg.pretrained, task.target_dictionary)
            model.load_pretrained(cfg.pretrained)
            # In what checkpoints store: these need the folder no more.
            cfg.pretrained = None
        return model

    def load_pretrained(self, folder: str):
        """Load BANG's weights.

        Raises:
            FileNotFoundError: the folder has no ``*.pt``.
            ValueError: it has several, or the file cannot be read, lacks a weight, has an unknown one or one of
                another shape (names the weight and both shapes).
        """
        found = sorted(Path(folder).glob("*.pt"))
        if not found:
            raise FileNotFoundError(f"--pretrained {folder}: there is no *.pt in it")
        if len(found) > 1:
            names = ", ".join(path.name for path in found)
            raise ValueError(f"--pretrained {folder}: expected one *.pt, found {names}")
        with torch.serialization.safe_globals(_METERS):
            state = convert_bang(read_weights(found[0]), self.state_dict(), str(found[0]))
        self.load_state_dict(state)
        logger.info("loaded %d tensors from %s", len(state), found[0])

    def max_positions(self) -> tuple[int, int]:
        """Most tokens of a source and of a target."""
        return self.limit, self.limit

    def forward(self, src_tokens: Tensor, src_lengths: Tensor, prev_output_tokens: Tensor) -> tuple[Tensor, None]:
        """Predict a token for every [MASK].

        Args:
            src_tokens: ``X [SEP]``, padded on either side, *Shape:* (B, S).
            src_lengths: unused.
            prev_output_tokens: where it is not padding, a [MASK] is read, *Shape:* (B, T).

        Returns:
            Logits (B, T, V), zero at padding, and None.
        """
        real = prev_output_tokens.ne(self.dictionary.pad())
        hidden, index = self.decode(real, self.encode(src_tokens))
        return F.linear(unpack(hidden, index, *real.shape), self.word_embeddings.weight), None

    def get_normalized_probs(self, net_output, log_probs, sample=None):
        """(Log-)probabilities of ``forward``'s logits, in fp32. *Shape:* (B, T, V)."""
        logits = net_output[0].float()
        return logits.log_softmax(-1) if log_probs else logits.softmax(-1)

    def encode(self, tokens: Tensor) -> Source:
        """Run the encoder. *Shape:* tokens (B, S), padded on either side."""
        real = tokens.ne(self.dictionary.pad())
        index = real.flatten().nonzero()[:, 0]
        positions = real.cumsum(1).flatten()[index]
        x = self._embed(self.word_embeddings(tokens.flatten()[index]), positions, self.encoder)
        for layer in self.encoder.layers:
            x = layer.ffn(layer.self_attention(x, index, real[:, None, None], tuple(real.shape)))
        return Source(x, index, real)

    def decode(self, real: Tensor, source: Source) -> tuple[Tensor, Tensor]:
        """Run the decoder over [MASK]s.

        Args:
            real: where they are, padded on either side, *Shape:* (B, T).
            source: of the same sentences.

        Returns:
            Their last hidden states (N, D) and flat positions (N), into B * T.
        """
        (B, T), (_, S) = real.shape, source.real.shape
        index = real.flatten().nonzero()[:, 0]
        x = self._embed(self.mask_embedding, real.cumsum(1).flatten()[index] + 1, self.decoder)
        columns = torch.arange(T, device=real.device)
        # Distances between columns are those between positions. The later ones, which are not seen, need some bucket.
        relative = (columns - columns[:, None]).clamp(max=0)
        buckets = relative_position_bucket(relative, 2 * BUCKETS, MAX_DISTANCE)
        visible = (columns <= columns[:, None]) & real[:, None]  # (B, T, T)
        for layer in self.decoder.layers:
            key, value = layer.cross_attention.keys_values(source.rows, source.index, (B, S))
            x = layer.self_attention(x, index, visible[:, None], buckets)
            x = layer.ffn(layer.cross_attention(x, key, value, index, source.real[:, None, None], (B, T)))
        return x, index

    def _embed(self, embedded: Tensor, positions: Tensor, stack: Stack) -> Tensor:
        """*Shapes:* (N or 1, D), (N) -> (N, D)."""
        return F.dropout(stack.norm(embedded + stack.positions(positions)), self.dropout, self.training)

    def build_generator(self, dictionary: TokenizerDictionary, args) -> "BangGenerator":
        """What the task's ``build_generator`` returns. *args* are fairseq's generation options, or None."""
        return BangGenerator(self, dictionary, args)


@register_model_architecture("bang_nar", "bang_nar")
def bang_nar(args):
    """BANG-base: 6 + 6 layers, 768 wide, 12 heads."""
    for option in fields(BangConfig):
        if not hasattr(args, option.name):
            setattr(args, option.name, option.default)


class BangGenerator:
    """Fills a fixed number of [MASK]s in one pass and cuts at the first [SEP].

    BANG's code leaves the output whole, and its ``post_processed_nar.py`` then works on the printed tokens: it drops
    [CLS] and the [SEP]s before the first word, cuts at the next [SEP], and drops what repeats the token before, and
    after the pieces are joined what repeats the word before. Here the cut is the same, repeated words collapse as in
    ``NARGenerator`` (a repeated piece inside a word stays), and [PAD], [CLS] and [MASK] are never predicted.

    Args:
        model: a ``BangNarModel``.
        dictionary: the tokenizer.
        options: fairseq's generation options, None for their defaults.

    Raises:
        ValueError: an option cannot work; names it.
    """

    def __init__(self, model: BangNarModel, dictionary: TokenizerDictionary, options=None):
        refused = {name: (default, "leave it") for name, (default, _) in AUTOREGRESSIVE_OPTIONS.items()}
        refuse_options(options, refused, "BANG's single parallel pass")
        nbest = getattr(options, "nbest", 1)
        if nbest != 1:
            raise ValueError(f"--nbest is {nbest}, but BANG's single parallel pass gives one output")
        self.model = model
        self.dictionary = dictionary
        self.eos = dictionary.eos()
        self.symbols_to_strip_from_output = {dictionary.eos(), dictionary.pad()}

    @torch.no_grad()
    def generate(self, models, sample, prefix_tokens=None, constraints=None, **kwargs) -> list[list[dict]]:
        """Generate for a batch.

        Args:
            models: unused; the generator has its model.
            sample: a batch with ``net_input`` of ``src_tokens``.

        Returns:
            For each sentence one hypothesis in a list: ``tokens`` ending in [SEP], ``positional_scores``, their
            log-probabilities, 0 for a [SEP] that was not predicted; ``score``, the mean log-probability up to the
            [SEP]; ``steps``, ``alignment`` and ``attention``.
        """
        if prefix_tokens is not None or constraints is not None:
            raise ValueError("prefixes and constraints need an autoregressive model")
        self.model.eval()
        tokens, scores = self._fill(sample["net_input"]["src_tokens"])
        return [[self._hypothesis(*row)] for row in zip(tokens.cpu(), scores.cpu())]

    def _fill(self, src_tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Predict every [MASK]. *Shape:* (B, S) -> tokens and their log-probabilities, (B, T)."""
        length = self.model.length or src_tokens.shape[1]
        masks = src_tokens.new_ones(len(src_tokens), length, dtype=torch.bool)
        hidden, _ = self.model.decode(masks, self.model.encode(src_tokens))
        tokens = src_tokens.new_empty(len(hidden))
        scores = hidden.new_empty(len(hidden), dtype=torch.float32)
        for rows in row_chunks(hidden):
            logits = F.linear(hidden[rows], self.model.word_embeddings.weight).float()
            logits.index_fill_(-1, self.model.never_predicted, float("-inf"))
            best, tokens[rows] = logits.max(-1)
            scores[rows] = best - logits.logsumexp(-1)
        return tokens.view_as(masks), scores.view(masks.shape)

    def _hypothesis(self, tokens: Tensor, scores: Tensor) -> dict:
        """*Shapes:* (T), (T)."""
        ends = (tokens == self.eos).tolist()
        first = ends.index(False) if False in ends else 0
        end = ends.index(True, first) if True in ends[first:] else len(ends)
        # Where nothing ends the sentence, a [SEP] is added.
        tokens, scores = F.pad(tokens, (0, 1), value=self.eos), F.pad(scores, (0, 1))
        words = self.dictionary.collapse_repeats(tokens[first:end].tolist())
        kept = torch.tensor([*(first + position for position in words), end])
        return {
            "tokens": tokens[kept],
            "score": scores[: end + 1].sum() / min(end + 1, len(ends)),
            "positional_scores": scores[kept],
            "steps": 1,
            "alignment": None,
            "attention": None,
        }


# Our name -> BANG's; several of these are one matrix here, in this order.
_NAMES = {
    "positions": ["embed_positions"],
    "norm": ["emb_layer_norm"],
    "self_attention.qkv": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    "self_attention.relative": ["self_attn.relative_linear"],
    "self_attention.output": ["self_attn.out_proj"],
    "self_attention.norm": ["self_attn_layer_norm"],
    "cross_attention.query": ["encoder_attn.q_proj"],
    "cross_attention.key_value": ["encoder_attn.k_proj", "encoder_attn.v_proj"],
    "cross_attention.output": ["encoder_attn.out_proj"],
    "cross_attention.norm": ["encoder_attn_layer_norm"],
    "ffn.inner": ["fc1"],
    "ffn.outer": ["fc2"],
    "ffn.norm": ["final_layer_norm"],
}
_UNUSED = {"encoder.version", "decoder.version"}


def convert_bang(state: dict[str, Tensor], own: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """Our weights from BANG's.

    All forms of BANG have the same names. Of the two rows that some have as ``ngram_input_embed`` the last is the
    [MASK] of the parallel form; of tables with more positions than ours the first are taken. Both are what BANG's code
    does. Query, key and value may stand apart or as one ``in_proj_weight`` and ``in_proj_bias``.

    Args:
        state: by BANG's names.
        own: the model's state dict.
        source: where the weights come from, for messages.

    Raises:
        ValueError: a weight is missing, unknown or of another shape (names it and both shapes), or the embeddings of
            encoder and decoder differ.
    """
    hidden_size = own["mask_embedding"].shape[0]
    state = _split_attention(
        {name: tensor for name, tensor in state.items() if name not in _UNUSED}, hidden_size, source
    )
    names = {name: _their_names(name) for name in own}
    expected = [theirs for parts in names.values() for theirs in parts]
    sizes = "the model of these --encoder-layers and --decoder-layers"
    missing = [name for name in expected if name not in state]
    if missing:
        raise ValueError(f"{source} lacks {', '.join(missing[:3])} ({len(missing)} in all), which {sizes} needs")
    unknown = sorted(state.keys() - set(expected))
    if unknown:
        raise ValueError(f"{source} has {', '.join(unknown[:3])} ({len(unknown)} in all), unknown to {sizes}")
    converted = {}
    for name, parts in names.items():
        shape = list(own[name].shape)
        if name == "word_embeddings.weight":
            tensors = [_checked(state, theirs, shape, source) for theirs in parts]
            if not torch.equal(*tensors):
                raise ValueError(f"{source}: {' and '.join(parts)} differ, BANG shares them")
            converted[name] = tensors[0]
        elif name == "mask_embedding":
            rows = min(len(state[parts[0]]), 2)
            converted[name] = _checked(state, parts[0], [rows, hidden_size], source)[-1]
        elif name.endswith("positions.weight"):
            state[parts[0]] = state[parts[0]][: shape[0]]
            converted[name] = _checked(state, parts[0], shape, source)
        else:
            shape[0] //= len(parts)
            converted[name] = torch.cat([_checked(state, theirs, shape, source) for theirs in parts])
    return converted


def _checked(state: dict[str, Tensor], name: str, shape: list[int], source: str) -> Tensor:
    if list(state[name].shape) != shape:
        raise ValueError(
            f"{source}: {name} has shape {tuple(state[name].shape)}, the model needs {tuple(shape)}: give the "
            "checkpoint's sizes, --encoder-embed-dim, --max-positions and the like"
        )
    return state[name]


def _their_names(name: str) -> list[str]:
    """BANG's names for one of our weights."""
    if name == "word_embeddings.weight":
        return ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"]
    if name == "mask_embedding":
        return ["decoder.ngram_input_embed.weight"]
    ((side, layer, module, kind),) = re.findall(r"^(\w+)\.(layers\.\d+\.)?(.+)\.(\w+)$", name)
    parts = _NAMES[module]
    if side == "decoder":
        parts = [part.replace("self_attn.", "ngram_self_attn.") for part in parts]
    return [f"{side}.{layer}{part}.{kind}" for part in parts]


def _split_attention(state: dict[str, Tensor], hidden_size: int, source: str) -> dict[str, Tensor]:
    """Query, key and value apart."""
    split = {}
    for name, tensor in state.items():
        prefix, fused, kind = name.rpartition("in_proj_")
        if not fused:
            split[name] = tensor
            continue
        shape = [3 * hidden_size, hidden_size] if kind == "weight" else [3 * hidden_size]
        for projection, part in zip("qkv", _checked(state, name, shape, source).chunk(3)):
            split[f"{prefix}{projection}_proj.{kind}"] = part
    return split
