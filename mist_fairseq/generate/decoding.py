"""How a batch is decoded: in a single pass or by iterations of several kinds, with several lengths or one.

The loops run on any engine: whatever encodes a source and fills [MASK]s. They are written over the array API, so the
arrays are torch's for PyTorch and numpy's for ONNX Runtime. Needs neither torch nor fairseq.

The target length, final [SEP] counted, is predicted once and kept. A decoding is a function of ``DECODINGS`` that
refines the candidates of the first pass.

Dimensions: B sentences, K candidates of each, S source and T target positions.
"""

import math
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, Self, TypedDict

from array_api_compat import array_namespace, device

from mist_fairseq.mist.config import GraphSizes, PositionLimits, SpecialTokens
from mist_fairseq.mist.mixing import Array, mix_source
from mist_fairseq.mist.path_search import FOLLOWED, beam, count_vertices, spell, viterbi

_BEAM = 5  # fewest beginnings of a beam


class State(Protocol):
    """What an engine keeps of encoded sources."""

    @property
    def length_scores(self) -> Array:
        """Logits of each target length, the final [SEP] counted, *Shape:* (B, classes)."""

    def select(self, rows: Array) -> "State":
        """The state of the sentences *rows* (repeats allowed), *Shape:* (B')."""


class Engine(Protocol):
    """What runs a model's two passes; its arrays are of one library and on one device."""

    graph: GraphSizes | None  #: of a model with paths (``mist.dag``)

    def asarray(self, values: Any) -> Array:
        """An array of the engine's kind, from numpy's or torch's."""

    def encode(self, tokens: Array, lengths: Array) -> Any:
        """The ``State`` of sources.

        Args:
            tokens: ``[CLS] X [SEP]``, right-padded, *Shape:* (B, S).
            lengths: real tokens of each, *Shape:* (B).
        """

    def fill(
        self, tokens: Array, lengths: Array, state: Any, second: bool = False, allowed: Array | None = None
    ) -> tuple[Array, Array]:
        """Predict every [MASK]; the other tokens stay, with score 0.

        Args:
            tokens: the target, partly or wholly [MASK], right-padded, *Shape:* (B, T).
            lengths: real tokens of each, *Shape:* (B).
            state: of the same sentences.
            second: give the second likeliest token of each [MASK]; only asked for with ``diversity_penalty``.
            allowed: for each token of the vocabulary whether it may be chosen, *Shape:* boolean (V); only given with
                ``banned`` or ``required``. The log-probabilities are those among all tokens.

        Returns:
            Tokens and their log-probabilities, each (B, T).
        """


class GraphEngine(Engine, Protocol):
    """That of a model with paths."""

    graph: GraphSizes

    def fill_graph(self, tokens: Array, vertices: Array, state: Any) -> tuple[Array, Array, Array]:
        """As ``fill``, of a model with paths: also the log-probabilities of the edges, (B, L, L)."""


class DecodingOptions(TypedDict, total=False):
    """The options of ``Decoding`` but ``nbest``, for the type of ``generate``'s keyword arguments."""

    iterations: int | None
    length_beam: int | None
    min_length: int
    max_length: int | None
    keep_repeats: bool
    distinct: bool
    exclude_source: bool
    min_score: float | None
    diversity_penalty: float
    path_search: str | None
    path_length_penalty: float
    length_unit: str
    truecase: bool
    banned: Sequence[str]
    required: Sequence[str]


def option(default: Any, text: str) -> Any:
    """A field of a configuration, with its help text."""
    return field(default=default, metadata={"help": text})


UNITS = ("tokens", "words", "source")  # of lengths


@dataclass(frozen=True)
class Decoding:
    """How to generate; hashable, so that requests which agree can share a batch. ValueError names what cannot work.

    The help texts of the fields say what each is; command lines and the server take them from here.
    """

    decoding: str = option("single-pass", "how to generate: single-pass, mist, mask-predict or mask-repeats")
    iterations: int | None = option(None, "passes over the target; by default 1 for single-pass, else 3")
    length_beam: int | None = option(
        None, "decode this many of the likeliest lengths, and keep the best; by default, and at least, nbest"
    )
    nbest: int = option(1, "answers to each text; fewer where the lengths within the bounds give no more")
    min_length: int = option(1, "fewest tokens before the final [SEP]")
    max_length: int | None = option(
        None, "most tokens before the final [SEP]; by default what the model was trained for"
    )
    keep_repeats: bool = option(False, "do not collapse directly repeated words")
    distinct: bool = option(True, "leave out answers that differ from a better one in case and punctuation only")
    exclude_source: bool = option(False, "leave out answers that differ from the text in case and punctuation only")
    min_score: float | None = option(None, "leave out answers with a lower score; where none is left it is empty")
    diversity_penalty: float = option(
        0.0,
        "with nbest, vary the likeliest answers word by word too, and take this much off the score of an answer for "
        "each share of its words that a better answer has",
    )
    path_search: str | None = option(
        None,
        "of a model with --head dag, how a text is found: viterbi, the likeliest path of each length (the default); "
        "beam, the likeliest text over all its paths, keeping length_beam beginnings, at least 5; lookahead or greedy",
    )
    path_length_penalty: float = option(
        1.0, "texts of different lengths are compared by their log-probability over tokens to the power of this"
    )
    length_unit: str = option(
        "tokens",
        "what lengths are in: tokens; words, as spaces part them, or the nearest number that comes about; or source, "
        "a share of the text's tokens",
    )
    truecase: bool = option(
        False, "for vocabularies without case: write words as the text does, and begin sentences with a capital"
    )
    banned: Sequence[str] = option((), "words, or phrases, that no answer may have")
    required: Sequence[str] = option((), "words, or phrases, that every answer has; where none can it is empty")

    def __post_init__(self) -> None:
        if self.decoding not in DECODINGS:
            raise ValueError(f"decoding is {self.decoding!r}, expected one of {', '.join(DECODINGS)}")
        numbers = {"nbest": self.nbest, "min_length": self.min_length, "iterations": self.passes}
        if self.length_unit not in UNITS:
            raise ValueError(f"length_unit is {self.length_unit!r}, expected one of {', '.join(UNITS)}")
        numbers |= {"length_beam": self.nbest if self.length_beam is None else self.length_beam}
        if self.max_length is not None:
            numbers["max_length"] = self.max_length
        for name, value in numbers.items():
            object.__setattr__(self, name, whole_number(name, value))
        for name in ("keep_repeats", "distinct", "exclude_source", "truecase"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected True or False")
        if self.min_score is not None:
            object.__setattr__(self, "min_score", real_number("min_score", self.min_score))
        object.__setattr__(
            self, "diversity_penalty", real_number("diversity_penalty", self.diversity_penalty, least=0.0)
        )
        if self.decoding == "single-pass" and self.passes > 1:
            raise ValueError(f"iterations {self.iterations} needs decoding mist, mask-predict or mask-repeats")
        self._check_paths()
        for name in ("banned", "required"):
            words = getattr(self, name)
            if isinstance(words, str) or not all(isinstance(word, str) for word in words):
                raise ValueError(f"{name} is {words!r:.60}, expected a list of words")
            object.__setattr__(self, name, tuple(words))
        if self.max_length is not None and self.max_length < self.min_length:
            raise ValueError(f"min_length {self.min_length} is more than max_length {self.max_length}")

    def _check_paths(self) -> None:
        penalty = real_number("path_length_penalty", self.path_length_penalty, least=0.0)
        object.__setattr__(self, "path_length_penalty", penalty)
        if self.path_search not in (None, "viterbi", "beam", *FOLLOWED):
            known = ", ".join(("viterbi", "beam", *FOLLOWED))
            raise ValueError(f"path_search is {self.path_search!r}, expected one of {known}")
        if self.path_search in FOLLOWED:
            asked = {"min_length": self.min_length > 1, "max_length": self.max_length is not None}
            asked |= {"nbest": self.nbest > 1, "length_beam": (self.length_beam or 1) > 1}
            asked["path_length_penalty"] = self.path_length_penalty != 1
            if wrong := [name for name, given in asked.items() if given]:
                raise ValueError(
                    f"path_search {self.path_search} finds one path of any length: {wrong[0]} needs viterbi or beam"
                )

    @property
    def passes(self) -> int:
        """How many passes over the target (the tables' "Iter." column)."""
        if self.iterations is None:
            return 1 if self.decoding == "single-pass" else 3
        return self.iterations

    @property
    def width(self) -> int:
        """How many lengths of each text are decoded at once."""
        return max(self.nbest, self.length_beam or 1)

    @property
    def branches(self) -> int:
        """How many variants of the likeliest answers are decoded beside the lengths."""
        return 2 * self.nbest if self.diversity_penalty and self.nbest > 1 else 0

    @property
    def candidates(self) -> int:
        """How many candidates of each text are decoded at once."""
        return self.width + self.branches

    def longest(self, limits: PositionLimits) -> int:
        """The most tokens of an output, the final [SEP] counted; ValueError if *min_length* leaves none."""
        longest = limits.target if self.max_length is None else min(limits.target, self.max_length + 1)
        if self.min_length + 1 > longest:
            limit = f"the model makes at most {longest - 1} tokens and the final [SEP]"
            raise ValueError(f"min_length {self.min_length} is too long: {limit}")
        return longest


@dataclass
class Candidates:
    """The candidates of a batch, the K of a sentence side by side."""

    tokens: Array  #: (B * K, T)
    scores: Array  #: log-probability of each token, (B * K, T)
    lengths: Array  #: the final [SEP] counted, (B * K)
    choice_scores: Array  #: log-probability of each length, 0 where it was given; of a variant with its odds, (B * K)
    steps: Array  #: passes over the target, (B * K)
    history: list[Array]  #: tokens after each pass, each (B * K, T)
    number: int  #: K
    length_shares: Array | None  #: probabilities of those from ``min_length`` on, (B, lengths); None: given, or paths
    has_more: bool = True  #: whether there may be others of other lengths
    length_penalty: float = 1.0  #: of paths, see ``Decoding.path_length_penalty``

    def totals(self) -> Array:
        """The score of each candidate, by which they are ranked: log p(T|X) + 1/T * sum of log p(y_i|X, T).

        Of paths the sum is over T to the power of the length penalty, and there is no log p(T|X).
        In fp64, where padding changes no digit of the sum, *Shape:* (B * K).
        """
        xp = array_namespace(self.scores)
        real = padding_mask(self.lengths, self.tokens.shape[1])
        sums = xp.sum(xp.where(real, xp.astype(self.scores, xp.float64), 0.0), axis=1)
        return (
            xp.astype(self.choice_scores, xp.float64)
            + sums / xp.astype(self.lengths, xp.float64) ** self.length_penalty
        )

    def ranked(self, totals: list[float] | None = None) -> Iterator[list[tuple[int, float]]]:
        """For each sentence its candidates' rows with their scores, best first; *totals* as fetched already."""
        rows = list(enumerate(self.totals().tolist() if totals is None else totals))
        for first in range(0, len(rows), self.number):
            yield sorted(rows[first : first + self.number], key=lambda row: -row[1])


def decode(
    engine: Engine,
    tokens: Array,
    lengths: Array,
    decoding: Decoding,
    special: SpecialTokens,
    limits: PositionLimits,
    *,
    target_lengths: Array | None = None,
    words: Array | None = None,
    stop_unchanged: bool = True,
    skip: int = 0,
) -> Candidates:
    """Decode a batch; ValueError: the model makes no outputs as long as the decoding asks for.

    Args:
        tokens: ``[CLS] X [SEP]``, right-padded, *Shape:* (B, S).
        lengths: real tokens of each, *Shape:* (B).
        target_lengths: lengths that the outputs are to have, the final [SEP] counted, *Shape:* (B); by default the
            likeliest ones are chosen.
        words: how many the outputs are to have, *Shape:* (B): the least lengths that have room for them are chosen.
        stop_unchanged: MIST ends for a sentence that a pass did not change; a benchmark may want all passes.
        skip: leave out so many of the likeliest lengths, and decode as many of the next.
    """
    xp = array_namespace(tokens)
    check_head(decoding, engine.graph, limits, target_lengths is not None)
    state, log_p = _encode_distinct(engine, tokens, lengths), None
    run = Run(engine, tokens, lengths, state, decoding.passes, special, limits, stop_unchanged)
    del state  # the run's alone, which lets it go
    if engine.graph is not None:
        return _decode_paths(PathRun(**vars(run), decoding=decoding), target_lengths, skip)
    if target_lengths is None:
        log_p = _length_log_p(run.state.length_scores, decoding, limits)
        target_lengths, choice_scores = _choose_lengths(log_p, decoding, skip, words)
    else:
        choice_scores = xp.zeros(target_lengths.shape, dtype=xp.float32, device=device(tokens))
    number = target_lengths.shape[0] // tokens.shape[0]
    if number > 1:
        run = run.select(xp.repeat(xp.arange(tokens.shape[0], device=device(tokens)), number))
    masks = run.masks(target_lengths, int(xp.max(target_lengths)))
    filled, scores = engine.fill(masks, target_lengths, run.state)
    steps = xp.ones_like(target_lengths)
    shares = None if log_p is None else xp.exp(log_p)
    candidates = Candidates(filled, scores, target_lengths, choice_scores, steps, [filled], number, shares)
    candidates.has_more = log_p is not None
    if decoding.branches:
        run, candidates = vary(run, candidates, decoding.branches)
    DECODINGS[decoding.decoding](run, candidates)
    return candidates


@dataclass
class Run:
    """What a decoding works with; sources are there once for each candidate."""

    engine: Engine  #: what runs the model
    tokens: Array  #: the sources, (B * K, S)
    lengths: Array  #: of the sources, (B * K)
    state: Any  #: of the sources; None once a decoding needs it no more
    passes: int  #: how many there are to be, the first one counted
    special: SpecialTokens  #: of the model
    limits: PositionLimits  #: of the model
    stop_unchanged: bool  #: whether MIST ends for a sentence that a pass did not change

    def select(self, rows: Array) -> Self:
        """The same of the sources *rows* (repeats allowed), *Shape:* (B')."""
        sources = {"tokens": self.tokens[rows], "lengths": self.lengths[rows], "state": self.state.select(rows)}
        return replace(self, **sources)

    def masks(self, lengths: Array, longest: int) -> Array:
        """[MASK]s of the given lengths, right-padded. *Shapes:* (B) -> (B, *longest*)."""
        return array_namespace(lengths).where(padding_mask(lengths, longest), self.special.mask, self.special.pad)

    def predict(self, rows: Array, lengths: Array, longest: int, state: Any) -> tuple[Array, Array, Array]:
        """Fill [MASK]s of the candidates *rows*, whose sources are now *state*, of *lengths* up to *longest*.

        *Shapes:* rows and lengths (B') -> tokens and scores (B', *longest*), lengths (B').
        """
        return *self.engine.fill(self.masks(lengths, longest), lengths, state), lengths


@dataclass
class PathRun(Run):
    """That of a model with paths."""

    engine: GraphEngine
    decoding: Decoding
    keep_lengths: bool = False  #: whether later passes keep the lengths that the first one chose

    def predict(self, rows: Array, lengths: Array, longest: int, state: Any) -> tuple[Array, Array, Array]:
        """As ``Run.predict``; the tokens are as wide as the longest path could be."""
        tokens, scores, lengths, _ = self.read(state, self.lengths[rows], lengths if self.keep_lengths else None)
        return tokens, scores, lengths

    def read(
        self, state: Any, source_lengths: Array, wanted: Array | None, ranks: range = range(1)
    ) -> tuple[Array, Array, Array, Array]:
        """Fill graphs and read the best texts, K of each; *ranks* and *wanted* are as of ``viterbi``.

        *Shapes:* source_lengths and wanted (B) -> tokens and scores (B * K, T), lengths and if there is such a path
        (B * K).
        """
        xp, sizes = array_namespace(source_lengths), self.engine.graph
        vertices = count_vertices(source_lengths, *sizes, self.limits.target)
        widest = max(count_vertices(self.lengths, *sizes, self.limits.target).tolist())
        masks = self.masks(vertices, widest)
        tokens, scores, edges = self.engine.fill_graph(masks, vertices, state)
        bounds: Any = {"least": self.decoding.min_length + 1, "most": self.decoding.longest(self.limits)}
        bounds |= {"length_penalty": self.decoding.path_length_penalty, "wanted": wanted}
        if self.decoding.path_search == "beam":
            width = max(ranks.stop, self.decoding.width, _BEAM)
            found = beam(edges, scores, tokens, vertices, width=width, ranks=ranks, fill=self.special.pad, **bounds)
            said, sure, lengths, there = found
        else:
            if self.decoding.path_search in FOLLOWED:
                path, lengths = FOLLOWED[self.decoding.path_search](edges, scores, vertices)
                there = lengths > 0
            else:
                path, lengths, there = viterbi(edges, scores, vertices, ranks=ranks, **bounds)
            rows = xp.repeat(xp.arange(tokens.shape[0], device=device(tokens)), lengths.shape[0] // tokens.shape[0])
            said, sure = spell(path, lengths, tokens[rows], scores[rows], edges[rows], self.special.pad)
        # As wide for all passes: what lies behind a text's end is padding.
        behind = xp.zeros((said.shape[0], widest - 1 - said.shape[1]), dtype=said.dtype, device=device(said))
        said = xp.concat([said, behind + self.special.pad], axis=1)
        sure = xp.concat([sure, xp.astype(behind, sure.dtype)], axis=1)
        return said, sure, lengths, there


def check_head(decoding: Decoding, graph: GraphSizes | None, limits: PositionLimits, lengths_given: bool) -> None:
    """Refuse what a model's head cannot do, paths through graphs or, without *graph*, a fixed length.

    ValueError: names the option.
    """
    if graph is None:
        if decoding.path_search is not None or decoding.path_length_penalty != 1:
            raise ValueError("path_search and path_length_penalty are for models that were trained with --head dag")
        return
    if decoding.decoding not in ("single-pass", "mist"):
        raise ValueError(f"decoding {decoding.decoding} needs a fixed length: --head dag has single-pass and mist")
    if decoding.branches:
        raise ValueError("diversity_penalty needs a fixed length, which a model of --head dag has not: leave it out")
    if lengths_given and decoding.path_search in FOLLOWED:
        raise ValueError(f"path_search {decoding.path_search} finds a path of any length: lengths need viterbi or beam")
    if decoding.banned or decoding.required:
        raise ValueError("banned and required need a fixed length, which a model of --head dag has not: leave them out")
    if decoding.length_unit == "words":
        raise ValueError("length_unit words needs a fixed length: a model of --head dag has tokens and source")
    decoding.longest(PositionLimits(limits.source, limits.target - 1))  # the first vertex says nothing


def _decode_paths(run: PathRun, wanted: Array | None, skip: int) -> Candidates:
    """As ``decode``. Of several candidates of a sentence each keeps its length."""
    decoding = run.decoding
    xp = array_namespace(run.tokens)
    ranks = range(skip, max(2 * skip, decoding.width))
    tokens, scores, lengths, there = run.read(run.state, run.lengths, wanted, ranks)
    number = lengths.shape[0] // run.lengths.shape[0]
    if number > 1:
        run = run.select(xp.repeat(xp.arange(run.lengths.shape[0], device=device(lengths)), number))
    run.keep_lengths = number > 1 or skip > 0 or wanted is not None
    choice_scores = xp.where(there, xp.asarray(0.0, dtype=scores.dtype, device=device(scores)), -math.inf)
    candidates = Candidates(
        *(tokens, scores, lengths, choice_scores, xp.ones_like(lengths), [tokens], number, None),
        has_more=wanted is None and decoding.path_search not in FOLLOWED,
        length_penalty=decoding.path_length_penalty,
    )
    DECODINGS[decoding.decoding](run, candidates)
    return candidates


def vary(run: Run, candidates: Candidates, branches: int) -> tuple[Run, Candidates]:
    """Add *branches* variants to the candidates of each sentence, all in one pass over the target.

    In each a candidate's second likeliest token is put in at one place, where it is likely, and the [MASK]s around it
    are filled anew. That is a choice as the length is one, so the token's odds count as the length's probability does.

    *Shapes:* of (B * K, T) -> (B * (K + branches), T).
    """
    xp = array_namespace(candidates.tokens)
    (rows, T), K, where = candidates.tokens.shape, candidates.number, device(candidates.tokens)
    masks = run.masks(candidates.lengths, T)
    second, second_scores = run.engine.fill(masks, candidates.lengths, run.state, second=True)
    may_vary = padding_mask(candidates.lengths, T) & (candidates.tokens != run.special.sep)
    odds = xp.where(may_vary, second_scores - candidates.scores, -float("inf"))
    totals = xp.astype(candidates.totals(), odds.dtype)[:, None]
    order = xp.argsort(xp.reshape(totals + odds, (-1, K * T)), axis=1, descending=True, stable=True)[:, :branches]
    base = xp.reshape(xp.arange(0, rows, K, device=where)[:, None] + order // T, (-1,))
    put = xp.arange(T, device=where) == xp.reshape(order % T, (-1, 1))
    lengths = candidates.lengths[base]
    tokens, scores = run.engine.fill(xp.where(put, second[base], masks[base]), lengths, run.state.select(base))
    choice_scores = candidates.choice_scores[base] + xp.sum(xp.where(put, odds[base], 0.0), axis=1)

    def joined(old: Array, new: Array) -> Array:
        parts = [xp.reshape(part, (rows // K, -1, *part.shape[1:])) for part in (old, new)]
        return xp.reshape(xp.concat(parts, axis=1), (-1, *old.shape[1:]))

    both = replace(
        candidates,
        tokens=joined(candidates.tokens, tokens),
        scores=joined(candidates.scores, xp.where(put, second_scores[base], scores)),
        lengths=joined(candidates.lengths, lengths),
        choice_scores=joined(candidates.choice_scores, choice_scores),
        steps=joined(candidates.steps, candidates.steps[base]),
        number=K + order.shape[1],
    )
    both.history = [both.tokens]
    return run.select(joined(xp.arange(rows, device=where), base)), both


def single_pass(run: Run, candidates: Candidates) -> None:
    """Keep what the first pass predicted (paper, "Model Architecture")."""


def mist(run: Run, candidates: Candidates) -> None:
    """Mix the output into the source and fill all [MASK]s again (paper, section "MIST")."""
    xp = array_namespace(candidates.tokens)
    rows, longest = candidates.tokens.shape
    active = xp.arange(rows, device=device(candidates.tokens))
    run.state = None  # of sources without a pseudo target
    for done in range(1, run.passes):
        previous, lengths = candidates.tokens[active], candidates.lengths[active]
        mixed, mixed_lengths = mix_source(
            *(previous, lengths, run.tokens[active], run.lengths[active]),
            limit=run.limits.source,
            sep=run.special.sep,
            pad=run.special.pad,
        )
        tokens, scores, lengths = run.predict(active, lengths, longest, run.engine.encode(mixed, mixed_lengths))
        longest = tokens.shape[1]
        candidates.tokens = xp.asarray(candidates.tokens, copy=True)
        candidates.lengths = xp.asarray(candidates.lengths, copy=True)
        candidates.tokens[active, :longest] = tokens
        candidates.scores[active, :longest] = scores
        candidates.lengths[active] = lengths
        candidates.steps[active] += 1
        candidates.history.append(candidates.tokens)
        if run.stop_unchanged and done + 1 < run.passes:  # a sentence that this pass did not change no other will
            changed = xp.any(tokens != previous[:, :longest], axis=1)
            left = xp.where(changed, lengths, 0).tolist()  # all that a GPU is asked for in a pass
            if not any(left):
                break
            active = active[run.engine.asarray([row for row, length in enumerate(left) if length])]
            longest = max(left)


def mask_predict(run: Run, candidates: Candidates) -> None:
    """Mask the least confident tokens and predict these again, fewer in each pass (Ghazvininejad et al. 2019).

    The decay is linear: of N passes and T tokens, T * (N - n) / N are masked before pass n + 1.
    """
    xp = array_namespace(candidates.tokens)
    for done in range(1, run.passes):
        number = candidates.lengths * (run.passes - done) // run.passes
        masked = least_confident(candidates.scores, candidates.lengths, number)
        given = xp.where(masked, run.special.mask, candidates.tokens)
        candidates.tokens, scores = run.engine.fill(given, candidates.lengths, run.state)
        candidates.scores = xp.where(masked, scores, candidates.scores)
        candidates.steps += 1
        candidates.history.append(candidates.tokens)


def mask_repeats(run: Run, candidates: Candidates) -> None:
    """Mask tokens that equal their neighbours and predict these again, until none do (docs/beyond.md)."""
    xp = array_namespace(candidates.tokens)
    active = xp.arange(candidates.tokens.shape[0], device=device(candidates.tokens))
    for _ in range(1, run.passes):
        masked = repeated(candidates.tokens[active], candidates.lengths[active])
        left = xp.any(masked, axis=1).tolist()  # all that a GPU is asked for in a pass
        if not any(left):
            break
        rows = run.engine.asarray([row for row, has_repeats in enumerate(left) if has_repeats])
        active, masked = active[rows], masked[rows]
        given = xp.where(masked, run.special.mask, candidates.tokens[active])
        tokens, scores = run.engine.fill(given, candidates.lengths[active], run.state.select(active))
        candidates.tokens = xp.asarray(candidates.tokens, copy=True)
        candidates.tokens[active] = tokens
        candidates.scores[active] = xp.where(masked, scores, candidates.scores[active])
        candidates.steps[active] += 1
        candidates.history.append(candidates.tokens)


# By the name that ``--decoding`` and ``decoding=`` take.
DECODINGS: dict[str, Callable[[Run, Candidates], None]] = {
    "single-pass": single_pass,
    "mist": mist,
    "mask-predict": mask_predict,
    "mask-repeats": mask_repeats,
}


def repeated(tokens: Array, lengths: Array) -> Array:
    """Where a token equals the one before or after it. *Shapes:* tokens (B, T), lengths (B) -> boolean (B, T)."""
    xp = array_namespace(tokens)
    real = padding_mask(lengths, tokens.shape[1])
    same = (tokens[:, 1:] == tokens[:, :-1]) & real[:, 1:]
    none = xp.zeros_like(real[:, :1])
    return xp.concat([none, same], axis=1) | xp.concat([same, none], axis=1)


def least_confident(scores: Array, lengths: Array, number: Array) -> Array:
    """The positions that Mask-Predict masks again: the *number* lowest scores of each sentence, of equals the first.

    *Shapes:* scores (B, T), lengths (B), number (B) -> boolean (B, T).
    """
    xp = array_namespace(scores)
    scores = xp.where(padding_mask(lengths, scores.shape[1]), scores, float("inf"))
    rank = xp.argsort(xp.argsort(scores, axis=1, stable=True), axis=1, stable=True)
    return rank < xp.minimum(number, lengths)[:, None]


def padding_mask(lengths: Array, size: int) -> Array:
    """True at real positions. *Shapes:* lengths (B) -> (B, size)."""
    xp = array_namespace(lengths)
    return xp.arange(size, device=device(lengths)) < lengths[:, None]


def whole_number(name: str, value: Any, most: int | None = None) -> int:
    """*value* as an int; ValueError unless it is a whole number from 1 to *most*."""
    try:
        number = 0 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = 0
    if not 1 <= number <= (most or number):
        bounds = "of at least 1" if most is None else f"from 1 to {most}"
        raise ValueError(f"{name} is {value!r}, expected a whole number {bounds}")
    return number


def real_number(name: str, value: Any, least: float = -math.inf) -> float:
    """*value* as a float; ValueError unless it is a number of at least *least*."""
    try:
        number = math.nan if isinstance(value, bool | str) else float(value)
    except TypeError:
        number = math.nan
    if not (least <= number and math.isfinite(number)):
        bound = "" if math.isinf(least) else f" of at least {least:g}"
        raise ValueError(f"{name} is {value!r}, expected a number{bound}")
    return number


def _encode_distinct(engine: Engine, tokens: Array, lengths: Array) -> Any:
    """Encode each distinct source once: data with several references repeats its sources."""
    if tokens.shape[0] > 1 and "cuda" not in str(device(tokens)):  # a GPU would wait
        rows = [tuple(ids[:length]) for ids, length in zip(tokens.tolist(), lengths.tolist())]
        places = {ids: place for place, ids in enumerate(dict.fromkeys(rows))}
        if len(places) < len(rows):
            first = [rows.index(ids) for ids in places]
            return engine.encode(tokens[first], lengths[first]).select(engine.asarray([places[ids] for ids in rows]))
    return engine.encode(tokens, lengths)


def _length_log_p(scores: Array, decoding: Decoding, limits: PositionLimits) -> Array:
    """Log-probabilities of the lengths that are allowed, from ``min_length`` on. *Shapes:* (B, classes) -> (B, N)."""
    xp = array_namespace(scores)
    allowed = scores[:, decoding.min_length + 1 : decoding.longest(limits) + 1]
    allowed = allowed - xp.max(allowed, axis=1, keepdims=True)
    return allowed - xp.log(xp.sum(xp.exp(allowed), axis=1, keepdims=True))


def _choose_lengths(log_p: Array, decoding: Decoding, skip: int, words: Array | None = None) -> tuple[Array, Array]:
    """The likeliest lengths after the first *skip*, final [SEP] counted; of equally likely ones the shortest first.

    With *words* the shortest that have room for them come first: a word has a token at least.

    *Shapes:* of ``_length_log_p`` (B, N), words (B) -> (B * K), (B * K) log-probabilities.
    """
    xp, rank = array_namespace(log_p), log_p
    if words is not None:
        number = log_p.shape[1]
        over = xp.arange(number, device=device(log_p)) + decoding.min_length - words[:, None]
        rank = xp.where(over >= 0, -over, over - number)
    order = xp.argsort(rank, axis=1, descending=True, stable=True)[:, skip : max(2 * skip, decoding.width)]
    chosen = xp.take_along_axis(log_p, order, axis=1)
    return xp.reshape(order, (-1,)) + decoding.min_length + 1, xp.reshape(chosen, (-1,))
