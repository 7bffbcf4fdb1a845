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
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mist_fairseq.mist.config import SpecialTokens
from mist_fairseq.mist.encoder import SourceState, TwoPasses
from mist_fairseq.mist.glancing import glance, sentence_noise
from mist_fairseq.mist.heads import runs
from mist_fairseq.mist.hints import NONE, uniform_copy
from mist_fairseq.mist.mixing import mix_source
from mist_fairseq.mist.output_layer import OutputLayer, TokenLoss
from mist_fairseq.mist.output_layer import predicted_tokens as plain_predicted, token_loss as plain_token_loss
from mist_fairseq.mist.packing import padding_mask

MIST_TARGETS = ["pseudo", "reference", "random"]
GLANCING_BY = ["first-look", "mist"]
LENGTH_LOSS_PER = ["token", "sentence"]


@dataclass
class Batch:
    """Sentence pairs. A GPU would wait if it had to read the flat positions off the lengths; the collater knows them.

    Attributes:
        src_tokens: ``[CLS] X [SEP]``, right-padded, *Shape:* (B, S).
        src_lengths: *Shape:* (B).
        target_tokens: ``Y [SEP]``, right-padded, *Shape:* (B, T).
        target_lengths: *Shape:* (B).
        ids: of the sentences, for the random choices of glancing, *Shape:* (B).
        src_index, target_index, mixed_index: flat positions to compute in source, target and mixed source, *Shapes:*
            (N_S), (N), (N_M).
    """

    src_tokens: Tensor
    src_lengths: Tensor
    target_tokens: Tensor
    target_lengths: Tensor
    ids: Tensor
    src_index: Tensor
    target_index: Tensor
    mixed_index: Tensor

    def targets(self) -> Tensor:
        """The tokens of all targets in a row. -> (N)."""
        return self.target_tokens.flatten().index_select(0, self.target_index)


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
    hint_dropout: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.glancing_ratio <= 1:
            raise ValueError(f"--glancing-ratio is {self.glancing_ratio}, expected a number from 0 to 1")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(
                f"--label-smoothing is {self.label_smoothing}, expected a number from 0 up to, not including, 1"
            )
        if min(self.mist_loss_factor, self.length_loss_factor) < 0:
            raise ValueError("--mist-loss-factor and --length-loss-factor must not be negative")
        choices = {"mist_targets": MIST_TARGETS, "glancing_by": GLANCING_BY, "length_loss_per": LENGTH_LOSS_PER}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                given = f"--{name.replace('_', '-')} is {getattr(self, name)}"
                raise ValueError(f"{given}, expected one of {', '.join(known)}")

    def predict(self, model: TwoPasses, batch: Batch, special: SpecialTokens, max_source: int) -> Predictions:
        """Run all passes of a training step, with gradients.

        Evaluation does not glance: nothing of the target is revealed.

        Args:
            model: an ``Encoder`` or ``EncoderDecoder``.
            batch: sentence pairs.
            special: ids of the special tokens.
            max_source: most tokens of a mixed source, where it is cut.
        """
        target, lengths = batch.target_tokens, batch.target_lengths
        T, gold, never = target.shape[1], batch.targets(), special.never_predicted
        start = getattr(model.config, "target_start", "mask")

        import os

        pointer = getattr(model, "pointer", None)

        def look(tokens: Tensor, state: SourceState, hints: Tensor | None) -> OutputLayer:
            given = () if hints is None else (hints.masked_fill(tokens != special.mask, NONE),)
            hidden = model.decode_target(tokens, lengths, batch.target_index, state, *given)
            return (hidden, state) if pointer else model.output_layer(hidden)

        def token_loss(layer, gold, smoothing, never):
            if not pointer:
                return plain_token_loss(layer, gold, smoothing, never)
            hidden, state = layer
            index = batch.target_index
            on, off, attention = model.pointer_parts(hidden, index, T, state)
            log_p = model.token_logits(hidden).float().log_softmax(-1)
            of_gold = log_p.gather(1, gold[:, None])[:, 0]
            there = state.tokens[index // T] == gold[:, None]
            copied = attention.masked_fill(~there, -1e4).logsumexp(-1)
            nll = -torch.logaddexp(off + of_gold, on + copied)
            loss = (1 - smoothing) * nll + smoothing * -log_p.mean(-1)
            with torch.no_grad():
                p = log_p.exp() * off.exp()[:, None]
                p = p.scatter_add(1, state.tokens[index // T], attention.exp() * on.exp()[:, None])
                p[:, list(never)] = -1
                best = p.argmax(-1)
            return TokenLoss(loss.sum(), nll.sum().detach(), best)

        def predicted_tokens(layer, never):
            if not pointer:
                return plain_predicted(layer, never)
            return token_loss(layer, gold, 0.1, never).tokens

        def dropped(hints: Tensor, step: int) -> Tensor:
            rate = self.hint_dropout
            if os.environ.get("TRY_FADE"):
                rate = min(1.0, (torch.initial_seed() - 1) / float(os.environ["TRY_FADE"]))
            if not (model.training and rate):
                return hints
            noise = sentence_noise(batch.ids, T, torch.initial_seed() + step)
            return hints.masked_fill(noise.remainder(1 << 20) < rate * (1 << 20), NONE)

        def in_place(tokens: Tensor) -> Tensor:
            return _in_place_of(target, tokens, batch.target_index, special.pad)

        def mix(pseudo: Tensor) -> SourceState:
            options = {"limit": max_source, "sep": special.sep, "pad": special.pad}
            mixed, mixed_lengths = mix_source(pseudo, lengths, batch.src_tokens, batch.src_lengths, **options)
            return model.encode_source(mixed, mixed_lengths, batch.mixed_index)

        # 1. The source, seen by the first look and the NAT pass alike.
        source = model.encode_source(batch.src_tokens, batch.src_lengths, batch.src_index)
        hints = None
        if start == "source":
            hints = dropped(uniform_copy(batch.src_tokens, batch.src_lengths, lengths, T), 7)

        # 2. Glancing: Y_M.
        real = padding_mask(lengths, T)
        masked = target.masked_fill(real, special.mask)
        revealed = torch.zeros_like(real)
        if model.training and self.glancing_ratio > 0:
            with torch.no_grad():
                seen = in_place(predicted_tokens(look(masked, source, hints), never))
                if self.glancing_by == "mist" and self.mist_loss_factor > 0:
                    seen = in_place(predicted_tokens(look(masked, mix(seen), None if start == "mask" else seen), never))
            # fairseq sets torch's seed anew for each update, from --seed and the number of the update.
            noise = sentence_noise(batch.ids, T, torch.initial_seed())
            ratio = self.glancing_ratio
            if os.environ.get("TRY_GEND"):
                done = torch.initial_seed() - 1  # --seed 1
                ratio += (float(os.environ["TRY_GEND"]) - ratio) * min(1.0, done / float(os.environ["TRY_UPDATES"]))
            masked, revealed = glance(target, seen, real, noise, ratio, special.mask)
            if os.environ.get("TRY_UNIFORM"):  # CMLM's uniform masks for a share of the sentences
                n2 = sentence_noise(batch.ids, 3, torch.initial_seed() + 99).remainder(1 << 20).double() / (1 << 20)
                chosen = n2[:, 0] < float(os.environ["TRY_UNIFORM"])
                u = sentence_noise(batch.ids, T, torch.initial_seed() + 98).remainder(1 << 20).double() / (1 << 20)
                show = (u > n2[:, 1:2]) & real
                cm = torch.where(show | ~real, target, special.mask)
                masked = torch.where(chosen[:, None], cm, masked)
                revealed = torch.where(chosen[:, None], show, revealed)

        oaxe = model.training and torch.initial_seed() - 1 >= float(os.environ.get("TRY_OAXE", "1e9"))

        def golds(layer):
            return (
                _best_order(layer, target, lengths, masked == special.mask, batch.target_index, special.sep)
                if oaxe
                else gold
            )

        # 3. The NAT pass: p(y_t | X), equations 1 and 3.
        layer = look(masked, source, hints)
        nat = token_loss(layer, golds(layer), self.label_smoothing, never)

        # 4. The MIST pass: p(y_t | Y_p, X), equation 4.
        mist = None
        if self.mist_loss_factor > 0:
            pseudo = target  # the reference
            if self.mist_targets == "pseudo":
                pseudo = in_place(nat.tokens)  # Y_p
            elif self.mist_targets == "random":
                pseudo = random_targets(batch, special, model.config.vocab_size)
            hints = None if start == "mask" else dropped(pseudo, 8)
            layer = look(masked, mix(pseudo), hints)
            mist = token_loss(layer, golds(layer), self.label_smoothing, never)
            if os.environ.get("TRY_MIX2"):
                second = in_place(mist.tokens)
                hints = None if start == "mask" else dropped(second, 9)
                mist2 = token_loss(look(masked, mix(second), hints), gold, self.label_smoothing, never)
                mist = TokenLoss((mist.loss + mist2.loss) / 2, (mist.nll + mist2.nll) / 2, mist2.tokens)

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
        import os

        if os.environ.get("TRY_LEN"):  # neighbours get a share
            e = float(os.environ["TRY_LEN"])
            log_p = length_logits.float().log_softmax(-1)
            near = sum(log_p.gather(1, (lengths + d).clamp(0, log_p.shape[1] - 1)[:, None])[:, 0] for d in (-1, 1)) / 2
            length_loss = (1 - e) * length_loss - e * near
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


@torch.no_grad()
def _best_order(layer, target, lengths, masked, index, sep) -> Tensor:
    """The order of the masked target tokens that the model finds likeliest (OAXE). -> (N)."""
    from scipy.optimize import linear_sum_assignment

    gold = target.clone()
    T, start = target.shape[1], 0
    x = layer.x.detach().float()
    for b, length in enumerate(lengths.tolist()):
        rows = x[start : start + length]
        start += length
        places = (masked[b, :length] & (target[b, :length] != sep)).nonzero()[:, 0]
        if len(places) > 1:
            tokens = target[b, places]
            scores = rows[places] @ layer.weight[tokens].float().t() + layer.bias[tokens].float()
            _, column = linear_sum_assignment(-scores.numpy())
            gold[b, places] = tokens[torch.from_numpy(column)]
    return gold.flatten().index_select(0, index)


def _in_place_of(target: Tensor, tokens: Tensor, index: Tensor, pad: int) -> Tensor:
    """Tokens at their places in a target, padding elsewhere. *Shapes:* (B, T), (N), (N) -> (B, T)."""
    filled = torch.full_like(target, pad)
    filled.view(-1)[index] = tokens
    return filled
