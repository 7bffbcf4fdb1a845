"""All scores of outputs against raw target files, with confidence intervals and paired tests."""

import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

from sacrebleu.metrics import BLEU
from sacrebleu.metrics.base import Metric
from sacrebleu.significance import PairedTest

from mist_fairseq.scoring.against_source import WORD_BLEU, Copies, Distinct, IBleu, Novel, SourceBleu
from mist_fairseq.scoring.meteor15 import Meteor15
from mist_fairseq.scoring.rouge155 import KINDS, Rouge155, rouge155
from mist_fairseq.scoring.rouge_l import RougeL
from mist_fairseq.scoring.rouge_package import RougePackage
from mist_fairseq.scoring.similarity import Similarity, SourceSimilarity
from mist_fairseq.scoring.steps import apply_steps, lower
from mist_fairseq.scoring.trivial import TRIVIAL

METRICS: dict[str, Callable[..., Metric]] = {
    "sacrebleu": partial(BLEU, lowercase=True),
    **{f"bleu-{n}": partial(WORD_BLEU, max_ngram_order=n) for n in (1, 2, 3, 4)},
    "meteor15": Meteor15,
    "rouge-l": RougeL,
    **{f"rouge155-{kind[-1].lower()}": partial(Rouge155, kind) for kind in KINDS},
    **{f"rouge-package-{kind}": partial(RougePackage, f"rouge-{kind}") for kind in "12l"},
}
# Of these the first reference is the source; metrics against references alone cannot tell a copy.
AGAINST_SOURCE: dict[str, Callable[..., Metric]] = {
    "ibleu": IBleu,
    "source-bleu": SourceBleu,
    "copies": Copies,
    **{f"novel-{n}": partial(Novel, n) for n in (1, 2)},
    **{f"distinct-{n}": partial(Distinct, n) for n in (1, 2)},
    "source-similarity": SourceSimilarity,
}
METRICS |= {"similarity": Similarity} | AGAINST_SOURCE
NEEDS_ENCODER = ["similarity", "source-similarity"]
RESAMPLES = 1000


@dataclass(frozen=True)
class Protocol:
    """How a data set is scored: steps for outputs and for references, and metrics, which are names in ``METRICS``.

    ``sacrebleu`` is what its command line gives: line by line, without any step; ``similarity`` reads texts without
    steps, too. With *group*, outputs with equal sources are one, with all their references, as in the
    question-generation script. *trivial* is a name in ``TRIVIAL``: the system without a model to compare with.
    """

    steps: list[str]
    reference_steps: list[str]
    metrics: list[str]
    group: bool
    trivial: str = ""


_PENN = ["lower", "words", "rejoin-quora"]
_QG_METRICS = ["bleu-1", "bleu-2", "bleu-3", "bleu-4", "meteor15", "rouge-l", "sacrebleu", "similarity"]
_QG: dict[str, Any] = {"metrics": [*_QG_METRICS, *AGAINST_SOURCE], "group": True, "trivial": "copy of the source"}
_XSUM, _ROUGE = ["lower", "words", "collapse-repeats", "rejoin-xsum"], ["rouge155-1", "rouge155-2", "rouge155-l"]
_EXTRACTED = ["similarity", "copies", "novel-1", "novel-2"]
_ROUGE_PACKAGE = ["rouge-package-1", "rouge-package-2", "rouge-package-l"]
_THEIR_WORDS = ["words", "collapse-repeats-authors"]
# As the authors' code does it, which leaves references as they are: the Penn Treebank's tokens, which raw ones become.
_AUTHORS = {
    "authors-squad_qg": Protocol([*_THEIR_WORDS, "lower"], _PENN, **_QG),
    "authors-quora": Protocol([*_THEIR_WORDS, "rejoin-quora-authors", "lower"], _PENN, **_QG),
    "authors-xsum": Protocol(
        [*_THEIR_WORDS, "rejoin-xsum", "lower"], ["lower"], [*_ROUGE_PACKAGE, *_EXTRACTED], False, "lead-1"
    ),
}
PROTOCOLS = {
    **dict.fromkeys(["squad_qg", "quora"], Protocol([*_PENN, "collapse-repeats"], _PENN, **_QG)),
    "xsum": Protocol(_XSUM, ["lower"], [*_ROUGE, "sacrebleu", *_EXTRACTED], False, "lead-1"),
    **_AUTHORS,
    # Without the package, whose time and memory are quadratic.
    "plain": Protocol(["lower"], ["lower"], [name for name in METRICS if name not in _ROUGE_PACKAGE], group=False),
}


@dataclass
class Scores:
    """The scores of one system by metric, in percent, and the number of texts, groups counted once."""

    segments: int
    values: dict[str, float] = field(default_factory=dict)
    # The ends of the 95 % confidence interval, of 1,000 bootstrap samples or ROUGE-1.5.5's own.
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    p_values: dict[str, float] = field(default_factory=dict)  # of the difference to the first, by paired bootstrap
    signatures: dict[str, str] = field(default_factory=dict)  # sacrebleu's
    failed: dict[str, str] = field(default_factory=dict)  # why there is no score

    def as_dict(self) -> dict:
        """Return what is not empty, for JSON."""
        return {name: value for name, value in asdict(self).items() if value}


def with_trivial(systems: dict[str, list[str]], sources: list[str] | None, protocol: Protocol) -> dict[str, list[str]]:
    """Put the protocol's system without a model last, where sources are given and no system has its name."""
    if sources is None or protocol.trivial in ("", *systems):
        return systems
    return systems | {protocol.trivial: list(map(TRIVIAL[protocol.trivial], sources))}


def score(
    systems: dict[str, list[str]],
    references: list[str],
    sources: list[str] | None = None,
    *,
    protocol: Protocol = PROTOCOLS["plain"],
    metrics: Iterable[str] | None = None,
    confidence: bool = False,
    sentence_encoder: str | Path | None = None,
) -> dict[str, Scores]:
    """Score the outputs of one or more systems, by name, one a reference; the others are compared with the first.

    *references* and, for ``protocol.group`` and ``AGAINST_SOURCE``, *sources* are lines of raw files; *metrics* stand
    for the protocol's, which without sources are those that need none, and likewise without *sentence_encoder*, the
    folder for ``NEEDS_ENCODER``; *confidence* adds confidence intervals and paired tests. What cannot be computed (no
    Java, no Perl) is in ``failed``, and the rest still comes.
    """
    metrics = _choose(protocol, metrics, sources is not None, sentence_encoder is not None)
    for name, lines in [("source file", references if sources is None else sources), *systems.items()]:
        if len(lines) != len(references):
            raise ValueError(f"{name} has {len(lines):,} lines but there are {len(references):,} references")
    if not references:
        raise ValueError("nothing to score: there are no references")
    if protocol.group and sources is None:
        raise ValueError("outputs with equal sources are scored as one: the sources are needed")

    groups = group_by_source(sources) if protocol.group and sources else [[i] for i in range(len(references))]

    def prepare(steps: list[str], reference_steps: list[str]) -> tuple[dict[str, list[str]], list[list[str]]]:
        """Outputs, and references behind the source if there is one, of each group."""
        last = [group[-1] for group in groups]
        stepped = apply_steps(references, reference_steps)
        # Sources with the outputs' steps: a copy is to equal its source.
        first = [[text] for text in apply_steps([sources[i] for i in last], steps)] if sources else [[] for _ in last]
        compared = [[*source, *(stepped[i] for i in group)] for source, group in zip(first, groups)]
        return {name: apply_steps([texts[i] for i in last], steps) for name, texts in systems.items()}, compared

    stepped, as_they_are = prepare(protocol.steps, protocol.reference_steps), prepare([], [])
    results = {name: Scores(len(groups)) for name in systems}
    for metric in metrics:
        outputs, compared = as_they_are if metric in NEEDS_ENCODER else stepped
        if metric == "sacrebleu":
            outputs, compared = systems, [[line] for line in references]
        elif metric not in AGAINST_SOURCE and sources is not None:
            compared = [texts[1:] for texts in compared]
        given = [sentence_encoder] if metric in NEEDS_ENCODER else []
        try:
            _score(metric, METRICS[metric](*given), outputs, compared, results, confidence)
        except (ImportError, OSError, RuntimeError) as error:
            for result in results.values():
                result.failed[metric] = str(error)
    return results


def _choose(protocol: Protocol, metrics: Iterable[str] | None, has_sources: bool, has_encoder: bool) -> list[str]:
    lacking = ([] if has_sources else [*AGAINST_SOURCE]) + ([] if has_encoder else NEEDS_ENCODER)
    if metrics is None:
        return [metric for metric in protocol.metrics if metric not in lacking]
    metrics = list(metrics)
    for metric in metrics:
        if metric not in METRICS:
            raise ValueError(f"no metric {metric!r}: there are {', '.join(METRICS)}")
        if metric in AGAINST_SOURCE and not has_sources:
            raise ValueError(f"{metric} compares with the sources: they are needed")
        if metric in lacking:
            raise ValueError(f"{metric} needs the folder of a sentence encoder: --sentence-encoder DIR")
    return metrics


def group_by_source(sources: list[str]) -> list[list[int]]:
    """Group the line numbers that have the same source, case aside, in the order of their first."""
    groups: dict[str, list[int]] = {}
    for i, source in enumerate(sources):
        groups.setdefault(lower(source), []).append(i)
    return list(groups.values())


def _score(
    name: str,
    metric: Metric,
    systems: dict[str, list[str]],
    references: list[list[str]],
    results: dict[str, Scores],
    confidence: bool,
):
    """Compute one metric of all systems, into *results*."""
    scores: Any
    streams = list(zip_longest(*references))  # sacrebleu's: first references, second references or None, ...
    if confidence and not isinstance(metric, Distinct):  # which has no statistics to draw from
        test = PairedTest(list(systems.items()), {name: metric}, streams, test_type="bs", n_samples=RESAMPLES)
        _, scores = test()[1].values()  # of the systems: names, scores
    else:
        scores = [metric.corpus_score(outputs, streams) for outputs in systems.values()]
    for (system, outputs), one in zip(systems.items(), scores):
        result = results[system]
        result.values[name] = float(one.score)
        if isinstance(metric, BLEU):
            result.signatures[name] = str(metric.get_signature())
        if confidence and not isinstance(metric, Distinct):
            result.intervals[name] = (float(one.mean - one.ci), float(one.mean + one.ci))
            if one.p_value is not None:
                # Where nothing differs in any sample, sacrebleu says p = 0.001.
                result.p_values[name] = 1.0 if one.score == scores[0].score else float(one.p_value)
        if isinstance(metric, Rouge155):
            # The script's average is a mean over bootstrap samples of its own.
            rouge = rouge155(outputs, references)[metric.kind]
            result.values[name], result.intervals[name] = rouge.score, (rouge.low, rouge.high)


def format_table(results: dict[str, Scores]) -> str:
    """Return a row a metric, a column a system: score, half the width of its confidence interval, p."""
    names, columns = list(results), list(results.values())
    metrics = list(dict.fromkeys(metric for result in columns for metric in [*result.values, *result.failed]))
    width = max(24, *(len(name) + 2 for name in names))
    rows = [["", *names], *([metric, *(_cell(result, metric) for result in columns)] for metric in metrics)]
    rows.append(["texts", *(f"{result.segments:,}" for result in columns)])
    lines = [f"{first:<18}" + "".join(f"{cell:>{width}}" for cell in cells) for first, *cells in rows]
    lines += [f"{metric}: {columns[0].signatures[metric]}" for metric in metrics if metric in columns[0].signatures]
    if any(result.p_values for result in columns):
        lines.append(f"p: of the difference to {names[0]}, paired bootstrap")
    return "\n".join(lines)


def report_failures(results: dict[str, Scores]) -> bool:
    """Print to stderr which scores are missing, and why. True if any is."""
    failed = {metric: why for result in results.values() for metric, why in result.failed.items()}
    for metric, why in failed.items():
        print(f"error: no {metric}: {why}", file=sys.stderr)
    return bool(failed)


def _cell(result: Scores, metric: str) -> str:
    if metric not in result.values:
        return "-"
    text = f"{result.values[metric]:.2f}"
    if metric in result.intervals:
        low, high = result.intervals[metric]
        text += f" ± {(high - low) / 2:.2f}"
    if metric in result.p_values:
        text += f" p={result.p_values[metric]:.3f}"
    return text
