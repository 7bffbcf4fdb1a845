"""A head with paths, in place of a fixed length: DA-Transformer's (Huang et al. 2022), and its loss.

The target pass runs over more positions than the target has tokens, the *vertices* of a directed acyclic graph. From
each vertex an edge leads to each later one, with a probability, and each predicts a token. A path from the first
vertex, which says nothing, to the last spells a text, its last token [SEP]. So a text's length is its path's, and
texts that say the same in other words have paths of their own (``--head dag``).

    p(Y | X) = sum over all paths a of prod_t p(a_t | a_t-1) p(y_t | a_t)

How a text is read off the graph is in ``mist.path_search``. Dimensions: B sentences, T target tokens, L vertices, H
heads, D hidden size, N real vertices of a batch, V vocabulary.
"""

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from mist_fairseq.mist.batch import Batch, Guess
from mist_fairseq.mist.config import EncoderConfig, SpecialTokens
from mist_fairseq.mist.heads import likeliest_with_scores
from mist_fairseq.mist.kernels import Linear, computing_dtype, linear, row_chunks
from mist_fairseq.mist.output_layer import TokenLoss, rows_at_a_time
from mist_fairseq.mist.packing import pack, padding_mask, real_positions, unpack
from mist_fairseq.mist.path_search import NO_EDGE, count_vertices, lookahead, spell

if TYPE_CHECKING:
    from mist_fairseq.mist.encoder import Encoder, SourceState


class TransitionHead(nn.Module):
    """Scores the edges: several softmaxes over the later vertices, and a gate that mixes them (equation 3 there)."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        size, self.heads = config.hidden_size, config.heads
        self.query_key = Linear(size, 2 * size, not config.without_biases)
        self.gate = nn.Linear(size, self.heads, not config.without_biases)

    def forward(self, hidden: Tensor, vertices: Tensor) -> Tensor:
        """Log-probabilities of the edges, in fp32, ``NO_EDGE`` where there is none.

        *Shapes:* hidden (B, L, D), vertices (B), the real ones of each -> (B, L, L), from and to.
        """
        B, L = hidden.shape[:2]
        query, key = (
            self.query_key(hidden.flatten(0, 1)).view(B, L, 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        )  # (B, H, L, d) each
        scores = (query * query.shape[-1] ** -0.5 @ key.transpose(2, 3)).float()
        order = torch.arange(L, device=hidden.device)
        there = (order > order[:, None]) & padding_mask(vertices, L)[:, None]  # (B, L, L)
        log_p = scores.masked_fill(~there[:, None], NO_EDGE).log_softmax(-1)
        gates = self.gate(hidden).float().log_softmax(-1).transpose(1, 2)  # (B, H, L)
        edges: Tensor = (log_p + gates[..., None]).logsumexp(1).masked_fill(~there, NO_EDGE)
        return edges


def path_log_likelihood(emissions: Tensor, edges: Tensor, lengths: Tensor, vertices: Tensor) -> Tensor:
    """log p(Y | X), the sum over all paths, by the forward algorithm. -> (B).

    Args:
        emissions: log-probability of each target token at each vertex, *Shape:* (B, T, L).
        edges: of ``TransitionHead``, *Shape:* (B, L, L).
        lengths: target tokens, less than the vertices, *Shape:* (B).
        vertices: of each sentence, *Shape:* (B).
    """
    ends = [edges[:, 0] + emissions[:, 0]]  # (B, L): of paths that end there with the token
    for t in range(1, emissions.shape[1]):
        ends.append((ends[-1][:, :, None] + edges).logsumexp(1) + emissions[:, t])
    rows = torch.arange(len(lengths), device=lengths.device)
    return torch.stack(ends, 1)[rows, lengths - 1, vertices - 1]


@torch.no_grad()
def best_path(emissions: Tensor, edges: Tensor, lengths: Tensor, vertices: Tensor) -> Tensor:
    """The vertex of each target token on the likeliest path, 0 at padding; arguments of ``path_log_likelihood``.

    *Shape:* -> (B, T).
    """
    T = emissions.shape[1]
    best, origins = edges[:, 0] + emissions[:, 0], []
    for t in range(1, T):
        through, origin = (best[:, :, None] + edges).max(1)
        # A shorter target has ended: its path stays where it is.
        goes_on = (t < lengths)[:, None]
        best = torch.where(goes_on, through + emissions[:, t], best)
        origins.append(torch.where(goes_on, origin, torch.arange(origin.shape[1], device=origin.device)))
    places = [vertices - 1]
    for origin in reversed(origins):
        places.append(origin.gather(1, places[-1][:, None])[:, 0])
    return torch.stack(places[::-1], 1) * padding_mask(lengths, T)


class Emissions(torch.autograd.Function):
    """What the vertices predict, a few rows at a time: the logits (N, V) never exist whole.

    Args:
        x, weight, bias: of an ``OutputLayer``.
        wanted: the target's tokens of each vertex's sentence, *Shape:* (N, T).
        never: tokens that are never predicted.

    Returns:
        Log-probabilities of the wanted tokens (N, T) in fp32, with gradient; the likeliest tokens (N) and their
        log-probabilities (N) without.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, wanted: Tensor, never: tuple[int, ...]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The numbers; the logits are made again for the gradient."""
        ctx.dtype = computing_dtype(x)
        ctx.save_for_backward(x, weight, bias, wanted)
        log_p = x.new_empty(wanted.shape, dtype=torch.float32)
        tokens, scores = torch.empty_like(wanted[:, 0]), x.new_empty(len(x), dtype=torch.float32)
        for rows, wide in _logits(x, weight, bias, ctx.dtype):
            log_p[rows] = wide.gather(1, wanted[rows]) - wide.logsumexp(1, keepdim=True)
            tokens[rows], scores[rows] = likeliest_with_scores(wide, never)
        ctx.mark_non_differentiable(tokens, scores)
        return log_p, tokens, scores

    @staticmethod
    def backward(ctx: Any, of_log_p: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        """The gradient of log p(v) with respect to the logits is [x is v] - p."""
        x, weight, bias, wanted = ctx.saved_tensors
        of_x, of_weight = torch.empty_like(x), torch.zeros_like(weight, dtype=torch.float32)
        of_bias = x.new_zeros(len(weight), dtype=torch.float32)
        for rows, wide in _logits(x, weight, bias, ctx.dtype):
            gradient = wide.softmax(-1) * -of_log_p[rows].sum(1, keepdim=True)
            gradient = gradient.scatter_add_(1, wanted[rows], of_log_p[rows]).to(ctx.dtype)
            of_x[rows] = linear(gradient, weight.to(ctx.dtype).t(), None, True).to(x.dtype)
            of_weight += gradient.t() @ x[rows].to(ctx.dtype)
            of_bias += gradient.sum(0)
        return of_x, of_weight.to(weight.dtype), None if bias is None else of_bias.to(bias.dtype), None, None


def _logits(x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Any:
    """Slices of rows with their logits, in fp32."""
    cast_weight, cast_bias = weight.to(dtype), None if bias is None else bias.to(dtype)
    with torch.autocast(x.device.type, enabled=False):
        for rows in row_chunks(x, rows_at_a_time(weight)):
            yield rows, linear(x[rows].to(dtype), cast_weight, cast_bias, True).float()


class _Graph(NamedTuple):
    """What a target pass predicts."""

    emissions: Tensor  # log-probability of each target token at each vertex, (B, T, L)
    edges: Tensor  # (B, L, L)
    tokens: Tensor  # the likeliest of each vertex, (B, L)
    scores: Tensor  # their log-probabilities, (B, L)


class Paths:
    """A batch's targets as paths, for ``mist.objective``; see ``mist.targets.Targets``."""

    def __init__(self, model: "Encoder", batch: Batch, special: SpecialTokens, limit: int):
        config = model.config
        self.model, self.batch, self.special = model, batch, special
        self.lengths = count_vertices(batch.src_lengths, config.upsample, config.least_vertices, limit)
        self.size = int(self.lengths.max())
        self.index = real_positions(self.lengths, self.size)
        real = padding_mask(self.lengths, self.size)
        self.masks = torch.where(real, special.mask, special.pad)

    def learn(self, tokens: Tensor, source: "SourceState", smoothing: float) -> tuple[TokenLoss, Guess]:
        """The loss of all paths, and what the likeliest one predicts; *smoothing* is 0."""
        graph = self._look(tokens, source)
        loss = -path_log_likelihood(graph.emissions, graph.edges, self.batch.target_lengths, self.lengths).sum()
        guess = self._read(graph)
        seen = pack(guess.seen[..., None], self.batch.target_index)[:, 0]
        return TokenLoss(loss, loss.detach(), seen), guess

    def guess(self, tokens: Tensor, source: "SourceState") -> Guess:
        """What is predicted."""
        return self._read(self._look(tokens, source))

    def _look(self, tokens: Tensor, source: "SourceState") -> "_Graph":
        hidden = self.model.decode_target(tokens, self.lengths, self.index, source)
        edges = self.model.edges(self._in_place(hidden), self.lengths)
        wanted = self.batch.target_tokens[self.index // self.size]
        given = *self.model.output_layer(hidden), wanted, self.special.never_predicted
        log_p, likeliest, scores = Emissions.apply(*given)  # type: ignore[no-untyped-call]
        likeliest, scores = (self._in_place(part[:, None])[..., 0] for part in (likeliest, scores))
        return _Graph(self._in_place(log_p).transpose(1, 2), edges, likeliest, scores)

    @torch.no_grad()
    def _read(self, graph: "_Graph") -> Guess:
        places = best_path(graph.emissions, graph.edges, self.batch.target_lengths, self.lengths)
        path, lengths = lookahead(graph.edges, graph.scores, self.lengths)
        text, _ = spell(path, lengths, graph.tokens, graph.scores, graph.edges, self.special.pad)
        return Guess(text, lengths, graph.tokens.gather(1, places), places)

    def _in_place(self, rows: Tensor) -> Tensor:
        """Of all vertices, padded. *Shapes:* (N, X) -> (B, L, X)."""
        return unpack(rows, self.index, len(self.lengths), self.size)

    def place(self, target: Tensor, guess: Guess) -> Tensor:
        """Target tokens, some of them [MASK], at the vertices of the likeliest path. *Shapes:* (B, T) -> (B, L)."""
        return self.masks.scatter(1, guess.places, torch.where(guess.places > 0, target, self.special.mask))

    def mixed_index(self, lengths: Tensor, size: int) -> Tensor:
        """Flat positions of mixed sources, *Shape:* (N_M), into B * *size*."""
        return real_positions(lengths, size)
