"""How a model's time grows with its work: lengths of source and target, sentences a batch, passes over the target.

One of them changes while the others stay. A line through the times tells what is paid once and what each further
token, sentence or pass costs, and clocks around the model's parts tell which of them takes most where.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from mist_fairseq.experiments.benchmark.synthetic import write_data
from mist_fairseq.experiments.benchmark.systems import Entry, System, check_names, load_system
from mist_fairseq.experiments.benchmark.timing import PARTS, _clock, clocked
from mist_fairseq.files.output import markdown_table, new_figure, whole_file
from mist_fairseq.models.generator import NARGenerator

VALUES = {
    "source": [16, 32, 64, 128, 256, 464],
    "target": [8, 16, 24, 32, 48],
    "batch": [1, 2, 4, 8, 16, 32, 64],
    "iterations": [1, 2, 3, 4, 5, 6],
}
_UNITS = {"source": "source token", "target": "target token", "batch": "sentence", "iterations": "pass"}
_PLURALS = {"pass": "passes"}
_FEWEST = {"source": 3, "target": 3, "batch": 1, "iterations": 1}
_STYLES = {"single-pass": ("o", "-"), "mist": ("o", "-"), "mask-predict": ("s", "--")}


@dataclass(frozen=True)
class Work:
    """What is generated at once.

    Attributes:
        source: tokens of each ``[CLS] X [SEP]``.
        target: tokens of each output, [SEP] counted.
        batch: sentences.
        decoding: one of ``text_generator.DECODINGS``.
        iterations: passes over the target.
    """

    source: int = 14
    target: int = 14
    batch: int = 1
    decoding: str = "single-pass"
    iterations: int = 1

    @property
    def split(self) -> str:
        """Of the data, the split whose sentences have these lengths."""
        return f"source{self.source}target{self.target}"


@dataclass(frozen=True)
class Axis:
    """Works that differ in one number.

    Attributes:
        name: which, a field of ``Work``.
        values: the numbers, in ascending order.
        fixed: everything else.
    """

    name: str
    values: list[int]
    fixed: Work

    @property
    def works(self) -> list[Work]:
        """One for each value."""
        changes: list[dict[str, Any]] = [{self.name: value} for value in self.values]
        return [replace(self.fixed, **change) for change in changes]


def make_axes(values: Mapping[str, Iterable[int]]) -> list[Axis]:
    """The axes to measure, of iterations one for each decoding that has them.

    Args:
        values: like ``VALUES``; no values leave an axis out.

    Raises:
        ValueError: an axis is unknown, has a single value or an impossible one, or nothing is left to measure.
    """
    fixed = {
        "source": [Work(target=16)],
        "target": [Work(source=32)],
        "batch": [Work()],
        "iterations": [Work(decoding=decoding) for decoding in ("mist", "mask-predict")],
    }
    found = []
    for name, given in values.items():
        numbers = sorted(set(given))
        if name not in VALUES:
            raise ValueError(f"axis {name!r} is unknown, expected {', '.join(VALUES)}")
        if numbers and (len(numbers) < 2 or numbers[0] < _FEWEST[name]):
            raise ValueError(f"{name} has the values {numbers}, expected two or more from {_FEWEST[name]} on")
        found += [Axis(name, numbers, work) for work in fixed[name] if numbers]
    if not found:
        raise ValueError(f"no values for any of {', '.join(VALUES)}: there is nothing to measure")
    return found


# -- measurement ------------------------------------------------------------------------------------------------


def make_entries(arguments: list[str], folder: Path, precision: str = "fp32", accelerate: str = "auto") -> list[Entry]:
    """Models with random weights, named after their architecture and its other arguments.

    Args:
        arguments: of each model, what fairseq-train would be given (``--task``, ``--arch``, sizes).
        folder: where ``write_works`` writes their data.
        precision: of all of them.
        accelerate: likewise, one of ``engines.ACCELERATE``.

    Raises:
        ValueError: two models are the same.
    """
    names = [re.sub(r"--task[ =]\S+ *|--arch[ =]", "", text).strip() or text for text in arguments]
    options = {"accelerate": accelerate}
    entries = [
        Entry(name, arguments=text, precision=precision, options=options, data=str(folder))
        for name, text in zip(names, arguments)
    ]
    check_names(entries, "--arguments")
    return entries


def write_works(folder: Path, axes: list[Axis]):
    """Random sentences for all works, one split for each pair of lengths; see ``synthetic.write_data``."""
    sentences: dict[tuple[int, int], int] = {}
    for work in (work for axis in axes for work in axis.works):
        pair = work.source, work.target
        sentences[pair] = max(work.batch, sentences.get(pair, 0))
    for (source, target), number in sentences.items():
        split = Work(source, target).split
        write_data(folder, {"source": {source: 1}, "target": {target: 1}}, number, split)


def load_systems(entries: list[Entry], axes: list[Axis]) -> dict[str, System]:
    """Load all models, by name, with outputs of prescribed lengths.

    Args:
        entries: with the folder of ``write_works``.
        axes: what they are going to do.

    Raises:
        ValueError: a model is not one of ours, cannot be loaded, or its limits are too low for the axes.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    systems = {}
    for entry in tqdm(entries, desc="loading", disable=None):
        system = load_system(entry, device, forced=True)
        if not isinstance(system.generator, NARGenerator):
            raise ValueError(
                f"{entry.name}: generates with {type(system.generator).__name__}, expected a model of --task mist"
            )
        for side in ("source", "target"):
            longest = max(getattr(work, side) for axis in axes for work in axis.works)
            limit = getattr(system.model.limits, side)
            if longest > limit:
                raise ValueError(
                    f"{entry.name} takes {side}s of {limit} tokens, expected at least {longest}: give it "
                    f"--max-{side}-positions {longest}, or lower values of {side}"
                )
        systems[entry.name] = system
    return systems


def measure(systems: dict[str, System], axis: Axis, repeats: int = 15, warm_up: int = 1) -> dict:
    """Time all values of an axis and all models in turn, in another order each time.

    So whatever disturbs the machine disturbs all of them alike. Each is run twice in its turn, as it is and with
    clocks around its parts, which on a GPU cost time.

    Args:
        systems: of ``load_systems``.
        axis: what to do.
        repeats: how often each counts.
        warm_up: how often each runs before that.

    Returns:
        For JSON: by model, for each value the milliseconds of a batch (median and quartiles) and the shares of the
        parts, and the line through the medians.

    Raises:
        ValueError: a model does not make as many passes as it should.
    """
    jobs = [(name, work) for name in systems for work in axis.works]
    samples = {}
    for name, work in jobs:
        systems[name].load_data(work.split)
        samples[name, work] = systems[name].batch(range(work.batch))
    times: dict[tuple[str, Work], list[float]] = {job: [] for job in jobs}
    parts: dict[tuple[str, Work], list[dict[str, float]]] = {job: [] for job in jobs}
    random = np.random.default_rng(1)
    for number in tqdm(range(warm_up + repeats), desc=title(axis.name, axis.fixed.decoding), disable=None):
        for at in random.permutation(len(jobs)):
            name, work = job = jobs[at]
            elapsed, spent = _run(systems[name], work, samples[job])
            if number >= warm_up:
                times[job].append(elapsed)
                parts[job].append(spent)
    models = {}
    for name in systems:
        points = [_point(work, times[name, work], parts[name, work]) for work in axis.works]
        medians = [point["milliseconds"]["median"] for point in points]
        models[name] = {"points": points, "line": fit_line(axis.values, medians)}
    fixed = {key: value for key, value in asdict(axis.fixed).items() if key != axis.name}
    return {"axis": axis.name, "values": axis.values, "fixed": fixed, "repeats": repeats, "models": models}


def _run(system: System, work: Work, sample: dict) -> tuple[float, dict[str, float]]:
    """Milliseconds of a batch, and those of its parts when they are clocked."""
    generator = system.generator
    generator.decoding, generator.iterations = work.decoding, work.iterations
    elapsed, hypotheses = _clock(system.decode, sample)
    passes = {number for _, number in system.read(sample, hypotheses).values()}
    if passes != {work.iterations}:
        raise ValueError(f"{system.entry.name} made {sorted(passes)} passes, expected {work.iterations}")
    spent = dict.fromkeys(PARTS.values(), 0.0)
    with clocked(generator.encoder, spent):
        total, _ = _clock(system.decode, sample)
    return elapsed, spent | {"overhead": total - sum(spent.values())}


def _point(work: Work, times: list[float], parts: list[dict[str, float]]) -> dict:
    """For JSON, from the milliseconds of all repeats."""
    low, median, high = (float(value) for value in np.percentile(times, [25, 50, 75]))
    medians = {part: float(np.median([spent[part] for spent in parts])) for part in parts[0]}
    whole = sum(medians.values())
    return {
        "milliseconds": {"median": median, "quartiles": [low, high]},
        "milliseconds_a_sentence": median / work.batch,
        "shares": {part: value / whole for part, value in medians.items()},
    }


def fit_line(values: list[int], milliseconds: list[float]) -> dict[str, float]:
    """The line of least squares, ``intercept + slope * value``.

    Args:
        values: of the axis, *Shape:* (N).
        milliseconds: of a batch at each, *Shape:* (N).

    Returns:
        ``intercept`` in milliseconds, ``slope`` in milliseconds for each unit of the axis, ``r_squared``: the share of
        the variance that the line explains.
    """
    x, y = np.array(values, dtype=float), np.array(milliseconds, dtype=float)
    slope, intercept = np.polyfit(x, y, 1)
    left, variance = ((y - intercept - slope * x) ** 2).sum(), ((y - y.mean()) ** 2).sum()
    return {
        "intercept": float(intercept),
        "slope": float(slope),
        "r_squared": float(1 - left / variance) if variance else 1.0,  # a level line explains equal values
    }


def describe_systems(systems: dict[str, System]) -> dict[str, dict]:
    """For JSON: what every model is, and what runs its passes."""
    return {
        name: {
            "arguments": system.entry.arguments,
            "precision": system.entry.precision,
            "engine": type(system.generator.encoder).__name__,
            "parameters": system.parameters,
        }
        for name, system in systems.items()
    }


# -- report -----------------------------------------------------------------------------------------------------


def title(axis: str, decoding: str) -> str:
    """Heading of an axis; that of iterations says which."""
    titles = {"source": "Source length", "target": "Target length", "batch": "Batch size"}
    return titles.get(axis) or f"Iterations of {decoding}"


def markdown(result: dict) -> str:
    """Tables and sentences of a result of ``scripts/benchmark_scaling.py``."""
    sections = ["# Cost as work grows"]
    for found in result["axes"]:
        sections += [f"## {title(found['axis'], found['fixed']['decoding'])}", _fixed(found), _table(found)]
        models = found["models"].items()
        sections.append("\n".join(f"- {name}: {line_sentence(found, model['line'])}" for name, model in models))
        sections.append("\n".join(f"- {name}: {parts_sentence(found, model['points'])}" for name, model in models))
    described = ", ".join(
        f"{name} ({content['parameters'] / 1e6:.1f} M parameters, {content['precision']}, {content['engine']})"
        for name, content in result["described"].items()
    )
    sections.append(
        f"{described}; {result['device']}, {result['threads']} threads, torch {result['torch']}. Random weights, "
        f"outputs of prescribed lengths; medians of {result['axes'][0]['repeats']} repeats, all values and models of "
        "an axis in turn. The line is that of least squares through the medians. Shares are measured apart, with "
        "clocks around the parts."
    )
    return "\n\n".join(sections) + "\n"


def _fixed(found: dict) -> str:
    """What stays the same."""
    fixed = found["fixed"]
    named = [_count(fixed[key], _UNITS[key]) for key in _UNITS if key in fixed]
    decoding = [] if found["axis"] == "iterations" else [fixed["decoding"]]
    return f"The same everywhere: {', '.join([*named, *decoding])}."


def _count(number: int, unit: str) -> str:
    return f"{number} {unit if number == 1 else _plural(unit)}"


def _plural(unit: str) -> str:
    return _PLURALS.get(unit, f"{unit}s")


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _table(found: dict) -> str:
    batched = found["axis"] == "batch"
    parts = list(next(iter(found["models"].values()))["points"][0]["shares"])
    heads = ["Models", _plural(_UNITS[found["axis"]]), *(["ms a batch"] if batched else []), "ms a sentence", *parts]
    lines = []
    for name, model in found["models"].items():
        for value, point in zip(found["values"], model["points"]):
            whole = [f"{point['milliseconds']['median']:.2f}"] if batched else []
            shares = [f"{point['shares'][part]:.0%}" for part in parts]
            lines.append([name, str(value), *whole, f"{point['milliseconds_a_sentence']:.2f}", *shares])
    return markdown_table(heads, lines)


def line_sentence(found: dict, line: dict) -> str:
    """What is paid once, what each unit costs, and how much of the line is fixed at its ends.

    Args:
        found: an axis of the result.
        line: of one model, see ``fit_line``.
    """
    unit, fixed, slope = _UNITS[found["axis"]], line["intercept"], line["slope"]
    text = f"{fixed:.2f} ms a batch and {slope:.3f} ms for each {unit}, R² {line['r_squared']:.4f}"
    ends = found["values"][0], found["values"][-1]
    if fixed < 0:
        return f"{text}; the line begins below 0, as the first {_plural(unit)} cost less than the later ones."
    if slope < 0:
        return f"{text}; it does not grow."
    low, high = (f"{_percent(fixed / (fixed + slope * value))} of it at {_count(value, unit)}" for value in ends)
    return f"{text}; what is fixed is {low}, {high}."


def parts_sentence(found: dict, points: list[dict]) -> str:
    """Which part takes most where.

    Args:
        found: an axis of the result.
        points: of one model, one for each value.
    """
    unit = _UNITS[found["axis"]]
    largest = [max(point["shares"], key=point["shares"].get) for point in points]
    stretches = []
    for part, numbers in groupby(range(len(points)), key=largest.__getitem__):
        first, *_, last = 2 * list(numbers)
        begin = f"{_percent(points[first]['shares'][part])} at {found['values'][first]} to " if first < last else ""
        end = f"{_percent(points[last]['shares'][part])} at {_count(found['values'][last], unit)}"
        stretches.append(f"{part} ({begin}{end})")
    return f"the largest part is the {', then the '.join(stretches)}."


def plot(result: dict, path: Path):
    """A panel for each axis: points, the line through them, one colour a model.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    figure = new_figure(12, 10)
    panels = dict(zip(VALUES, figure.subplots(2, 2).flat))
    colours = {name: f"C{number}" for number, name in enumerate(result["described"])}
    for found in result["axes"]:
        axes, decoding = panels[found["axis"]], found["fixed"]["decoding"]
        marker, style = _STYLES[decoding]
        x = np.array([0, found["values"][-1]])
        for name, model in found["models"].items():
            line, colour = model["line"], colours[name]
            label = f"{name}, {decoding}" if found["axis"] == "iterations" else name
            label += f": {line['intercept']:.1f} {line['slope']:+.2f} n, R² {line['r_squared']:.3f}"
            axes.plot(x, line["intercept"] + line["slope"] * x, color=colour, linestyle=style, linewidth=1, alpha=0.7)
            medians = [point["milliseconds"]["median"] for point in model["points"]]
            axes.scatter(found["values"], medians, color=colour, marker=marker, s=25)
            axes.plot([], [], color=colour, marker=marker, linestyle=style, label=label)  # for the legend
        axes.set_xlabel(f"n, {_plural(_UNITS[found['axis']])}")
        axes.set_ylabel("milliseconds a batch")
        axes.grid(color="0.9")
        axes.set_axisbelow(True)
        axes.set_ylim(bottom=0)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), frameon=False, fontsize=9)
    for name in panels.keys() - {found["axis"] for found in result["axes"]}:
        panels[name].set_visible(False)
    with whole_file(path) as partial:
        figure.savefig(partial, dpi=150, format=path.suffix[1:])
