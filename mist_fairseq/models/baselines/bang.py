"""BANG (Qi et al. 2020) in its non-autoregressive form, a baseline of the paper's tables: fairseq's doors to it.

Training is fairseq's ``label_smoothed_cross_entropy``, of the target and its [SEP]; what lies behind does not count.
BANG's own criterion is the same in the form of fairseq 0.9, with a smoothing mass of e / V instead of e / (V - 1).
"""

from argparse import Namespace
from dataclasses import dataclass, field, fields
from typing import Optional

import torch
import torch.nn.functional as F
from fairseq.dataclass import FairseqDataclass
from fairseq.dataclass.utils import gen_parser_from_dataclass
from fairseq.models import BaseFairseqModel, register_model, register_model_architecture
from torch import Tensor

from mist_fairseq.data.dictionary import TokenizerDictionary
from mist_fairseq.mist.config import ENCODER_DECODER_OPTION_NAMES, EncoderDecoderConfig
from mist_fairseq.mist.encoder_decoder import MaskDecoder
from mist_fairseq.mist.heads import likeliest_with_scores
from mist_fairseq.mist.kernels import row_chunks
from mist_fairseq.mist.packing import unpack
from mist_fairseq.models.generator import AUTOREGRESSIVE_OPTIONS, Generator, refuse_options
from mist_fairseq.pretrained.bang import read_bang
from mist_fairseq.pretrained.folder import check_vocabulary

_PRETRAINED_HELP = "folder with vocab.txt of BERT (uncased) and one *.pt of microsoft/BANG: the initial weights"
_LENGTH_HELP = (
    "number of [MASK]s that generation reads, so most tokens of an output, its [SEP] counted; by default, as in BANG's "
    "code, what the longest source of the batch has"
)


@dataclass
class BangConfig(FairseqDataclass):
    """Defaults are BANG-base."""

    pretrained: Optional[str] = field(default=None, metadata={"help": _PRETRAINED_HELP})
    bang_length: Optional[int] = field(default=None, metadata={"help": _LENGTH_HELP})
    encoder_layers: int = field(default=6, metadata={"help": "number of encoder layers"})
    decoder_layers: int = field(default=6, metadata={"help": "number of decoder layers"})
    encoder_embed_dim: int = field(default=768, metadata={"help": "hidden size of encoder and decoder"})
    encoder_ffn_embed_dim: int = field(default=3072, metadata={"help": "inner size of the feed-forward networks"})
    encoder_attention_heads: int = field(default=12, metadata={"help": "number of attention heads"})
    max_positions: int = field(default=512, metadata={"help": "most tokens of a source, and of a target"})
    dropout: float = field(default=0.1, metadata={"help": "dropout of embeddings and sub-layers"})
    attention_dropout: float = field(default=0.1, metadata={"help": "dropout of attention weights"})
    activation_dropout: float = field(default=0.1, metadata={"help": "dropout inside the feed-forward networks"})


@register_model("bang_nar")
class BangNarModel(MaskDecoder, BaseFairseqModel):
    """``MaskDecoder`` as a model of fairseq, with the sizes of *cfg* and the special ids of *dictionary*.

    Raises:
        ValueError: ``--bang-length`` is no number that the model has positions for.
    """

    # Without a dataclass in the registry, because fairseq would copy the configuration of an architecture that has its
    # model's name, and --pretrained would stay in what checkpoints store.

    def __init__(self, cfg: Namespace | BangConfig, dictionary: TokenizerDictionary):
        length, limit = cfg.bang_length, cfg.max_positions
        if length is not None and not 1 <= length <= limit:
            raise ValueError(f"--bang-length is {length}, expected a number from 1 to --max-positions {limit}")
        names = ENCODER_DECODER_OPTION_NAMES.items()
        sizes = {size: getattr(cfg, option) for option, size in names if size != "length_classes"}
        super().__init__(EncoderDecoderConfig(len(dictionary), max_positions=limit, **sizes))
        self.length, self.limit, self.pad = length, limit, dictionary.pad()
        self.never_predicted = dictionary.tokenizer.special.never_predicted

    @classmethod
    def add_args(cls, parser):
        """The options of ``BangConfig``."""
        gen_parser_from_dataclass(parser, BangConfig(), delete_default=True)

    @classmethod
    def build_model(cls, cfg, task):
        """Build the model; when training starts, with the weights of ``--pretrained``.

        Raises:
            FileNotFoundError: the folder lacks a file.
            ValueError: it has another vocabulary than the data, or weights that do not fit; names them.
        """
        model = cls(cfg, task.target_dictionary)
        if cfg.pretrained:
            check_vocabulary(cfg.pretrained, task.target_dictionary.tokenizer)
            model.load_state_dict(read_bang(cfg.pretrained, model.state_dict()))
            cfg.pretrained = None  # in what checkpoints store: these need the folder no more
        return model

    def max_positions(self) -> tuple[int, int]:
        """Most tokens of a source and of a target."""
        return self.limit, self.limit

    def forward(self, src_tokens: Tensor, src_lengths: Tensor, prev_output_tokens: Tensor) -> tuple[Tensor, None]:
        """Predict a token for every [MASK]: logits (B, T, V), zero at padding, and None.

        Args:
            src_tokens: ``X [SEP]``, padded on either side, *Shape:* (B, S).
            src_lengths: unused.
            prev_output_tokens: where it is not padding, a [MASK] is read, *Shape:* (B, T).
        """
        real = prev_output_tokens.ne(self.pad)
        hidden, index = self.decode(src_tokens, src_tokens.ne(self.pad), real)
        return unpack(self.token_logits(hidden), index, *real.shape), None

    def get_normalized_probs(self, net_output, log_probs, sample=None):
        """(Log-)probabilities of ``forward``'s logits, in fp32. *Shape:* (B, T, V)."""
        logits = net_output[0].float()
        return logits.log_softmax(-1) if log_probs else logits.softmax(-1)

    def build_generator(self, dictionary: TokenizerDictionary, args) -> "BangGenerator":
        """Called by the task's ``build_generator``."""
        return BangGenerator(self, dictionary, args)


@register_model_architecture("bang_nar", "bang_nar")
def bang_nar(args):
    """BANG-base: 6 + 6 layers, 768 wide, 12 heads."""
    for option in fields(BangConfig):
        if not hasattr(args, option.name):
            setattr(args, option.name, option.default)


class BangGenerator(Generator):
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
        refused["nbest"] = (1, "it gives one output")
        refuse_options(options, refused, "BANG's single parallel pass")
        super().__init__(model, dictionary.pad(), dictionary.eos())
        self.tokenizer = dictionary.tokenizer

    def hypotheses(self, sample: dict) -> list[list[dict]]:
        """One of each sentence; a [SEP] that was not predicted counts 0 in the log-probabilities."""
        tokens, scores = self._fill(sample["net_input"]["src_tokens"])
        return [[self._hypothesis(*row)] for row in zip(tokens.cpu(), scores.cpu())]

    def _fill(self, src_tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Predict every [MASK]. *Shape:* (B, S) -> tokens and their log-probabilities, (B, T)."""
        masks = src_tokens.new_ones(len(src_tokens), self.model.length or src_tokens.shape[1], dtype=torch.bool)
        hidden, _ = self.model.decode(src_tokens, src_tokens.ne(self.pad), masks)
        tokens = src_tokens.new_empty(len(hidden))
        scores = hidden.new_empty(len(hidden), dtype=torch.float32)
        for rows in row_chunks(hidden):
            logits = self.model.token_logits(hidden[rows])
            tokens[rows], scores[rows] = likeliest_with_scores(logits, self.model.never_predicted)
        return tokens.view_as(masks), scores.view(masks.shape)

    def _hypothesis(self, tokens: Tensor, scores: Tensor) -> dict:
        """*Shapes:* (T), (T). The score is the mean log-probability up to the [SEP] that ends the sentence."""
        ends = (tokens == self.eos).tolist()
        first = ends.index(False) if False in ends else 0
        end = ends.index(True, first) if True in ends[first:] else len(ends)
        # Where nothing ends the sentence, a [SEP] is added.
        tokens, scores = F.pad(tokens, (0, 1), value=self.eos), F.pad(scores, (0, 1))
        kept = self.tokenizer.text_positions(tokens[first : end + 1].tolist(), keep_repeats=False)
        positions = first + torch.tensor(kept)
        score = scores[: end + 1].sum() / min(end + 1, len(ends))
        made = {"tokens": tokens[positions], "score": score, "positional_scores": scores[positions]}
        return {**made, "steps": 1, "alignment": None, "attention": None}
