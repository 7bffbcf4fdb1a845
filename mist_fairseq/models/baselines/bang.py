"""BANG (Qi et al. 2020) in its non-autoregressive form, a baseline of the paper's tables: fairseq's doors to it.

Training is fairseq's ``label_smoothed_cross_entropy``, of the target and its [SEP]; what lies behind does not count.
BANG's own criterion is the same in the form of fairseq 0.9, with a smoothing mass of e / V instead of e / (V - 1).
"""

from dataclasses import dataclass
from typing import Optional

import torch
import torch.nn.functional as F
from fairseq.models import BaseFairseqModel, register_model
from torch import Tensor

from mist_fairseq.data.dictionary import TokenizerDictionary
from mist_fairseq.generate.decoding import option
from mist_fairseq.mist.config import ENCODER_DECODER_OPTION_NAMES, EncoderDecoderConfig
from mist_fairseq.mist.encoder_decoder import MaskDecoder
from mist_fairseq.mist.heads import likeliest_with_scores
from mist_fairseq.mist.kernels import row_chunks
from mist_fairseq.mist.packing import unpack
from mist_fairseq.models.baselines.nat_mass import EncoderDecoderOptions
from mist_fairseq.models.nar_generator import Generator, refuse_options
from mist_fairseq.pretrained.mass_and_bang import read_bang
from mist_fairseq.pretrained.weights import check_vocabulary


@dataclass
class BangConfig(EncoderDecoderOptions):
    """Defaults are BANG-base."""

    pretrained: Optional[str] = option(
        None, "folder with vocab.txt of BERT (uncased) and one *.pt of microsoft/BANG: the initial weights"
    )
    bang_length: Optional[int] = option(
        None,
        "number of [MASK]s that generation reads, so most tokens of an output, its [SEP] counted; by default, as in "
        "BANG's code, what the longest source of the batch has",
    )
    max_positions: int = option(512, "most tokens of a source, and of a target")


@register_model("bang_nar", dataclass=BangConfig)
class BangNarModel(MaskDecoder, BaseFairseqModel):
    """``MaskDecoder`` as a model of fairseq; ValueError where it has no positions for ``--bang-length``."""

    def __init__(self, cfg: BangConfig, dictionary: TokenizerDictionary):
        length, limit = cfg.bang_length, cfg.max_positions
        if length is not None and not 1 <= length <= limit:
            raise ValueError(f"--bang-length is {length}, expected a number from 1 to --max-positions {limit}")
        names = ENCODER_DECODER_OPTION_NAMES.items()
        sizes = {size: getattr(cfg, name) for name, size in names if size != "length_classes"}
        super().__init__(EncoderDecoderConfig(len(dictionary), max_positions=limit, **sizes))
        self.length, self.limit, self.pad = length, limit, dictionary.pad()

    @classmethod
    def build_model(cls, cfg, task):
        """Called by the task's ``build_model``."""
        return cls(cfg, task.target_dictionary)

    def load_pretrained(self, folder: str, dictionary: TokenizerDictionary):
        """Load the weights of ``--pretrained``. Errors as of ``read_bang``."""
        check_vocabulary(folder, dictionary.tokenizer)
        self.load_state_dict(read_bang(folder, self.state_dict()))

    def max_positions(self) -> tuple[int, int]:
        """Most tokens of a source and of a target."""
        return self.limit, self.limit

    def forward(self, src_tokens: Tensor, src_lengths: Tensor, prev_output_tokens: Tensor) -> tuple[Tensor, None]:
        """Predict a token for every [MASK]: logits (B, T, V), zero at padding, and None.

        *Shapes:* ``X [SEP]``, padded on either side, (B, S), unused, and anything but padding for each [MASK], (B, T).
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


class BangGenerator(Generator):
    """Fills a fixed number of [MASK]s in one pass, drops the [SEP]s before the first word and cuts at the next.

    So does BANG's ``post_processed_nar.py`` with what is printed; it also drops [CLS] and what repeats the token or the
    word before. Here no special token but [SEP] is predicted, and repeated words, not pieces, collapse.
    """

    def __init__(self, model: BangNarModel, dictionary: TokenizerDictionary, options=None):
        user = "BANG's single parallel pass"
        refuse_options(options, user, advice="leave it")
        if getattr(options, "nbest", 1) != 1:
            raise ValueError(f"--nbest does not work with {user}: it gives one output")
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
            tokens[rows], scores[rows] = likeliest_with_scores(logits, self.tokenizer.special.never_predicted)
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
