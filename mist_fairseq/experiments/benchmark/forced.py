"""Prescribed output lengths and numbers of passes, so that systems with any weights do the same amount of work.

Every computation of a system still runs; only what decides its length, and when it stops, is replaced. A row of a
batch gets the length of its reference. Dimensions: B sentences, T target positions.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from fairseq.iterative_refinement_generator import IterativeRefinementGenerator
from fairseq.models.nat import InsertionTransformerModel, LevenshteinTransformerModel, NATransformerModel
from fairseq.sequence_generator import SequenceGenerator
from torch import Tensor

from mist_fairseq.models.baselines.bang import BangGenerator
from mist_fairseq.models.baselines.huggingface_generator import HuggingFaceGenerator
from mist_fairseq.models.nar_generator import NARGenerator

_REFINED = (InsertionTransformerModel, LevenshteinTransformerModel, NATransformerModel)
_SURE = 1e4  # a logit that decides

# What is called before each batch with its sentences' ids, lengths and passes, (B) each: lengths of targets, special
# tokens counted as in the system's own data; without passes the system takes its own number.
Forcing = Callable[[Tensor, Tensor, Tensor | None], object]


class _Refinement:
    """Keeps track of the B' sentences that iterative refinement has not finished.

    *left* are the passes left to each, *lengths* theirs, *last* tells for which this is the last pass, (B') all.
    """

    def __init__(self, model, generator: IterativeRefinementGenerator):
        self.model, self.generator, self.decode = model, generator, model.forward_decoder
        self.usual = generator.max_iter + 1
        model.forward_decoder = self.forward_decoder

    def prescribe(self, ids: Tensor, lengths: Tensor, passes: Tensor | None):
        """Begin a batch; see ``Forcing``."""
        if passes is None and isinstance(self.model, InsertionTransformerModel):
            # From <s> </s> with one gap, all gaps filled in each pass, and one pass that changes nothing.
            passes = 1 + (lengths - 1).log2().ceil().long()
        self.left = torch.full_like(lengths, self.usual) if passes is None else passes
        self.lengths = lengths
        # fairseq reads it before it calls the model.
        self.generator.max_iter = int(self.left.max()) - 1

    def forward_decoder(self, decoder_out, encoder_out, **kwargs):
        """Make the last pass change nothing, and every earlier one something: iterative refinement stops there."""
        model, self.last = self.model, self.left == 1
        before = decoder_out.output_tokens.clone()  # the decoder may write into it
        if isinstance(model, LevenshteinTransformerModel):
            kwargs["max_ratio"] = 1000  # no limit in terms of the source
        decoded = self.decode(decoder_out, encoder_out, **kwargs)
        tokens = decoded.output_tokens
        before = F.pad(before, (0, tokens.shape[1] - before.shape[1]), value=model.pad)
        tokens[self.last] = before[self.last]
        stuck = ~self.last & (tokens == before).all(1)
        one, other = sorted({*range(6)} - {model.pad, model.bos, model.eos, model.unk})[:2]
        tokens[stuck, 1] = torch.where(before[stuck, 1] == one, other, one)
        self.left, self.lengths = self.left[~self.last] - 1, self.lengths[~self.last]
        return decoded


def force(model, generator) -> Forcing:
    """Make a generator do what it is told before each batch; ValueError if its lengths cannot be prescribed."""
    if isinstance(generator, IterativeRefinementGenerator) and isinstance(model, _REFINED):
        if generator.beam_size > 1:
            raise ValueError("output lengths cannot be prescribed with --iter-decode-with-beam: leave it at 1")
        refinement = _Refinement(model, generator)
        if isinstance(model, InsertionTransformerModel):
            _force_insertions(model, refinement)
        elif isinstance(model, LevenshteinTransformerModel):
            _force_edits(model, refinement)
        else:
            model.decoder.forward_length_prediction = lambda *_, **__: refinement.lengths.clone()
        return refinement.prescribe
    if isinstance(generator, HuggingFaceGenerator):

        def give_all_the_longest(ids, lengths, passes):  # nothing else is offered
            generator.config.min_new_tokens = generator.config.max_new_tokens = int(lengths.max())

        return give_all_the_longest
    if isinstance(generator, NARGenerator):  # takes lengths with a batch
        generator.stop_unchanged = False
    elif isinstance(generator, SequenceGenerator):
        return _force_end(generator)
    # BANG always does the same amount of work; an engine without a model takes lengths with each call.
    elif model is not None and not isinstance(generator, BangGenerator):
        raise ValueError(f"output lengths of {type(model).__name__} cannot be prescribed")
    return lambda *_: None


def _force_end(generator: SequenceGenerator) -> Forcing:
    """Make every hypothesis of beam search end at the prescribed length."""
    search, given = generator.search.step, dict[str, Tensor]()

    def step(step, lprobs, scores, prev_output_tokens=None, original_batch_idxs=None):
        # The sentences that are not finished, by their ids.
        rows = (original_batch_idxs[:, None] == given["ids"]).int().argmax(1)
        ends = given["lengths"][rows] == step + 1
        lprobs[:, :, generator.eos] = torch.where(ends, _SURE, -_SURE).to(lprobs.dtype)[:, None]
        return search(step, lprobs, scores, prev_output_tokens, original_batch_idxs)

    generator.search.step = step
    return lambda ids, lengths, _: given.update(ids=ids, lengths=lengths)


def _force_insertions(model, forcing: _Refinement):
    """Make the Insertion Transformer fill as many gaps in each pass as bring the length about in time."""
    insert = model.decoder.forward_word_ins

    def forward_word_ins(normalize, encoder_out, prev_output_tokens):
        scores = insert(normalize=normalize, encoder_out=encoder_out, prev_output_tokens=prev_output_tokens)
        missing = forcing.lengths - prev_output_tokens.ne(model.pad).sum(1)  # (B)
        number = (missing / (forcing.left - 1).clamp(min=1)).ceil()
        gap = torch.arange(scores.shape[1], device=scores.device)
        scores[:, :, model.pad] = torch.where(gap < number[:, None], -_SURE, _SURE).to(scores.dtype)
        return scores

    model.decoder.forward_word_ins = forward_word_ins


def _force_edits(model, forcing: _Refinement):
    """Make the Levenshtein Transformer insert all placeholders in the first pass, then replace a token in each."""
    delete, placeholders = model.decoder.forward_word_del, model.decoder.forward_mask_ins

    def nothing(scores: Tensor) -> Tensor:
        decided = torch.full_like(scores, -_SURE)
        decided[:, :, 0] = 0
        return decided

    def forward_word_del(**kwargs):
        scores, attention = delete(**kwargs)
        decided = nothing(scores)
        decided[~forcing.last, 1, 1] = _SURE
        return decided, attention

    def forward_mask_ins(**kwargs):
        scores, attention = placeholders(**kwargs)
        number = forcing.lengths - kwargs["prev_output_tokens"].ne(model.pad).sum(1)  # (B)
        decided = nothing(scores)
        decided[:, 0] = -_SURE
        decided[:, 0].scatter_(1, number.clamp(0, scores.shape[2] - 1)[:, None], _SURE)
        return decided, attention

    model.decoder.forward_word_del, model.decoder.forward_mask_ins = forward_word_del, forward_mask_ins
