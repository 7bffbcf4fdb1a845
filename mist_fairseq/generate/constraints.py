"""Words that answers must not have, and words that they must: an engine around another that keeps both in every pass.

A word is what readers see as one, however its tokens are cut: "cat" in "(cat)", not in "category". It may be a phrase.

- Banned: after a pass the tokens of such words become [MASK]s again, and are filled without the tokens that one can
  begin with, until none is left. Tokens that were known before the pass stay.
- Required: before a pass each is put where the model finds its tokens likeliest, on the mean, the longest one first;
  the pass fills what is around them. What follows one must not go on with the word.

Whatever is not met in the end, for want of room for instance, ``Constraints.met_by`` tells, and the answer is left out.

Dimensions: B sentences, T target positions, V tokens of the vocabulary.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import numpy as np
from array_api_compat import array_namespace, to_device

from mist_fairseq.generate.decoding import Decoding, Engine
from mist_fairseq.mist.mixing import Array
from mist_fairseq.text.tokenizer import Tokenizer

Span = tuple[int, int]  # first position, and the one behind the last


class Words:
    """How the tokens of a vocabulary make words; of a word counts what is between marks around it."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        word = [index for _, index in tokenizer.encode("a")]
        skip = len(tokenizer.decode(word))
        shown = [tokenizer.decode([*word, index])[skip:] for index in range(len(tokenizer.symbols))]
        special = tokenizer.special
        self.unread = {special.pad, special.cls, special.sep}  #: tokens that a readable text is without
        self.texts = list(map(_bare, shown))
        self.opens = np.array([not text[:1].isalnum() for text in shown])  #: whether each cannot go on with a word
        self.closes = np.array([not text[-1:].isalnum() for text in shown])  #: whether nothing goes on with it

    def of(self, ids: list[int]) -> Iterator[tuple[str, Span]]:
        """The words of a sequence, with the places of their tokens; marks are words, too."""
        read = [i for i, token in enumerate(ids) if token not in self.unread]
        words: list[list[int]] = []  # places of their tokens
        for i in read:
            if not words or self.opens[ids[i]] or self.closes[ids[words[-1][-1]]]:
                words.append([])
            words[-1].append(i)
        for places in words:
            tokens = [ids[i] for i in places]
            text = self.texts[tokens[0]] if len(tokens) == 1 else _bare(self.tokenizer.decode(tokens))
            if text:
                yield text, (places[0], places[-1] + 1)

    def phrase(self, text: str, option: str) -> tuple[str, ...]:
        """The words of a text; ValueError, with the option's name, if there is none."""
        words = tuple(word for word, _ in self.of([index for _, index in self.tokenizer.encode(text)]))
        if not words:
            raise ValueError(f"{option} has {text!r:.60}, expected words")
        return words


class Constraints:
    """What ``Decoding.banned`` and ``required`` ask for, in a vocabulary.

    ValueError: one has no words, a required one cannot be written, or is banned.
    """

    def __init__(self, tokenizer: Tokenizer, banned: tuple[str, ...], required: tuple[str, ...]):
        self.words = _words_of(tokenizer)
        self.banned = {tuple(map(str.casefold, self.words.phrase(text, "banned"))) for text in banned}
        self.required = {self.words.phrase(text, "required") for text in required}
        beginnings = {first[:end] for first, *_ in self.banned for end in range(1, len(first) + 1)}
        #: which tokens no banned word begins with, (V)
        self.allowed = np.array([text.casefold() not in beginnings for text in self.words.texts])
        before = len(tokenizer.encode("a"))
        #: tokens of each required phrase behind another word, and where an answer begins with it; longest first
        self.pieces: list[tuple[list[int], list[int]]] = []
        for text in dict.fromkeys(required):
            both = tuple([index for _, index in tokenizer.encode(given)] for given in (f"a {text}", text))
            if any(tokenizer.special.unk in ids for ids in both):
                raise ValueError(f"required has {text!r:.60}, which the vocabulary cannot write")
            if self.banned_in(both[1]):
                raise ValueError(f"required has {text!r:.60}, which is banned")
            self.pieces.append((both[0][before:], both[1]))
        self.pieces.sort(key=lambda both: -len(both[0]))
        self.room = sum(len(inside) for inside, _ in self.pieces)  #: tokens of all that is required

    def banned_in(self, ids: list[int]) -> list[Span]:
        """Where a sequence has banned words."""
        words = [(text.casefold(), span) for text, span in self.words.of(ids)] if self.banned else []
        return list(_found(words, self.banned))

    def met_by(self, ids: list[int]) -> bool:
        """Whether an answer has all that is required, and nothing banned."""
        words = list(self.words.of(ids)) if self.required else []
        return not self.banned_in(ids) and all(any(_found(words, {phrase})) for phrase in self.required)


def constraints_of(tokenizer: Tokenizer, decoding: Decoding) -> Constraints | None:
    """Those of a decoding, if it has any; errors are those of ``Constraints``."""
    if not (decoding.banned or decoding.required):
        return None
    return _constraints_of(tokenizer, tuple(decoding.banned), tuple(decoding.required))


@lru_cache(maxsize=16)
def _constraints_of(tokenizer: Tokenizer, banned: tuple[str, ...], required: tuple[str, ...]) -> Constraints:
    return Constraints(tokenizer, banned, required)


@lru_cache(maxsize=4)
def _words_of(tokenizer: Tokenizer) -> Words:
    return Words(tokenizer)


def _bare(text: str) -> str:
    """Without the marks around it, or a mark as it is."""
    inside = [i for i, character in enumerate(text) if character.isalnum()]
    return text[inside[0] : inside[-1] + 1] if inside else text.strip()


def _found(words: list[tuple[str, Span]], phrases: set[tuple[str, ...]]) -> Iterator[Span]:
    """Where phrases stand among words."""
    for size in set(map(len, phrases)):
        for i in range(len(words) - size + 1):
            if tuple(text for text, _ in words[i : i + size]) in phrases:
                yield words[i][1][0], words[i + size - 1][1][1]


class ConstrainedEngine:
    """An engine that fills [MASK]s as *constraints* ask for; all else as of ``generate.decoding.Engine``."""

    def __init__(self, engine: Engine, constraints: Constraints):
        self.inner, self.constraints = engine, constraints
        self.graph, self.asarray, self.encode = engine.graph, engine.asarray, engine.encode
        self.mask = constraints.words.tokenizer.special.mask

    def fill(
        self, tokens: Array, lengths: Array, state: Any, second: bool = False, allowed: Array | None = None
    ) -> tuple[Array, Array]:
        """Predict every [MASK]; the second likeliest tokens, which only tell where to vary, are any."""
        if second or allowed is not None:
            return self.inner.fill(tokens, lengths, state, second, allowed)
        xp = array_namespace(tokens)
        given, sure, ends = self._place(tokens, lengths, state)
        filled, scores = self.inner.fill(self.asarray(given), lengths, state)
        known = given != self.mask
        scores = xp.where(self.asarray(known), self.asarray(sure), scores)
        limits, rules = _numpy(lengths), self.constraints

        def repair(places: Callable[[int, list[int]], Iterator[int]], allowed: np.ndarray) -> bool:
            """Fill what is in the wrong places anew, with *allowed* tokens; whether there was any."""
            wrong = np.zeros(given.shape, bool)
            for row, (ids, length) in enumerate(zip(filled.tolist(), limits)):
                wrong[row, list(places(row, ids[:length]))] = True
            wrong &= ~known
            if not wrong.any():
                return False
            rows, again = self.asarray(np.flatnonzero(wrong.any(axis=1))), self.asarray(wrong[wrong.any(axis=1)])
            masked = xp.where(again, self.mask, filled[rows])
            new = self.inner.fill(masked, lengths[rows], state.select(rows), allowed=self.asarray(allowed))
            filled[rows], scores[rows] = new[0], xp.where(again, new[1], scores[rows])
            return True

        def banned(row: int, ids: list[int]) -> Iterator[int]:
            return (place for span in rules.banned_in(ids) for place in range(*span))

        def going_on(row: int, ids: list[int]) -> Iterator[int]:
            words = rules.words
            behind = ([i for i in range(end, len(ids)) if ids[i] not in words.unread] for end in ends[row])
            return (places[0] for places in behind if places and not words.opens[ids[places[0]]])

        # Each time a place less has a token that a banned word can begin with.
        for _ in range(given.shape[1]):
            went_on = repair(going_on, rules.allowed & rules.words.opens)
            if not repair(banned, rules.allowed) and not went_on:
                break
        return filled, scores

    def _place(self, tokens: Array, lengths: Array, state: Any) -> tuple[np.ndarray, np.ndarray, list[list[int]]]:
        """Put the required phrases in. -> tokens and log-probabilities of what was put in (B, T), where each ends."""
        given = _numpy(tokens).copy()
        sure = np.zeros(given.shape, np.float32)
        ends: list[list[int]] = [[] for _ in given]
        log_p = {
            piece: self._scores(piece, tokens, lengths, state)
            for piece in {piece for both in self.constraints.pieces for ids in both for piece in ids}
        }
        for row, length in enumerate(_numpy(lengths)):
            taken = np.zeros(length, bool)
            taken[-1] = True  # the final [SEP]
            for both in self.constraints.pieces:
                best: tuple[float, int, list[int]] = (-np.inf, 0, [])
                for start in range(length - 1):
                    ids = both[start == 0]
                    end = start + len(ids)
                    if end < length and not taken[start:end].any() and self._may_end(given[row, end]):
                        mean = float(np.mean([log_p[piece][row, start + i] for i, piece in enumerate(ids)]))
                        best = max(best, (mean, start, ids))
                _, start, ids = best
                for place, piece in enumerate(ids, start):
                    sure[row, place], given[row, place], taken[place] = log_p[piece][row, place], piece, True
                ends[row] += [start + len(ids)] * bool(ids)
        return given, sure, ends

    def _may_end(self, token: int) -> bool:
        """Whether a word can end before a token, which may be unknown yet."""
        return bool(token == self.mask or self.constraints.words.opens[token])

    def _scores(self, piece: int, tokens: Array, lengths: Array, state: Any) -> np.ndarray:
        """Log-probabilities of a token in all places: 0 where it stands, -inf where another does. -> (B, T)."""
        allowed = np.arange(len(self.constraints.allowed)) == piece
        scores = _numpy(self.inner.fill(tokens, lengths, state, allowed=self.asarray(allowed))[1])
        there = _numpy(tokens)
        return np.where(there == self.mask, scores, np.where(there == piece, 0.0, -np.inf))


def _numpy(array: Array) -> np.ndarray:
    return np.asarray(to_device(array, "cpu"))
