"""The answers to each text of a batch: its candidates ranked, alike ones left out, more lengths where too few are left.

Needs neither torch nor fairseq.
"""

import math
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from array_api_compat import array_namespace, to_device

from mist_fairseq.generate.constraints import ConstrainedEngine, constraints_of
from mist_fairseq.generate.decoding import Candidates, Decoding, Engine, decode
from mist_fairseq.mist.config import PositionLimits
from mist_fairseq.mist.mixing import Array
from mist_fairseq.text.tokenizer import Tokenizer

_TRIED = 4  # lengths at once where answers are to have a number of words


@dataclass
class Answer:
    """A candidate as its text is read: without [SEP]s but a final one, repeats collapsed."""

    tokens: list[int]
    token_scores: list[float]  #: log-probability of each
    score: float  #: of ``Candidates.totals``, over all that was predicted
    steps: int  #: passes over the target
    history: list[list[int]]  #: tokens after each pass; none unless asked for


@dataclass
class Answers:
    """Those to one sentence."""

    best: list[Answer] = field(default_factory=list)  #: at most ``nbest``, best first
    all: list[Answer] = field(default_factory=list)  #: of all lengths that were tried
    length_shares: list[float] = field(default_factory=list)  #: as of ``Candidates``; none where it was given
    off: int = 0  #: how many words more or less than asked for the best have


def too_few(decoding: Decoding, limits: PositionLimits) -> str:
    """A warning where there are not as many lengths as answers are asked for; ValueError as of ``Decoding.longest``."""
    lengths = decoding.longest(limits) - decoding.min_length
    if decoding.nbest <= lengths or decoding.branches:
        return ""
    each = f"each of the {lengths} lengths gives one answer at most; diversity_penalty gives more"
    return f"nbest is {decoding.nbest}, but {each}"


def answer(
    engine: Engine,
    tokens: Array,
    lengths: Array,
    decoding: Decoding,
    tokenizer: Tokenizer,
    limits: PositionLimits,
    *,
    target_lengths: Array | None = None,
    words: list[int] | None = None,
    stop_unchanged: bool = True,
    history: bool = False,
) -> list[Answers]:
    """Answer each sentence of a batch; arguments and errors are those of ``decode``.

    Where a sentence has too few answers, the next likeliest lengths are decoded for it, as many as were before. With
    *words*, which each sentence's answers are to have, it has those of the nearest number if no length gives it.
    """
    rules = constraints_of(tokenizer, decoding)
    if rules is not None:
        engine = ConstrainedEngine(engine, rules)
    if words is not None:
        decoding = replace(decoding, length_beam=max(decoding.width, _TRIED))
    sources, answers = (tokens, lengths), [Answers() for _ in range(tokens.shape[0])]
    rows, tried = list(range(len(answers))), 0
    while rows:
        if tried:
            index = engine.asarray(rows)
            sources = tokens[index], lengths[index]
        candidates = decode(
            *(engine, *sources, decoding, tokenizer.special, limits),
            target_lengths=target_lengths,
            words=None if words is None else engine.asarray(np.array([words[row] for row in rows])),
            stop_unchanged=stop_unchanged,
            skip=tried,
        )
        for row, (source, shares, more) in zip(rows, _read(candidates, *sources, decoding, tokenizer, history)):
            each = answers[row]
            each.all += more if rules is None else [one for one in more if rules.met_by(one.tokens)]
            usable = each.all
            if words is not None:
                usable, each.off = _nearest(each.all, words[row], tokenizer)
            each.best = pick(usable, decoding, tokenizer, source)
            if not tried:
                each.length_shares = shares
        if not candidates.has_more:
            break
        tried += max(tried, decoding.width)
        rows = [row for row in rows if answers[row].off or len(answers[row].best) < decoding.nbest]
        if words is None:
            rows = [row for row in rows if _more(answers[row], tried, decoding)]
        else:
            shortest = [max(number, decoding.min_length) - decoding.min_length for number in words]
            rows = [row for row in rows if tried + shortest[row] < len(answers[row].length_shares)]
    return answers


def _nearest(answers: list[Answer], words: int, tokenizer: Tokenizer) -> tuple[list[Answer], int]:
    """Those whose number of words is nearest to *words*, and how far from it they are."""
    off = [abs(len(tokenizer.decode(one.tokens).split()) - words) for one in answers]
    least = min(off, default=0)
    return [one for one, distance in zip(answers, off) if distance == least], least


def _more(answers: Answers, tried: int, decoding: Decoding) -> bool:
    """Whether there are lengths left that could pass ``min_score``, which no score can whose length alone does not.

    Of paths, which have no such scores, whether there was one of each length that was tried.
    """
    if not answers.length_shares:
        return all(one.score > -math.inf for one in answers.all)
    least = -math.inf if decoding.min_score is None else decoding.min_score
    left = sorted(answers.length_shares, reverse=True)[tried:]
    return bool(left) and left[0] >= math.exp(least)


def _read(
    candidates: Candidates,
    source: Array,
    source_lengths: Array,
    decoding: Decoding,
    tokenizer: Tokenizer,
    history: bool,
) -> Iterator[tuple[list[int], list[float], list[Answer]]]:
    """Of each sentence the source, if it is needed, the probabilities of lengths, if chosen, and the candidates."""
    arrays = {name: getattr(candidates, name) for name in ("tokens", "scores", "lengths", "steps")}
    arrays["totals"] = candidates.totals()
    if candidates.length_shares is not None:
        arrays["shares"] = candidates.length_shares
    if decoding.exclude_source:
        arrays |= {"source": source, "source_lengths": source_lengths}
    if history:
        arrays["history"] = array_namespace(source).stack(candidates.history)
    found = _lists(arrays)
    tokens, scores, lengths, steps = (found[name] for name in ("tokens", "scores", "lengths", "steps"))

    def kept(ids: list[int]) -> list[int]:
        return [ids[i] for i in tokenizer.text_positions(ids, decoding.keep_repeats)]

    def answer(row: int, score: float) -> Answer:
        ids = tokens[row][: lengths[row]]
        places = tokenizer.text_positions(ids, decoding.keep_repeats)
        made = [step[row] for step in found.get("history", [])[: steps[row]]]
        passes = [kept([token for token in ids if token != tokenizer.special.pad]) for ids in made]
        return Answer([ids[i] for i in places], [scores[row][i] for i in places], score, steps[row], passes)

    for row, ranked in enumerate(candidates.ranked(found["totals"])):
        ids = found["source"][row][: found["source_lengths"][row]] if decoding.exclude_source else []
        yield ids, found["shares"][row] if "shares" in found else [], [answer(*candidate) for candidate in ranked]


def _lists(arrays: dict[str, Array]) -> dict[str, list[Any]]:
    """Arrays of numbers as lists, by one copy of all: each would wait for a GPU."""
    xp = array_namespace(*arrays.values())
    packed = xp.concat([xp.reshape(xp.astype(array, xp.float64, copy=False), (-1,)) for array in arrays.values()])
    values, first, lists = np.asarray(to_device(packed, "cpu")), 0, {}
    for name, array in arrays.items():
        part = values[first : first + math.prod(array.shape)].reshape(array.shape)
        first += part.size
        lists[name] = part.astype(int if xp.isdtype(array.dtype, "integral") else float).tolist()
    return lists


def pick(answers: list[Answer], decoding: Decoding, tokenizer: Tokenizer, source: list[int]) -> list[Answer]:
    """At most *nbest* that the options leave, best first; *source* is what they may have to differ from."""
    least = -sys.float_info.max if decoding.min_score is None else decoding.min_score
    left = [one for one in answers if one.score >= least]  # -inf is of variants that there is no room for
    left.sort(key=lambda one: -one.score)
    if decoding.nbest == 1 and not decoding.exclude_source:
        return left[:1]
    taken = {letters_of(tokenizer.decode(source))} if decoding.exclude_source else set()
    picked: list[Answer] = []
    penalties = [0.0] * len(left)
    while left and len(picked) < decoding.nbest:
        best = max(range(len(left)), key=lambda i: left[i].score - penalties[i])
        one = left.pop(best)
        penalties.pop(best)
        letters = letters_of(tokenizer.decode(one.tokens))
        if letters in taken:
            continue
        if decoding.distinct:
            taken.add(letters)
        picked.append(one)
        if decoding.diversity_penalty:
            penalties = [
                max(penalty, decoding.diversity_penalty * _shared(other, one))
                for penalty, other in zip(penalties, left)
            ]
    return picked


def letters_of(text: str) -> str:
    """What is compared of two texts: letters and digits without case; all of a text that has none."""
    return "".join(filter(str.isalnum, text.casefold())) or text


def _shared(answer: Answer, better: Answer) -> float:
    """The share of an answer's tokens that a better one has, too."""
    tokens = Counter(answer.tokens)
    return (tokens & Counter(better.tokens)).total() / tokens.total()
