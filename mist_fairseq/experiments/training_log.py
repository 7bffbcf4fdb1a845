"""Validation scores over updates and over training time, from the logs of fairseq-train.

Read are ``--log-format json`` and ``simple``, from a redirected shell or from ``--log-file`` (which repeats lines).
Training time is the sum of ``train_wall``, the seconds spent in training steps since the last training line; unlike
``wall`` it leaves out validation, saving and start-up. fairseq rounds it to whole seconds.
"""

import json
import math
import re
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from mist_fairseq.experiments.results import new_figure, save_figure

_JSON = re.compile(r'\{"epoch": .*\}\s*$')
_SIMPLE_TRAINING = re.compile(r"epoch \d+:\s+\d+ / \d+ (\S+=.*)$")
_SIMPLE_VALIDATION = re.compile(r"epoch \d+ \| valid on '(.+?)' subset \| (.*)$")
_LOADED = re.compile(r"Loaded checkpoint .* @ (\d+) updates")
_LABELS = {"bleu": "BLEU", "rouge_l": "ROUGE-L (%)"}

# Okabe and Ito's colours, which colour-blind readers can tell apart; markers and dashes for print.
_COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
_MARKERS, _DASHES = "os^DvPX", ["-", "--", "-.", ":"]


@dataclass
class Curve:
    """Updates, seconds of training alone and score of each validation of one training; the index of the best score."""

    name: str
    updates: list[int]
    seconds: list[float]
    scores: list[float]
    best: int


class TrainingLog:
    """What the log files of one training say; what a resumed training computes again replaces what was there."""

    def __init__(self, paths: list[str]):
        self.scores: dict[int, dict[str, float]] = {}  # by update, under names like valid_bleu
        self.intervals: dict[int, float] = {}  # seconds of training that each training line adds, by update
        for path in paths:
            for line in Path(path).read_text(encoding="utf-8", errors="replace").splitlines():
                self._read(line)
        for kind, figures in (("training", self.intervals), ("validation", self.scores)):
            if not figures:
                how = "--log-format json, a --log-interval smaller than the number of updates, and validation"
                raise ValueError(f"{', '.join(paths)}: no {kind} lines. Train with {how}")

    def _read(self, line: str):
        figures = _figures(line)
        if loaded := _LOADED.search(line):
            self._forget_from(int(loaded[1]) + 1)
        elif "num_updates" in figures and "train_wall" in figures:
            update = int(figures["num_updates"])
            if 1 <= update <= max(self.intervals, default=0):
                self._forget_from(update)
            if update >= 1:
                self.intervals[update] = figures["train_wall"]
        else:
            for name in figures:
                if name.endswith("_num_updates") and name != "train_num_updates":
                    self.scores.setdefault(int(figures[name]), {}).update(figures)

    def _forget_from(self, first: int):
        """Forget what comes from update *first* on, as it will come again."""
        self.intervals = {update: value for update, value in self.intervals.items() if update < first}
        self.scores = {update: value for update, value in self.scores.items() if update < first}

    def seconds(self, update: int) -> float:
        """Return the seconds of training up to *update*, between training lines in proportion."""
        total, last, rate = 0.0, 0, 0.0
        for end, interval in self.intervals.items():
            rate = interval / (end - last)
            if end > update:
                break
            total, last = total + interval, end
        return total + (update - last) * rate

    def curve(self, name: str, metric: str) -> Curve:
        """Return the course of *metric*, with or without ``valid_``; if there is none, ValueError names the others."""
        known = {key for figures in self.scores.values() for key in figures}
        key = metric if metric in known else f"valid_{metric}"
        points = {update: self.scores[update][key] for update in sorted(self.scores) if key in self.scores[update]}
        if not points:
            there = ", ".join(sorted(name.removeprefix("valid_") for name in known if not name.endswith("num_updates")))
            raise ValueError(f"{name}: validation has no {metric!r}, but {there}")
        scores = list(points.values())
        best = scores.index(_better(metric)(scores))
        return Curve(name, list(points), [self.seconds(update) for update in points], scores, best)


def _figures(line: str) -> dict[str, float]:
    """Return the numbers of a training or validation line by their names in the JSON format; none of other lines."""
    pairs = []
    if match := _JSON.search(line):
        with suppress(RecursionError, ValueError):  # a line that was cut when the training was killed
            pairs = list(json.loads(match[0]).items())
    elif match := _SIMPLE_TRAINING.search(line):
        pairs = [pair.partition("=")[::2] for pair in match[1].split(", ")]
    elif match := _SIMPLE_VALIDATION.search(line):
        pairs = [(f"{match[1]}_{pair.split(' ')[0]}", pair.split(" ")[-1]) for pair in match[2].split(" | ")]
    figures = {}
    for name, value in pairs:
        with suppress(OverflowError, TypeError, ValueError):  # not every value is a number
            figures[name] = float(value)
    return {name: value for name, value in figures.items() if name != "epoch" and math.isfinite(value)}


def _better(metric: str):
    """Return min for losses and perplexities, else max."""
    return min if metric.endswith(("loss", "ppl")) else max


def summary(curves: list[Curve], metric: str) -> list[dict]:
    """Return for each run its curve and best score, and where it first reaches the first run's best.

    ``reaches`` is None where a run never does; shares are of what the first run took to its best.
    """
    rows: list[dict] = []
    for curve in curves:
        points = list(zip(curve.updates, curve.scores, curve.seconds))
        best = dict(zip(("update", "score", "seconds"), points[curve.best]))
        rows.append(asdict(curve) | {"best": best, "reaches": None})
        goal = rows[0]["best"]
        if not goal["seconds"]:
            raise ValueError(f"{rows[0]['name']}: train_wall adds up to 0 seconds. Train with a larger --log-interval")
        for update, score, seconds in reversed(points):
            if _better(metric)(score, goal["score"]) == score:
                shares = {"share_of_updates": update / goal["update"], "share_of_seconds": seconds / goal["seconds"]}
                rows[-1]["reaches"] = {"update": update, "seconds": seconds, **shares}
    return rows


def table(rows: list[dict], metric: str) -> str:
    """Return the summary as text. Only validated updates count: "reached" is as fine as the validation interval."""
    width = max(len(row["name"]) for row in rows) + 2
    reached = f"reaches the best of {rows[0]['name']!r}"
    lines = [f"{'run':<{width}}{'best ' + metric:>16}{'at update':>11}{'training':>11}   {reached}"]
    for row in rows:
        best, reaches, where = row["best"], row["reaches"], "never"
        if reaches:
            shares = f"{reaches['share_of_updates']:.0%} of the updates, {reaches['share_of_seconds']:.0%} of the time"
            where = f"at update {reaches['update']:,}: {shares}"
        time = f"{best['seconds'] / 60:.1f} min"
        lines.append(f"{row['name']:<{width}}{best['score']:>16.2f}{best['update']:>11,}{time:>11}   {where}")
    return "\n".join(lines)


def draw(curves: list[Curve], metric: str, out: str):
    """Write a figure with the score over updates on the left and over training time on the right."""
    figure = new_figure(10, 4.2)
    left, right = figure.subplots(1, 2, sharey=True)
    longest = max(curve.seconds[-1] for curve in curves)
    unit, size = next((u for u in (("hours", 3600), ("minutes", 60)) if longest >= 2 * u[1]), ("seconds", 1))
    for i, curve in enumerate(curves):
        style = {"color": _COLOURS[i % 7], "marker": _MARKERS[i % 7], "linestyle": _DASHES[i % 4]}
        for axes, places in ((left, curve.updates), (right, [seconds / size for seconds in curve.seconds])):
            axes.plot(places, curve.scores, **style, markersize=5, linewidth=1.8, label=curve.name)
    name, best = curves[0].name, curves[0].scores[curves[0].best]
    for axes, label in ((left, "updates"), (right, f"training time without validation ({unit})")):
        if len(curves) > 1:
            axes.axhline(best, color="0.45", linewidth=1, linestyle=(0, (1, 2)), label=f"best of {name}")
        axes.set_xlabel(label, fontsize=12)
        axes.set(xlim=(0, None), axisbelow=True)
        axes.grid(color="0.9")
        axes.spines[["top", "right"]].set_visible(False)
    metric = metric.removeprefix("valid_")
    left.set_ylabel(f"{_LABELS.get(metric, metric)} in validation", fontsize=12)
    right.tick_params(labelleft=True)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(4, len(labels)), frameon=False, fontsize=11)
    save_figure(figure, Path(out))
