"""The paper's training objective from top to bottom, equations 1 to 4 (section "MIST").

The model of equation 1, ``p(Y | X) = prod_t p(y_t | X)``, is the two passes of ``mist.encoder``. Training

1. encodes the source ``[CLS] X [SEP]`` once;
2. glances: a first look at an all-[MASK] target decides how much of Y is revealed, which gives Y_M (GLAT);
3. predicts Y from Y_M and X: the NAT pass, whose loss is equation 3;
4. mixes its own output Y_p into the source, ``[CLS] Y_p [SEP] X [SEP]``, and predicts Y from Y_M again: the MIST pass,
   whose loss is equation 4;
5. predicts the target's length from X (footnote 1).

Equation 2 adds the losses up. Dimensions as in ``mist.encoder``.
"""

from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from mist_fairseq.mist.batch import Batch
from mist_fairseq.mist.config import SpecialTokens
from mist_fairseq.mist.dag import Paths
from mist_fairseq.mist.encoder import Encoder, SourceState, TwoPasses
from mist_fairseq.mist.glancing import glance, sentence_noise
from mist_fairseq.mist.heads import runs
from mist_fairseq.mist.mixing import mix_source
from mist_fairseq.mist.output_layer import TokenLoss
from mist_fairseq.mist.packing import padding_mask
from mist_fairseq.mist.targets import FixedLength, Targets

MIST_TARGETS = ["pseudo", "reference", "random"]
GLANCING_BY = ["first-look", "mist"]
LENGTH_LOSS_PER = ["token", "sentence"]


class Predictions(NamedTuple):  # fairseq's search for a NaN looks into tuples only
    """What the passes of one batch predict.

    Attributes:
        nat: losses and likeliest tokens of the NAT pass (equation 3).
        mist: of the MIST pass (equation 4); None without mixing.
        length_logits: *Shape:* (B, classes).
        revealed: number of target tokens shown, a scalar.
    """

    nat: TokenLoss
    mist: TokenLoss | None
    length_logits: Tensor
    revealed: Tensor


@dataclass(frozen=True)
class Objective:
    """L = L_NAT + L_MIST (equation 2) and the length loss, as sums over target tokens.

    Args:
        glancing_ratio: the share of the number of wrong tokens that is revealed; 0 turns glancing off.
        mist_loss_factor: weight of the MIST loss; 0 is the paper's "no mixing" and skips its pass.
        length_loss_factor: weight of the length loss.
        label_smoothing: probability mass spread over the vocabulary.
        mist_targets: what is mixed into the source: the NAT pass's ``pseudo`` target (the paper's MIST), the
            ``reference`` or ``random`` tokens, to tell what the gain comes from.
        glancing_by: whose wrong tokens glancing counts: the ``first-look``'s, or as in the authors' code the
            ``mist`` pass's after it, if there is one.
        length_loss_per: whether a sentence's length loss counts once a ``token`` of its target, or as in the authors'
            code the mean over the batch's sentences stands beside the mean over its tokens.
        order_agnostic_from: after so many updates masked tokens are learnt in the order that the model finds likeliest
            (``mist.order``); 0 for never.

    Raises:
        ValueError: a value is out of its range; names the option.
    """

    glancing_ratio: float = 0.5
    mist_loss_factor: float = 1.0
    length_loss_factor: float = 1.0
    label_smoothing: float = 0.1
    mist_targets: str = "pseudo"
    glancing_by: str = "first-look"
    length_loss_per: str = "token"
    order_agnostic_from: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.glancing_ratio <= 1:
            raise ValueError(f"--glancing-ratio is {self.glancing_ratio}, expected a number from 0 to 1")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(
                f"--label-smoothing is {self.label_smoothing}, expected a number from 0 up to, not including, 1"
            )
        if min(self.mist_loss_factor, self.length_loss_factor) < 0:
            raise ValueError("--mist-loss-factor and --length-loss-factor must not be negative")
        if self.order_agnostic_from < 0:
            raise ValueError(f"--order-agnostic-from is {self.order_agnostic_from}, expected 0 or more updates")
        choices = {"mist_targets": MIST_TARGETS, "glancing_by": GLANCING_BY, "length_loss_per": LENGTH_LOSS_PER}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                given = f"--{name.replace('_', '-')} is {getattr(self, name)}"
                raise ValueError(f"{given}, expected one of {', '.join(known)}")

    def predict(
        self,
        model: TwoPasses,
        batch: Batch,
        special: SpecialTokens,
        max_source: int,
        max_vertices: int = 0,
        updates: int = 0,
    ) -> Predictions:
        """Run all passes of a training step, with gradients.

        Evaluation does not glance: nothing of the target is revealed.

        Args:
            model: an ``Encoder`` or ``EncoderDecoder``.
            batch: sentence pairs.
            special: ids of the special tokens.
            max_source: most tokens of a mixed source, where it is cut.
            max_vertices: most vertices of a graph, for a model with paths (``mist.dag``).
            updates: how many the model has had.

        Raises:
            ValueError: label smoothing or an order-agnostic loss with ``--head dag``.
        """
        target, lengths = batch.target_tokens, batch.target_lengths
        paths = getattr(model.config, "head", None) == "dag"
        targets: Targets
        if paths:
            for name in ("label_smoothing", "order_agnostic_from"):
                if getattr(self, name):
                    given = f"--{name.replace('_', '-')} is {getattr(self, name)}"
                    raise ValueError(f"{given}, expected 0 with --head dag: paths have none")
            targets = Paths(cast("Encoder", model), batch, special, max_vertices)
        else:
            any_order = model.training and 0 < self.order_agnostic_from <= updates
            targets = FixedLength(model, batch, special, any_order)

        def mix(pseudo: Tensor, pseudo_lengths: Tensor) -> SourceState:
            options = {"limit": max_source, "sep": special.sep, "pad": special.pad}
            mixed, mixed_lengths = mix_source(pseudo, pseudo_lengths, batch.src_tokens, batch.src_lengths, **options)
            return model.encode_source(mixed, mixed_lengths, targets.mixed_index(mixed_lengths, mixed.shape[1]))

        # 1. The source, seen by the first look and the NAT pass alike.
        source = model.encode_source(batch.src_tokens, batch.src_lengths, batch.src_index)

        # 2. Glancing: Y_M.
        masked, revealed = targets.masks, torch.zeros_like(target)
        if model.training and self.glancing_ratio > 0:
            with torch.no_grad():
                guess = targets.guess(masked, source)
                if self.glancing_by == "mist" and self.mist_loss_factor > 0:
                    guess = targets.guess(masked, mix(guess.tokens, guess.lengths))
            # fairseq sets torch's seed anew for each update, from --seed and the number of the update.
            noise = sentence_noise(batch.ids, target.shape[1], torch.initial_seed())
            real = padding_mask(lengths, target.shape[1])
            shown, revealed = glance(target, guess.seen, real, noise, self.glancing_ratio, special.mask)
            masked = targets.place(shown, guess)

        # 3. The NAT pass: p(y_t | X), equations 1 and 3.
        nat, guess = targets.learn(masked, source, self.label_smoothing)

        # 4. The MIST pass: p(y_t | Y_p, X), equation 4.
        mist = None
        if self.mist_loss_factor > 0:
            pseudo, pseudo_lengths = target, lengths  # the reference
            if self.mist_targets == "pseudo":
                pseudo, pseudo_lengths = guess.tokens, guess.lengths  # Y_p
            elif self.mist_targets == "random":
                pseudo = random_targets(batch, special, model.config.vocab_size)
            mist, _ = targets.learn(masked, mix(pseudo, pseudo_lengths), self.label_smoothing)

        # 5. The length, from the source alone.
        return Predictions(nat, mist, model.length_logits(source), revealed.sum())

    def losses(self, predictions: Predictions, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to minimise, and its parts for logging, all sums over target tokens.

        fairseq divides the summed gradient by ONE number, that of target tokens. A sentence's length loss therefore
        counts once for each of its tokens, and a batch gives the gradients of its parts, however it is split; with
        *length_loss_per* ``sentence`` it does not.

        Returns:
            The loss, with a gradient; by name the parts and how many tokens and lengths are right, without.
        """
        target, nat, mist = batch.targets(), predictions.nat, predictions.mist
        loss = nat.loss
        parts = {"nat_loss": loss.detach(), "nll_loss": nat.nll, "correct": (nat.tokens == target).sum()}
        if mist is not None:
            loss = loss + self.mist_loss_factor * mist.loss  # equation 2
            parts["mist_loss"] = mist.loss.detach()
            parts["mist_correct"] = (mist.tokens == target).sum()
        lengths, length_logits = batch.target_lengths, predictions.length_logits
        length_loss = F.cross_entropy(length_logits, lengths, reduction="none")
        if self.length_loss_per == "token":
            length_loss = (length_loss * lengths).sum()
        else:
            length_loss = length_loss.mean() * len(target)
        loss = loss + self.length_loss_factor * length_loss
        parts["loss"], parts["length_loss"] = loss.detach(), length_loss.detach()
        parts["length_correct"] = (length_logits.detach().argmax(-1) == lengths).sum()
        parts["revealed"] = predictions.revealed
        return loss, parts


def random_targets(batch: Batch, special: SpecialTokens, vocab_size: int) -> Tensor:
    """Tokens drawn from the whole vocabulary, then [SEP], as long as the targets. -> (B, T)."""
    target = batch.target_tokens
    noise = sentence_noise(batch.ids, target.shape[1], ~torch.initial_seed())  # not the numbers that glancing takes
    tokens = noise.remainder(vocab_size)
    for never in runs(special.never_predicted):
        tokens = tokens.masked_fill((tokens >= never.start) & (tokens < never.stop), special.unk)
    return tokens.scatter(1, batch.target_lengths[:, None] - 1, special.sep)
