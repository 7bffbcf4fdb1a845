"""Non-autoregressive generation: single pass, MIST iterations and Mask-Predict, behind fairseq's commands."""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from mist_fairseq.data.dictionary import TokenizerDictionary
from mist_fairseq.engines.length_guesser import LengthGuesser
from mist_fairseq.generate.generator import Decoding
from mist_fairseq.mist.encoder import SourceState, padding_mask, real_positions

# fairseq's generation options that mean nothing, or something else, without an autoregressive decoder:
# name -> (its default, what to do instead).
AUTOREGRESSIVE_OPTIONS = {
    "sampling": (False, "the output is the argmax of one parallel pass"),
    "constraints": (None, "tokens are predicted independently"),
    "prefix_size": (0, "tokens are predicted independently"),
    "score_reference": (False, "use fairseq-validate for the loss of the references"),
    "diverse_beam_groups": (-1, "use --length-beam with --nbest"),
    "diversity_rate": (-1.0, "use --length-beam with --nbest"),
    "match_source_len": (False, "the length is predicted; see --min-length and --max-length"),
    "max_len_a": (0, "use --max-length"),
    "max_len_b": (200, "use --max-length"),
    "min_len": (1, "use --min-length"),
    "lenpen": (1, "hypotheses are compared by their mean log-probability"),
    "unnormalized": (False, "hypotheses are compared by their mean log-probability"),
    "unkpen": (0, "there is no search that could avoid [UNK]"),
    "temperature": (1.0, "the output is the argmax of one parallel pass"),
    "no_repeat_ngram_size": (0, "directly repeated words are collapsed; see --keep-repeats"),
    "print_alignment": (None, "there is no attention from target to source alone"),
    "replace_unk": (None, "there is no attention from target to source alone"),
    "lm_path": (None, "language-model fusion needs left-to-right decoding"),
    "iter_decode_max_iter": (10, "use --decoding-iterations"),
    "iter_decode_with_beam": (1, "use --length-beam"),
    "iter_decode_with_external_reranker": (False, "hypotheses are compared by their mean log-probability"),
    "iter_decode_eos_penalty": (0.0, "use --min-length"),
    "iter_decode_force_max_iter": (False, "a MIST fixed point cannot change any more"),
    "retain_dropout": (False, "decoding is deterministic"),
}


def refuse_options(options, refused: Mapping[str, tuple[object, str]], user: str):
    """Raise ValueError if an option of fairseq has another value than its default.

    Args:
        options: fairseq's generation options, or None.
        refused: name -> (its default, what to do instead).
        user: what the option does not work with, for the message.
    """
    for name, (default, instead) in refused.items():
        value = getattr(options, name, default)
        if value is not None and value != default:
            raise ValueError(f"--{name.replace('_', '-')} does not work with {user}: {instead}")


@dataclass
class Hypotheses:
    """A batch of outputs, one row a candidate.

    Attributes:
        tokens: *Shape:* (B, T).
        scores: log-probability of each token, *Shape:* (B, T).
        lengths: the final [SEP] counted, *Shape:* (B).
        steps: passes over the target, *Shape:* (B).
        history: tokens after each pass, each (B, T).
        length_scores: probabilities of a sentence's lengths, for all its candidates, or None.
    """

    tokens: Tensor
    scores: Tensor
    lengths: Tensor
    steps: Tensor
    history: list[Tensor]
    length_scores: Tensor | None = None

    def mean_score(self) -> Tensor:
        """Mean log-probability of the tokens, in fp64, where padding changes no digit of the sum. *Shape:* (B)."""
        real = padding_mask(self.lengths, self.tokens.shape[1])
        return self.scores.double().masked_fill(~real, 0.0).sum(1) / self.lengths


def least_confident(scores: Tensor, lengths: Tensor, number: Tensor) -> Tensor:
    """The positions that Mask-Predict masks again: the *number* lowest scores of each sentence.

    Args:
        scores: *Shape:* (B, T).
        lengths: real tokens of each, *Shape:* (B).
        number: how many, *Shape:* (B).

    Returns:
        Boolean, *Shape:* (B, T). Of equal scores the first goes first.
    """
    scores = scores.masked_fill(~padding_mask(lengths, scores.shape[1]), float("inf"))
    rank = scores.argsort(dim=1, stable=True).argsort(dim=1)
    return rank < torch.minimum(number, lengths)[:, None]


class NARGenerator:
    """What ``task.build_generator`` returns; fairseq calls ``generate``.

    The target length, final [SEP] counted, is predicted once and kept. ``single-pass`` fills that many [MASK]s in
    one pass. ``mist`` then mixes the output into the source and fills them again (paper, section "MIST"), until
    nothing changes any more. ``mask-predict`` masks the least confident tokens again, fewer in each pass
    (Ghazvininejad et al. 2019, linear decay).

    Args:
        models: one ``MistModel``.
        dictionary: the tokenizer.
        decoding: one of ``text_generator.DECODINGS``.
        iterations: passes over the target (the tables' "Iter." column), by default 1 for single-pass, else 3.
        length_beam: decode this many of the likeliest lengths and order them by mean log-probability.
        min_length, max_length: bounds of the length, in tokens before the final [SEP].
        keep_repeats: leave directly repeated words in the output.
        precision: ``fp32``, ``bf16`` or ``int8``.
        guesses: compute [MASK]s of this many likely lengths in the same pass as the source, so that a sentence takes
            one pass where the length is among them. For a single length only; on a GPU it would only wait.
        options: fairseq's generation options, None for their defaults.

    Raises:
        ValueError: an option or a combination cannot work; names it.
    """

    def __init__(
        self,
        models,
        dictionary: TokenizerDictionary,
        *,
        decoding: str = "single-pass",
        iterations: int | None = None,
        length_beam: int = 1,
        min_length: int = 1,
        max_length: int | None = None,
        keep_repeats: bool = False,
        precision: str = "fp32",
        guesses: int = 0,
        options=None,
    ):
        if len(models) != 1:
            raise ValueError(
                f"got {len(models)} models: ensembles are not supported; average the checkpoints into one instead"
            )
        refuse_options(options, AUTOREGRESSIVE_OPTIONS, "a non-autoregressive model")
        nbest = getattr(options, "nbest", 1)
        # Refuses what cannot work.
        passes = Decoding(decoding, iterations, length_beam, nbest, min_length, max_length).passes
        if guesses < 0 or (guesses and length_beam > 1):
            raise ValueError(f"--length-guesses {guesses}: expected 0 or more, and 0 with a --length-beam")
        self.model = models[0]
        self.dictionary = dictionary
        self.decoding = decoding
        self.iterations = passes
        self.length_beam = length_beam
        self.min_length = min_length
        self.max_length = max_length
        self.keep_repeats = keep_repeats
        self.precision = precision
        self.guesses = guesses
        self.guesser: LengthGuesser | None = None
        self.retain_history = bool(getattr(options, "retain_iter_history", False))
        self.retain_length_scores = False
        self.eos = dictionary.eos()
        self.symbols_to_strip_from_output = {dictionary.eos(), dictionary.pad()}

    @property
    def encoder(self):
        """What runs the passes: the engine that the model got when it was prepared for inference, or its encoder."""
        return self.model.engine or self.model.encoder

    @torch.no_grad()
    def generate(self, models, sample, prefix_tokens=None, constraints=None, **kwargs):
        """Generate for a batch.

        Args:
            models: unused; the generator has its model.
            sample: a batch with ``net_input`` of ``src_tokens`` and ``src_lengths``, and perhaps ``lengths`` that the
                outputs are to have, the final [SEP] counted, *Shape:* (B).

        Returns:
            For each sentence its hypotheses, best first: dictionaries with ``tokens``, ``score``,
            ``positional_scores``, ``steps``, ``alignment``, ``attention`` and, if asked for, ``history`` and
            ``length_scores``, the probability of each length from ``min_length`` on.

        Raises:
            ValueError: a source or an output is to have no tokens; or there are prefixes or constraints.
        """
        if prefix_tokens is not None or constraints is not None:
            raise ValueError("prefixes and constraints need an autoregressive model")
        self.model.eval()
        inputs = sample["net_input"]
        for what, lengths in (("a source has", inputs["src_lengths"]), ("an output is to have", sample.get("lengths"))):
            if lengths is not None and not lengths.is_cuda and lengths.min() < 1:  # a GPU would wait
                raise ValueError(f"{what} {int(lengths.min())} tokens, expected at least 1")
        with self.model.autocast(self.precision), getattr(self.encoder, "context", nullcontext)():
            hypotheses = self._decode(inputs["src_tokens"], inputs["src_lengths"], sample.get("lengths"))
        return self._finalize(hypotheses, beam=len(hypotheses.lengths) // len(inputs["src_tokens"]))

    # -- decoding -------------------------------------------------------------------------------------------

    def _decode(self, src_tokens: Tensor, src_lengths: Tensor, lengths: Tensor | None = None) -> Hypotheses:
        """*Shapes:* (B, S), (B), (B) -> B * K candidates, the K of a sentence side by side."""
        length_scores = None
        if self.guesses and lengths is None:
            source, lengths, (tokens, scores) = self._fill_guesses(src_tokens, src_lengths)
        else:
            source = self._encode_distinct(src_tokens, src_lengths)
            if self.retain_length_scores and lengths is None:
                length_scores = self._allowed_lengths(source).softmax(1)
            if lengths is None:
                lengths = self._predict_lengths(source).flatten()  # (B * K)
            if len(lengths) > len(src_tokens):
                rows = torch.arange(len(src_tokens), device=src_tokens.device)
                rows = rows.repeat_interleave(len(lengths) // len(src_tokens))
                source = source.select(rows)
                src_tokens, src_lengths = src_tokens[rows], src_lengths[rows]
            tokens, scores = self._fill(self._masks(lengths), lengths, source)
        found = Hypotheses(tokens, scores, lengths, torch.ones_like(lengths), [tokens], length_scores)
        if self.decoding == "mist":
            self._iterate_mist(found, src_tokens, src_lengths)
        elif self.decoding == "mask-predict":
            self._iterate_mask_predict(found, source)
        return found

    def _encode_distinct(self, src_tokens: Tensor, src_lengths: Tensor) -> SourceState:
        """Encode each distinct source once; data with several references repeats its sources."""
        if len(src_tokens) > 1 and not src_tokens.is_cuda:  # a GPU would wait
            rows = torch.cat([src_tokens, src_lengths[:, None]], dim=1)  # [PAD] may also be a source's last token
            distinct, inverse = torch.unique(rows, dim=0, return_inverse=True)
            if len(distinct) < len(src_tokens):
                return self._encode(distinct[:, :-1], distinct[:, -1]).select(inverse)
        return self._encode(src_tokens, src_lengths)

    def _encode(self, src_tokens: Tensor, src_lengths: Tensor) -> SourceState:
        return self.encoder.encode_source(src_tokens, src_lengths, self._positions(src_lengths, src_tokens.shape[1]))

    @staticmethod
    def _positions(lengths: Tensor, size: int) -> Tensor:
        """Flat indices of what to compute: the real positions; on a GPU all, as it would wait to learn which are real.

        *Shapes:* (B) -> (N), into B * size.
        """
        if lengths.is_cuda:
            return torch.arange(len(lengths) * size, device=lengths.device)
        return real_positions(lengths, size)

    def _predict_lengths(self, source: SourceState) -> Tensor:
        """The K likeliest lengths, final [SEP] counted; of equally likely ones the shortest first. -> (B, K)."""
        order = self._allowed_lengths(source).sort(dim=1, descending=True, stable=True).indices
        return order[:, : self.length_beam] + self.min_length + 1

    def _allowed_lengths(self, source: SourceState) -> Tensor:
        """Scores of the lengths from the shortest to the longest allowed one. -> (B, lengths)."""
        return self.encoder.length_logits(source)[:, self.min_length + 1 : self._longest() + 1]

    def _longest(self) -> int:
        """Most tokens of an output, the final [SEP] counted."""
        longest = self.model.limits.target
        if self.max_length is not None:
            longest = min(longest, self.max_length + 1)
        if self.min_length + 1 > longest:
            raise ValueError(
                f"--min-length {self.min_length} is too long: the model makes at most {longest - 1} tokens and [SEP]"
            )
        return longest

    def _masks(self, lengths: Tensor) -> Tensor:
        """[MASK]s of the given lengths, right-padded. *Shapes:* (B) -> (B, T)."""
        real = padding_mask(lengths, int(lengths.max()))
        return torch.where(real, self.dictionary.mask(), self.dictionary.pad())

    def _fill(self, tokens: Tensor, lengths: Tensor, source: SourceState) -> tuple[Tensor, Tensor]:
        """Predict every [MASK]; the other tokens stay, with score 0. *Shapes:* (B, T) -> tokens, scores (B, T)."""
        index = self._positions(lengths, tokens.shape[1])
        hidden = self.encoder.decode_target(tokens, lengths, index, source)
        return self._predict(tokens, index, hidden)

    def _predict(self, tokens: Tensor, index: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """The likeliest tokens in place of [MASK]s. *Shapes:* (B, T), (N), (N, D) -> tokens, scores (B, T)."""
        flat = tokens.flatten()
        masked = flat[index] == self.dictionary.mask()
        if not tokens.is_cuda and not masked.all():
            index, hidden, masked = index[masked], hidden[masked], masked[masked]
        predicted, scores = self.encoder.likeliest_tokens(hidden, self.model.never_predicted)
        if tokens.is_cuda:
            predicted, scores = torch.where(masked, predicted, flat[index]), scores.masked_fill(~masked, 0.0)
        filled = flat.index_copy(0, index, predicted).view_as(tokens)
        return filled, scores.new_zeros(len(flat)).index_copy(0, index, scores).view_as(tokens)

    def _fill_guesses(self, src_tokens: Tensor, src_lengths: Tensor):
        """Source state, lengths (B) and filled targets, by one pass where a length was guessed, else by two."""
        if self.guesser is None:
            if src_tokens.is_cuda or not hasattr(self.encoder, "encode_and_guess"):
                raise ValueError("--length-guesses is for mist_* architectures on a CPU: leave it at 0")
            limits = self.model.limits.source, self._longest()
            self.guesser = LengthGuesser(self.guesses, limits, self.min_length + 1)
        guesses = self.guesser.guess(src_lengths)  # (B, K)
        source, hidden = self.encoder.encode_and_guess(src_tokens, src_lengths, guesses, self.dictionary.mask())
        lengths = self._predict_lengths(source)  # (B, 1)
        right = guesses == lengths  # (B, K)
        lengths = lengths[:, 0]
        self.guesser.learn(src_lengths, lengths)
        hit, missed = right.any(1).nonzero()[:, 0], (~right.any(1)).nonzero()[:, 0]
        self.guesser.hits += len(hit)
        self.guesser.total += len(lengths)
        masks = self._masks(lengths)
        tokens, scores = masks.clone(), torch.zeros(masks.shape)
        width = min(masks.shape[1], hidden.shape[2])
        if len(hit):
            index = real_positions(lengths[hit], width)
            rows = hidden[hit, right[hit].int().argmax(1), :width].flatten(0, 1)[index]
            tokens[hit, :width], scores[hit, :width] = self._predict(masks[hit, :width], index, rows)
        if len(missed):
            tokens[missed], scores[missed] = self._fill(masks[missed], lengths[missed], source.select(missed))
        return source, lengths, (tokens, scores)

    def _iterate_mist(self, found: Hypotheses, src_tokens: Tensor, src_lengths: Tensor):
        """Mix the output into the source and fill again; a sentence that no longer changes is done."""
        active = torch.arange(len(found.lengths), device=src_tokens.device)
        for _ in range(1, self.iterations):
            previous, lengths = found.tokens[active], found.lengths[active]
            mixed = self._encode(*self.model.mix(previous, lengths, src_tokens[active], src_lengths[active]))
            width = int(lengths.max())
            tokens, scores = self._fill(self._masks(lengths), lengths, mixed)
            found.tokens = found.tokens.clone()
            found.tokens[active, :width] = tokens
            found.scores[active, :width] = scores
            found.steps[active] += 1
            found.history.append(found.tokens)
            active = active[self._changed(tokens, previous[:, :width])]
            if len(active) == 0:
                break

    @staticmethod
    def _changed(tokens: Tensor, previous: Tensor) -> Tensor:
        """Which sentences a MIST iteration changed. *Shapes:* (B, T), (B, T) -> (B)."""
        return (tokens != previous).any(1)

    def _iterate_mask_predict(self, found: Hypotheses, source: SourceState):
        """Mask the least confident tokens and predict these again, N in all, over the same source state."""
        for done in range(1, self.iterations):
            number = found.lengths * (self.iterations - done) // self.iterations
            masked = least_confident(found.scores, found.lengths, number)
            tokens, scores = self._fill(found.tokens.masked_fill(masked, self.dictionary.mask()), found.lengths, source)
            found.tokens = tokens
            found.scores = torch.where(masked, scores, found.scores)
            found.steps += 1
            found.history.append(tokens)

    # -- output ---------------------------------------------------------------------------------------------

    def _finalize(self, found: Hypotheses, beam: int) -> list[list[dict]]:
        """fairseq's hypotheses, the *beam* candidates of each sentence sorted by score."""
        means = found.mean_score().cpu()
        tokens, scores = found.tokens.cpu(), found.scores.float().cpu()
        lengths, steps = found.lengths.tolist(), found.steps.tolist()
        history = [step.cpu() for step in found.history] if self.retain_history else []
        candidates = []
        for row, length in enumerate(lengths):
            kept = self._kept(tokens[row, :length])
            hypothesis = {
                "tokens": tokens[row, kept],
                "score": means[row],
                "positional_scores": scores[row, kept],
                "steps": steps[row],
                "attention": None,
                "alignment": None,
            }
            if self.retain_history:
                hypothesis["history"] = [
                    {"tokens": step[row, self._kept(step[row, :length])]} for step in history[: steps[row]]
                ]
            if found.length_scores is not None:
                hypothesis["length_scores"] = found.length_scores[row // beam]
            candidates.append(hypothesis)
        return [
            sorted(candidates[i : i + beam], key=lambda hypothesis: -float(hypothesis["score"]))
            for i in range(0, len(candidates), beam)
        ]

    def _kept(self, tokens: Tensor) -> Tensor:
        """Positions of the final text.

        Like fairseq's other generators', hypotheses end in eos, so they are never empty: fairseq's own BLEU scorer
        crashes on those.
        """
        return torch.tensor(
            self.dictionary.tokenizer.text_positions(tokens.tolist(), self.keep_repeats), dtype=torch.long
        )
