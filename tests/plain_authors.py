"""What the authors' code (kongds/MIST) computes in training, written anew from a reading of it, slow and plain.

Their two models, ``MISTNAT`` and, without mixing, ``NAT``, are a BERT over one padded batch of ``[CLS] X [SEP] Y_M``;
every pass runs whole. A switch of ``Authors`` is one row of docs/fidelity.md: with its default it does as they do.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mist_fairseq.mist.config import SpecialTokens


@dataclass
class Authors:
    """A model under their names for weights."""

    weights: dict[str, Tensor]
    heads: int
    special: SpecialTokens
    max_source: int
    mixing: bool = True  # MISTNAT, not NAT
    glancing_ratio: float = 0.5
    label_smoothing: float = 0.1
    dropped: tuple[str, ...] = ()  # "hidden", "attention": all of it, as dropout of 1
    # What ours does otherwise.
    first_look: bool = False  # glancing counts the wrong tokens of the first look
    length_by_token: bool = False  # a sentence's length loss counts once a token
    keeps_sep: bool = False  # a mixed source that is cut ends in [SEP] all the same
    smooths_all: bool = False  # label smoothing over all tokens, in a cross entropy
    never: tuple[int, ...] = ()  # tokens that are not predicted

    def linear(self, x: Tensor, name: str) -> Tensor:
        return x @ self.weights[name + ".weight"].T + self.weights[name + ".bias"]

    def norm(self, x: Tensor, name: str) -> Tensor:
        x = (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, unbiased=False, keepdim=True) + 1e-12)
        return x * self.weights[name + ".weight"] + self.weights[name + ".bias"]

    def drop(self, x: Tensor, what: str = "hidden") -> Tensor:
        return x * (what not in self.dropped)

    def bert(self, tokens: Tensor, positions: Tensor, types: Tensor, sees: Tensor) -> Tensor:
        """Last hidden states, (B, L, D); *sees* (B, L, L) says which column a row looks at."""
        tables = (("word", tokens), ("position", positions), ("token_type", types))
        x = sum(self.weights[f"bert.embeddings.{name}_embeddings.weight"][ids] for name, ids in tables)
        x = self.drop(self.norm(x, "bert.embeddings.LayerNorm"))
        i = 0
        while (layer := f"bert.encoder.layer.{i}.") + "output.dense.weight" in self.weights:
            parts = (self.linear(x, f"{layer}attention.self.{name}") for name in ("query", "key", "value"))
            query, key, value = (part.unflatten(-1, (self.heads, -1)) for part in parts)
            scores = torch.einsum("blhd,bkhd->bhlk", query, key) / math.sqrt(query.shape[-1])
            shares = self.drop((scores - 10000.0 * ~sees[:, None]).softmax(-1), "attention")
            attended = torch.einsum("bhlk,bkhd->blhd", shares, value).flatten(2)
            x = self.norm(x + self.drop(self.linear(attended, layer + "attention.output.dense")),
                          layer + "attention.output.LayerNorm")  # fmt: skip
            inner = gelu(self.linear(x, layer + "intermediate.dense"))
            x = self.norm(x + self.drop(self.linear(inner, layer + "output.dense")), layer + "output.LayerNorm")
            i += 1
        return x

    def look(self, source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Length scores (B, classes) and token scores (B, T, V) of one pass."""
        S, T, pad = source.shape[1], target.shape[1], self.special.pad
        length = (source != pad).sum(1, keepdim=True)
        positions = torch.cat([torch.arange(S).expand(len(source), S), length + torch.arange(T)], dim=1)
        real = torch.cat([source, target], dim=1) != pad
        types = (torch.arange(S + T) >= S).long()
        sees = real[:, :, None] & real[:, None, :] & ((types[:, None] == 1) | (types[None, :] == 0))
        hidden = self.bert(torch.cat([source, target], dim=1), positions * real, types.expand_as(real), sees)
        mean = (hidden[:, :S] * real[:, :S, None]).sum(1) / length
        x = gelu(self.linear(hidden[:, S:], "cls.predictions.transform.dense"))
        x = self.norm(x, "cls.predictions.transform.LayerNorm")
        logits = x @ self.weights["cls.predictions.decoder.weight"].T + self.weights["cls.predictions.bias"]
        return mean @ self.weights["embed_length.weight"].T, logits

    def tokens(self, logits: Tensor) -> Tensor:
        return logits.index_fill(-1, torch.tensor(self.never, dtype=torch.long), -math.inf).argmax(-1)

    def mix(self, source: Tensor, pseudo: Tensor, target: Tensor) -> Tensor:
        """``[CLS] Y_p [SEP] X [SEP]``, padded to, or cut at, what a source may have."""
        sep, pad = self.special.sep, self.special.pad
        mixed = torch.full((len(source), self.max_source), pad)
        for row in range(len(source)):
            first, *rest = source[row][source[row] != pad].tolist()
            output = pseudo[row][target[row] != pad].tolist()
            tokens = [first, *output, *([] if output[-1] == sep else [sep]), *rest]
            cut = tokens[: self.max_source]
            if self.keeps_sep:
                cut[-1] = sep
            mixed[row, : len(cut)] = torch.tensor(cut)
        return mixed

    def both(self, source: Tensor, masked: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Length scores, token scores of the NAT pass and of the MIST pass that follows it."""
        lengths, nat = self.look(source, masked)
        mixed = self.mix(source, self.tokens(nat), masked) if self.mixing else None
        return lengths, nat, None if mixed is None else self.look(mixed, masked)[1]

    def glance(self, source: Tensor, target: Tensor, rand: Tensor) -> Tensor:
        """Y_M; where *rand* (B, T) is largest is revealed first."""
        masked = target.masked_fill(target != self.special.pad, self.special.mask)
        _, nat, mist = self.both(source, masked)
        seen = self.tokens(nat if mist is None or self.first_look else mist)
        for row, real in enumerate(target != self.special.pad):
            number = int(int((seen[row] != target[row])[real].sum()) * self.glancing_ratio)
            revealed = [t for t in rand[row].argsort(descending=True).tolist() if real[t]][:number]
            masked[row, revealed] = target[row, revealed]
        return masked

    def token_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """The sum over all tokens. *Shapes:* (B, T, V), (B, T)."""
        real = target != self.special.pad
        log_p, gold, e, V = logits[real].log_softmax(-1), target[real][:, None], self.label_smoothing, logits.shape[-1]
        if self.smooths_all or not e:
            return -((1 - e) * log_p.gather(1, gold).sum() + e * log_p.mean(-1).sum())
        q = torch.full_like(log_p, e / (V - 2)).index_fill(1, torch.tensor(self.special.pad), 0)
        q = q.scatter(1, gold, 1 - e)
        return (torch.xlogy(q, q) - q * log_p).sum()  # the divergence

    def losses(self, source: Tensor, target: Tensor, rand: Tensor) -> dict[str, Tensor]:
        """Means, by name, and the logits of both passes."""
        with torch.no_grad():
            masked = self.glance(source, target, rand)
        scores, nat, mist = self.both(source, masked)
        T = (target != self.special.pad).sum(1)
        length_loss = -scores.log_softmax(-1).gather(1, T[:, None])[:, 0]
        length_loss = (length_loss * T).sum() / T.sum() if self.length_by_token else length_loss.mean()
        found = {"length_loss": length_loss, "nat_logits": nat, "nat_loss": self.token_loss(nat, target) / T.sum()}
        if mist is not None:
            found |= {"mist_logits": mist, "mist_loss": self.token_loss(mist, target) / T.sum()}
        return found


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def batches(order: list[int], size: int, updates: int) -> list[list[int]]:
    """One shuffled list, read again and again; a batch may hold its end and its beginning."""
    return [[order[(start + i) % len(order)] for i in range(size)] for start in range(0, size * updates, size)]


def train(weights: dict[str, Tensor], gradients: list[dict[str, Tensor]], lr: float, warmup: int, total: int):
    """Clipping, AdamW of transformers 4 and its linear schedule, in place: one update for each of *gradients*."""
    m, v = ({name: torch.zeros_like(weight) for name, weight in weights.items()} for _ in range(2))
    for step, given in enumerate(gradients):
        rate = lr * (step / warmup if step < warmup else (total - step) / (total - warmup))
        norm = torch.cat([gradient.flatten() for gradient in given.values()]).norm()
        for name, weight in weights.items():
            gradient = given[name] * min(1.0, 1.0 / float(norm + 1e-6))
            m[name] = 0.9 * m[name] + 0.1 * gradient
            v[name] = 0.999 * v[name] + 0.001 * gradient**2
            corrected = rate * math.sqrt(1 - 0.999 ** (step + 1)) / (1 - 0.9 ** (step + 1))
            weight -= corrected * m[name] / (v[name].sqrt() + 1e-8)
            if not any(part in name for part in ("bias", "LayerNorm.weight")):
                weight -= rate * 0.01 * weight
