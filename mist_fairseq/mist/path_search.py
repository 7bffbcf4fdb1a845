"""How a text is read off the graph of ``mist.dag``: the same over torch's tensors and numpy's arrays.

A path starts at the first vertex, which says nothing, and ends at the last real one. Dimensions: B sentences, L
vertices, K paths of each, T the longest path's tokens.
"""

from collections.abc import Callable

from array_api_compat import array_namespace, device

from mist_fairseq.mist.mixing import Array

# The log-probability of an edge that is none: finite, so that no difference of two is NaN.
NO_EDGE = -1e5


def count_vertices(source_lengths: Array, upsample: int, least: int, most: int) -> Array:
    """Vertices of each graph: *upsample* times the source's tokens, from *least* to *most*. *Shapes:* (B) -> (B)."""
    return array_namespace(source_lengths).clip(source_lengths * upsample, min(least, most), most)


def greedy(edges: Array, scores: Array, vertices: Array) -> tuple[Array, Array]:
    """Follow the likeliest edge from each vertex; arguments and result as of ``lookahead``."""
    return _follow(edges, vertices)


def lookahead(edges: Array, scores: Array, vertices: Array) -> tuple[Array, Array]:
    """Follow the edge from each vertex that is likeliest together with what the next one says (Huang et al. 2022).

    Args:
        edges: log-probabilities, *Shape:* (B, L, L), from and to.
        scores: log-probability of the likeliest token of each vertex, *Shape:* (B, L).
        vertices: real ones of each sentence, *Shape:* (B).

    Returns:
        The vertices of each path without the first (B, T), then its end again and again; and how many they are (B).
    """
    return _follow(edges + scores[:, None], vertices)


def _follow(scores: Array, vertices: Array) -> tuple[Array, Array]:
    xp = array_namespace(scores)
    last = vertices - 1
    # Where a diverged model's scores are NaN, there is a path all the same.
    following = xp.maximum(xp.argmax(scores, axis=2), xp.arange(1, scores.shape[1] + 1, device=device(scores)))
    following = xp.minimum(following, last[:, None])
    place, lengths, path = xp.zeros_like(last), xp.zeros_like(last), []
    while bool(xp.any(place < last)):
        lengths = lengths + xp.astype(place < last, lengths.dtype)
        place = xp.where(place < last, xp.take_along_axis(following, place[:, None], axis=1)[:, 0], last)
        path.append(place)
    return xp.stack(path, axis=1), lengths


def viterbi(
    edges: Array,
    scores: Array,
    vertices: Array,
    *,
    least: int,
    most: int,
    length_penalty: float = 1.0,
    ranks: range = range(1),
    wanted: Array | None = None,
) -> tuple[Array, Array, Array]:
    """The likeliest path of each length, and of these the best.

    Paths of N tokens are compared by their log-probability over N to the power of *length_penalty*.

    Args:
        edges, scores, vertices: as of ``lookahead``.
        least, most: tokens of a path; a graph of fewer vertices has shorter ones.
        length_penalty: 1 for the mean of the tokens', 0 for the sum.
        ranks: which of a sentence's paths to give, the best counted as 0; they are K, of so many lengths.
        wanted: tokens that a path is to have, *Shape:* (B), where one of rank 0 is given; a graph of fewer vertices
            has shorter ones.

    Returns:
        As of ``lookahead``, the K paths of a sentence side by side, (B * K, T) and (B * K); and whether there is such a
        path (B * K): if not, what stands there means nothing.
    """
    xp = array_namespace(edges)
    B, L, where = edges.shape[0], edges.shape[1], device(edges)
    rows, last = xp.arange(B, device=where), vertices - 1
    most = min(most if wanted is None else max(1, int(xp.max(wanted))), L - 1)
    best, origins = edges[:, 0] + scores, []
    ends = [best[rows, last]]
    for _ in range(1, most):
        through = best[:, :, None] + edges
        origins.append(xp.argmax(through, axis=1))
        best = xp.max(through, axis=1) + scores
        ends.append(best[rows, last])
    if wanted is None:
        # And one that there never is, so that whoever asks for more and more paths sees an end.
        totals, sizes = xp.stack([*ends, ends[-1]], axis=1), xp.arange(1, most + 2, device=where)
        there = (sizes >= xp.clip(last, max=min(least, most))[:, None]) & (sizes <= xp.clip(last, max=most)[:, None])
        ranked = xp.where(there, totals / xp.astype(sizes, totals.dtype) ** length_penalty, -xp.inf)
        order = xp.argsort(ranked, axis=1, descending=True, stable=True)[:, ranks.start : ranks.stop]
        there = xp.reshape(xp.take_along_axis(there, order, axis=1), (-1,))
        chosen = order + 1
    else:
        chosen, there = xp.clip(wanted, min=1)[:, None], wanted > 0
    K = chosen.shape[1]
    rows, place = (xp.repeat(part, K) for part in (rows, last))
    lengths = xp.clip(xp.minimum(xp.reshape(chosen, (-1,)), place), max=most)
    path = [place]
    for step in range(most - 1, 0, -1):
        place = xp.where(step < lengths, origins[step - 1][rows, place], place)
        path.append(place)
    return xp.stack(path[::-1], axis=1)[:, : int(xp.max(lengths))], lengths, there


def beam(
    edges: Array,
    scores: Array,
    tokens: Array,
    vertices: Array,
    *,
    least: int,
    most: int,
    width: int,
    fill: int,
    length_penalty: float = 1.0,
    ranks: range = range(1),
    wanted: Array | None = None,
) -> tuple[Array, Array, Array, Array]:
    """The likeliest texts: the probability of a text is that of all paths that spell it.

    Keeps the *width* likeliest beginnings, each with the probabilities of the vertices where it may end: prefix beam
    search, as for CTC (Hannun et al. 2014). A vertex says its likeliest token. No two texts are alike.

    Args:
        edges, scores, vertices, least, most, length_penalty, ranks, wanted: as of ``viterbi``.
        tokens: what each vertex says, *Shape:* (B, L).
        width: beginnings of each sentence that are kept.
        fill: what stands behind a text.

    Returns:
        The K texts of a sentence side by side, best first, (B * K, T); the log-probability of each token, given
        those before, (B * K, T); how many there are (B * K); and whether there is such a text (B * K).
    """
    xp, where, dtype = array_namespace(edges), device(edges), scores.dtype
    edges, scores = (xp.astype(part, xp.float64) for part in (edges, scores))  # whose exp() of -700 is not 0 yet
    B, L = tokens.shape
    most, last = min(most if wanted is None else max(1, int(xp.max(wanted))), L - 1), vertices - 1
    # A graph of fewer vertices has shorter texts.
    fewest = xp.clip(last, max=min(least, most)) if wanted is None else xp.minimum(xp.clip(wanted, min=1), last)
    longest = xp.clip(last, max=most) if wanted is None else fewest
    place, rows = xp.arange(L, device=where), xp.arange(B, device=where)[:, None]
    inside = place < last[:, None]
    # What the vertices of a token have together is looked up at the first of them.
    same = tokens[:, :, None] == tokens[:, None]
    first = inside & ~xp.any(same & inside[:, :, None] & (place[:, None] < place), axis=1)
    add_up = xp.astype(xp.where(same, 0.0, NO_EDGE), xp.float64)

    # Beginnings: their tokens, each token's log-probability, and those of ending at each vertex (B, W, L) and at any.
    text = xp.full((B, width, most), fill, dtype=tokens.dtype, device=where)
    sure = xp.zeros((B, width, most), dtype=xp.float64, device=where)
    ends = xp.full((B, width, L), NO_EDGE, dtype=xp.float64, device=where)
    ends[:, 0, 0] = 0.0
    likely = xp.max(ends, axis=2)
    whole = []  # texts that reach the last vertex, the log-probabilities of their tokens, and by what they are ranked
    for step in range(most):
        through = _log_product(ends, edges) + scores[:, None]
        ended = through[rows, xp.arange(width, device=where), last[:, None]]
        there = (ended > NO_EDGE / 2) & ((fewest <= step + 1) & (step + 1 <= longest))[:, None]
        ranked = xp.where(there, ended / (step + 1) ** length_penalty, -xp.inf)
        whole.append((*_longer(text, sure, step, tokens[rows, last[:, None]], ended - likely), ranked))

        # A beginning that goes on leaves as many vertices as it still needs.
        early = place <= (last - xp.clip(fewest - step - 1, min=1))[:, None]
        through = xp.where(early[:, None], through, NO_EDGE)
        together = xp.where(first[:, None], _log_product(through, add_up), NO_EDGE)
        together = xp.reshape(together, (B, width * L))
        order = xp.argsort(together, axis=1, descending=True, stable=True)[:, :width]
        parents, said, before = order // L, tokens[rows, order % L], likely
        likely = xp.take_along_axis(together, order, axis=1)
        text, sure = _longer(text[rows, parents], sure[rows, parents], step, said, likely - before[rows, parents])
        says_it = (tokens[:, None] == said[..., None]) & (likely[..., None] > NO_EDGE / 2)
        ends = xp.where(says_it, through[rows, parents], NO_EDGE)

    text, sure, ranked = (xp.concat(part, axis=1) for part in zip(*whole, strict=True))
    best = xp.argsort(ranked, axis=1, descending=True, stable=True)[:, ranks.start : ranks.stop]
    lengths = xp.reshape(best // width + 1, (-1,))
    shape = (lengths.shape[0], most)
    text, sure = (xp.reshape(part[rows, best], shape)[:, : int(xp.max(lengths))] for part in (text, sure))
    return text, xp.astype(sure, dtype), lengths, xp.reshape(ranked[rows, best] > -xp.inf, (-1,))


def _longer(text: Array, sure: Array, step: int, said: Array, log_p: Array) -> tuple[Array, Array]:
    """Copies of texts with one more token each. *Shapes:* (B, W, T) twice, (B, W) or (B, 1), (B, W)."""
    text, sure = (array_namespace(text).asarray(part, copy=True) for part in (text, sure))
    text[:, :, step], sure[:, :, step] = said, log_p
    return text, sure


def _log_product(a: Array, b: Array) -> Array:
    """The matrix product of what *a* and *b* are logarithms of, at least NO_EDGE. *Shapes:* (B, W, L), (B, L, L)."""
    xp = array_namespace(a)
    of_a, of_b = xp.max(a, axis=2, keepdims=True), xp.max(b, axis=1, keepdims=True)
    product = xp.exp(a - of_a) @ xp.exp(b - of_b)
    log_p = xp.log(xp.where(product > 0, product, 1.0)) + of_a + of_b
    return xp.where(product > 0, xp.clip(log_p, min=NO_EDGE), NO_EDGE)


def spell(path: Array, lengths: Array, tokens: Array, scores: Array, edges: Array, fill: int) -> tuple[Array, Array]:
    """What paths say, *fill* behind it, and the log-probability of each token with the edge that leads to it.

    *Shapes:* path (B, T), lengths (B), tokens and scores (B, L), edges (B, L, L) -> (B, T) each.
    """
    xp = array_namespace(path)
    before = xp.concat([xp.zeros_like(path[:, :1]), path[:, :-1]], axis=1)
    rows = xp.arange(path.shape[0], device=device(path))[:, None]
    real = xp.arange(path.shape[1], device=device(path)) < lengths[:, None]
    said = xp.take_along_axis(tokens, path, axis=1)
    sure = xp.take_along_axis(scores, path, axis=1) + edges[rows, before, path]
    return xp.where(real, said, fill), xp.where(real, sure, 0.0)


# By the name that ``--path-search`` takes; beside them there are viterbi and beam, which know lengths.
FOLLOWED: dict[str, Callable[[Array, Array, Array], tuple[Array, Array]]] = {"greedy": greedy, "lookahead": lookahead}
