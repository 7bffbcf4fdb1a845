"""Prescribed output lengths and numbers of passes, so that systems with any weights do the same amount of work.

Every computation of a system still runs; only what decides its length, and when it stops, is replaced. A row of a
batch gets the length of its reference. Dimensions: B sentences, T target positions.
"""

import torch
import torch.nn.functional as F
from fairseq.iterative_refinement_generator import IterativeRefinementGenerator
from fairseq.models.nat import InsertionTransformerModel, LevenshteinTransformerModel, NATransformerModel
from fairseq.sequence_generator import SequenceGenerator
from torch import Tensor

from mist_fairseq.generator import NARGenerator
from mist_fairseq.models.bang import BangGenerator
from mist_fairseq.models.huggingface import HuggingFaceGenerator

_SURE = 1e4  # a logit that decides


class Forcing:
    """What a batch must give; ``prescribe`` sets it before each batch.

    Attributes:
        lengths: of the targets, special tokens counted as in the system's own data, *Shape:* (B).
        passes: over the target, None for the system's own number, *Shape:* (B).
    """

    def prescribe(self, lengths: Tensor, passes: Tensor | None):
        """*Shapes:* (B), (B)."""
        self.lengths, self.passes = lengths, passes


class LongestForcing(Forcing):
    """Gives all sentences of a batch the longest one's length, where no other way is open.

    Args:
        config: of Hugging Face's generation, to be changed.
    """

    def __init__(self, config):
        self.config = config

    def prescribe(self, lengths, passes):
        """*Shapes:* (B), (B)."""
        self.config.min_new_tokens = self.config.max_new_tokens = int(lengths.max())


def force(model, generator) -> Forcing:
    """Make a generator of fairseq or ours follow a ``Forcing``.

    Raises:
        ValueError: its lengths cannot be prescribed.
    """
    forcing = Forcing()
    if isinstance(generator, NARGenerator):
        _force_lengths_and_iterations(generator, forcing)
    elif isinstance(generator, SequenceGenerator):
        _force_end(model, generator.eos, forcing)
    elif isinstance(generator, IterativeRefinementGenerator) and isinstance(model, _REFINED):
        _force_passes(model, generator, forcing)
        if isinstance(model, InsertionTransformerModel):
            _force_insertions(model, forcing)
        elif isinstance(model, LevenshteinTransformerModel):
            _force_edits(model, forcing)
        else:
            model.decoder.forward_length_prediction = lambda *_, **__: forcing.lengths.clone()
    elif isinstance(generator, HuggingFaceGenerator):
        return LongestForcing(generator.config)
    elif not isinstance(generator, BangGenerator):  # always does the same amount of work
        raise ValueError(f"output lengths of {type(model).__name__} cannot be prescribed")
    return forcing


_REFINED = (InsertionTransformerModel, LevenshteinTransformerModel, NATransformerModel)


def _force_lengths_and_iterations(generator: NARGenerator, forcing: Forcing):
    """Ours: predict lengths and take others; iterate on, changed or not."""
    predict = generator._predict_lengths

    def lengths(source):
        beam = predict(source).shape[1]
        limit = generator.model.limits.target
        return forcing.lengths.clamp(max=limit)[:, None].expand(-1, beam)

    generator._predict_lengths = lengths
    generator._changed = lambda tokens, previous: torch.ones_like(tokens[:, 0], dtype=torch.bool)


def _force_end(model, eos: int, forcing: Forcing):
    """Beam search: every hypothesis ends at the prescribed length. The encoder's output carries the lengths along."""
    encode, decode = model.encoder.forward, model.decoder.forward

    def encoder(*args, **kwargs):
        encoded = encode(*args, **kwargs)
        encoded["src_lengths"] = [forcing.lengths[:, None]]
        return encoded

    def decoder(prev_output_tokens, encoder_out=None, **kwargs):
        logits, extra = decode(prev_output_tokens, encoder_out=encoder_out, **kwargs)
        ends = encoder_out["src_lengths"][0][:, 0] == prev_output_tokens.shape[1]
        logits[:, -1, eos] = torch.where(ends, _SURE, -_SURE).to(logits.dtype)
        return logits, extra

    model.encoder.forward, model.decoder.forward = encoder, decoder


def _force_passes(model, generator: IterativeRefinementGenerator, forcing: Forcing):
    """Iterative refinement stops where a pass changes nothing: so the last pass does, and no earlier one."""
    decode, usual = model.forward_decoder, generator.max_iter + 1

    def forward_decoder(decoder_out, encoder_out, **kwargs):
        if decoder_out.step == 0:
            forcing.left = forcing.passes
            if forcing.left is None:
                forcing.left = _natural_passes(model, forcing.lengths, usual)
            generator.max_iter = int(forcing.left.max()) - 1
            forcing.rows = torch.arange(len(forcing.lengths), device=forcing.lengths.device)
        forcing.last = forcing.left == 1
        before = decoder_out.output_tokens.clone()  # the decoder may write into it
        if isinstance(model, LevenshteinTransformerModel):
            kwargs["max_ratio"] = 1000  # no limit in terms of the source
        decoded = decode(decoder_out, encoder_out, **kwargs)
        tokens = decoded.output_tokens
        before = F.pad(before, (0, tokens.shape[1] - before.shape[1]), value=model.pad)
        tokens[forcing.last] = before[forcing.last]
        stuck = ~forcing.last & (tokens == before).all(1)
        tokens[stuck, 1] = torch.where(before[stuck, 1] == model.unk, model.eos, model.unk)
        forcing.left, forcing.rows = forcing.left[~forcing.last] - 1, forcing.rows[~forcing.last]
        return decoded

    model.forward_decoder = forward_decoder


def _natural_passes(model, lengths: Tensor, usual: int) -> Tensor:
    """As many as fit the length, if all gaps are filled at once, and one that changes nothing; or *usual*."""
    if not isinstance(model, InsertionTransformerModel):
        return torch.full_like(lengths, usual)
    return 1 + (lengths - 1).clamp(min=1).log2().ceil().long()


def _force_insertions(model, forcing: Forcing):
    """Insertion Transformer: as many gaps filled in each pass as bring the length about in time."""
    insert = model.decoder.forward_word_ins

    def forward_word_ins(normalize, encoder_out, prev_output_tokens):
        scores = insert(normalize=normalize, encoder_out=encoder_out, prev_output_tokens=prev_output_tokens)
        missing = forcing.lengths[forcing.rows] - prev_output_tokens.ne(model.pad).sum(1)  # (B)
        number = (missing / (forcing.left - 1).clamp(min=1)).ceil()
        gap = torch.arange(scores.shape[1], device=scores.device)
        scores[:, :, model.pad] = torch.where(gap < number[:, None], -_SURE, _SURE).to(scores.dtype)
        return scores

    model.decoder.forward_word_ins = forward_word_ins


def _force_edits(model, forcing: Forcing):
    """Levenshtein Transformer: all placeholders in the first pass, then one token deleted and inserted anew."""
    delete, placeholders = model.decoder.forward_word_del, model.decoder.forward_mask_ins

    def forward_word_del(**kwargs):
        scores, attention = delete(**kwargs)
        decided = torch.full_like(scores, -_SURE)
        decided[:, :, 0] = 0
        decided[~forcing.last, 1, 1] = _SURE
        return decided, attention

    def forward_mask_ins(**kwargs):
        scores, attention = placeholders(**kwargs)
        number = forcing.lengths[forcing.rows] - kwargs["prev_output_tokens"].ne(model.pad).sum(1)  # (B)
        decided = torch.full_like(scores, -_SURE)
        decided[:, :, 0] = 0
        decided[:, 0] = -_SURE
        decided[:, 0].scatter_(1, number.clamp(0, scores.shape[2] - 1)[:, None], _SURE)
        return decided, attention

    model.decoder.forward_word_del, model.decoder.forward_mask_ins = forward_word_del, forward_mask_ins
