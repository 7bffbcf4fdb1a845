"""How a model's time grows with its work: lengths of source and target, sentences a batch, passes over the target.

One of them changes while the others stay. A line through the times tells what is paid once and what each further
token, sentence or pass costs, and clocks around the model's parts tell which of them takes most where.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from mist_fairseq.experiments.benchmark.inputs import Entry, check_names, write_data
from mist_fairseq.experiments.benchmark.measuring import milliseconds
from mist_fairseq.experiments.benchmark.systems import PARTS, System, load_system
from mist_fairseq.experiments.results import new_figure, save_figure
from mist_fairseq.files.markdown import markdown_table


@dataclass(frozen=True)
class Work:
    """What is generated at once: tokens of each ``[CLS] X [SEP]`` and output, sentences, passes over the target."""

    source: int = 14
    target: int = 14
    batch: int = 1
    decoding: str = "single-pass"
    iterations: int = 1

    @property
    def split(self) -> str:
        """The split of the data whose sentences have these lengths."""
        return f"source{self.source}target{self.target}"


class Kind(NamedTuple):
    """A number of ``Work`` that can change: how it is called, what it is at least, its usual values, what is fixed."""

    title: str
    unit: str
    units: str
    fewest: int
    values: list[int]
    fixed: list[Work]


_ITERATED = [Work(decoding="mist"), Work(decoding="mask-predict")]
KINDS = {
    "source": Kind("Source length", "source token", "source tokens", 3, [16, 32, 64, 128, 256, 464], [Work(target=16)]),
    "target": Kind("Target length", "target token", "target tokens", 3, [8, 16, 24, 32, 48], [Work(source=32)]),
    "batch": Kind("Batch size", "sentence", "sentences", 1, [1, 2, 4, 8, 16, 32, 64], [Work()]),
    "iterations": Kind("Iterations of {}", "pass", "passes", 1, [1, 2, 3, 4, 5, 6], _ITERATED),
}
_STYLES = {"single-pass": ("o", "-"), "mist": ("o", "-"), "mask-predict": ("s", "--")}


class Axis(NamedTuple):
    """Works that differ in one number, named as in ``KINDS``, whose values ascend."""

    name: str
    works: list[Work]


def make_axes(values: Mapping[str, Iterable[int]]) -> list[Axis]:
    """List the axes to measure, of iterations one for each decoding that has them.

    *values* are by names of ``KINDS``; none leave an axis out. ValueError: one is impossible or alone, or none is left.
    """
    axes = []
    for name, kind in KINDS.items():
        numbers = sorted(set(values.get(name, [])))
        if numbers and (len(numbers) < 2 or numbers[0] < kind.fewest):
            raise ValueError(f"{name} has the values {numbers}, expected two or more from {kind.fewest} on")
        if numbers:
            axes += [Axis(name, [Work(**asdict(work) | {name: number}) for number in numbers]) for work in kind.fixed]
    if not axes:
        raise ValueError(f"no values for any of {', '.join(KINDS)}: there is nothing to measure")
    return axes


def make_entries(arguments: list[str], folder: Path, precision: str = "fp32", accelerate: str = "auto") -> list[Entry]:
    """List models with random weights, named after their architecture and its other arguments.

    *arguments* are what fairseq-train would be given for each; data are those that ``write_works`` writes to *folder*.
    """
    given: dict = {"precision": precision, "options": {"accelerate": accelerate}, "data": str(folder)}
    names = [re.sub(r"--task[ =]\S+ *|--arch[ =]", "", text).strip() or text for text in arguments]
    entries = [Entry(name, arguments=text, **given) for name, text in zip(names, arguments)]
    check_names(entries, "--arguments")
    return entries


def write_works(folder: Path, axes: list[Axis]):
    """Write random sentences for all works, one split for each pair of lengths; see ``inputs.write_data``."""
    works = sorted((work for axis in axes for work in axis.works), key=lambda work: work.batch)
    for split, work in {work.split: work for work in works}.items():  # of equal lengths the largest batch
        write_data(folder, {"source": {work.source: 1}, "target": {work.target: 1}}, work.batch, split)


def load_systems(entries: list[Entry], axes: list[Axis]) -> dict[str, System]:
    """Load all models, by name, with outputs of prescribed lengths; ValueError where a model's limits are too low."""
    systems = {}
    for entry in tqdm(entries, desc="loading", disable=None):
        system = systems[entry.name] = load_system(entry, forced=True)
        if not system.is_ours:
            kind = type(system.generator).__name__
            raise ValueError(f"{entry.name}: generates with {kind}, expected a model of --task mist")
        for side in ("source", "target"):
            longest = max(getattr(work, side) for axis in axes for work in axis.works)
            limit = getattr(system.model.limits, side)
            if longest > limit:
                advice = f"give it --max-{side}-positions {longest}, or lower values of {side}"
                raise ValueError(f"{entry.name} takes {side}s of {limit} tokens, expected at least {longest}: {advice}")
    return systems


def measure(systems: dict[str, System], axis: Axis, repeats: int = 15, warm_up: int = 1) -> dict:
    """Time all values of an axis and all models in turn, in another order each time, as ``latency`` does.

    Each is run twice in its turn, as it is and with clocks around its parts, which on a GPU cost time. Returns for
    JSON by model each value's milliseconds and shares of the parts, and the line through the medians.
    """
    fixed = asdict(axis.works[0])
    del fixed[axis.name]
    values = [getattr(work, axis.name) for work in axis.works]
    jobs = [(name, work) for name in systems for work in axis.works]
    samples = []
    for name, work in jobs:
        systems[name].load_data(work.split)
        samples.append(systems[name].batch(range(work.batch)))
    runs: list[list[tuple[float, dict[str, float]]]] = [[] for _ in jobs]
    random = np.random.default_rng(1)
    if any(system.captures for system in systems.values()):
        warm_up = max(warm_up, 2)  # a large graph replaces all before it
    for _ in tqdm(range(warm_up + repeats), desc=KINDS[axis.name].title.format(axis.works[0].decoding), disable=None):
        for at in random.permutation(len(jobs)):
            name, work = jobs[at]
            runs[at].append(run(systems[name], work, samples[at]))
    models: dict[str, dict] = {name: {"points": []} for name in systems}
    for (name, work), measured in zip(jobs, runs):
        times, parts = zip(*measured[warm_up:])
        low, median, high = np.percentile(times, [25, 50, 75]).tolist()
        medians = {part: float(np.median([spent[part] for spent in parts])) for part in parts[0]}
        models[name]["points"].append(
            {
                "milliseconds": {"median": median, "quartiles": [low, high]},
                "milliseconds_a_sentence": median / work.batch,
                "shares": {part: value / sum(medians.values()) for part, value in medians.items()},
            }
        )
    for model in models.values():
        model["line"] = fit_line(values, [point["milliseconds"]["median"] for point in model["points"]])
    return {"axis": axis.name, "values": values, "fixed": fixed, "repeats": repeats, "models": models}


def run(system: System, work: Work, sample: dict) -> tuple[float, dict[str, float]]:
    """Return the milliseconds of a batch, and those of its parts when clocked; ValueError if passes are missing."""
    decoding = system.generator.decoding
    system.generator.decoding = replace(decoding, decoding=work.decoding, iterations=work.iterations)
    elapsed, hypotheses = milliseconds(system.decode, sample)
    passes = {number for _, number in system.read(sample, hypotheses).values()}
    if passes != {work.iterations}:
        raise ValueError(f"{system.entry.name} made {sorted(passes)} passes, expected {work.iterations}")
    return elapsed, system.time_parts(sample)


def fit_line(values: list[int], times: list[float]) -> dict[str, float]:
    """Fit the line of least squares; ``r_squared`` is the share of the variance of *times* that it explains."""
    slope, intercept = np.polyfit(values, times, 1)
    left, variance = np.var(times - intercept - slope * np.array(values)), np.var(times)
    r_squared = 1 - left / variance if variance else 1.0  # a level line explains equal values
    return {"intercept": float(intercept), "slope": float(slope), "r_squared": float(r_squared)}


def describe_systems(systems: dict[str, System]) -> dict[str, dict]:
    """Say for JSON what every model is, and what runs its passes."""
    described = {}
    for name, system in systems.items():
        given = {"arguments": system.entry.arguments, "precision": system.entry.precision}
        described[name] = given | {"engine": type(system.model.engine).__name__, "parameters": system.parameters}
    return described


def markdown(result: dict) -> str:
    """Return the tables of a result of ``scripts/benchmark_scaling.py``."""
    sections = ["# Cost as work grows"]
    for measured in result["axes"]:
        given = measured["fixed"]
        fixed = [_count(given[key], kind) for key, kind in KINDS.items() if key in given]
        fixed += [given["decoding"]] if measured["axis"] != "iterations" else []
        title = KINDS[measured["axis"]].title.format(given["decoding"])
        sections += [f"## {title}", f"The same everywhere: {', '.join(fixed)}."]
        sections += [_points_table(measured), _lines_table(measured)]
    described = ", ".join(
        f"{name} ({content['parameters'] / 1e6:.1f} M parameters, {content['precision']}, {content['engine']})"
        for name, content in result["described"].items()
    )
    sections.append(
        f"{described}; {result['device']}, {result['threads']} threads, torch {result['torch']}. Random weights, "
        f"outputs of prescribed lengths; medians of {result['axes'][0]['repeats']} repeats, all values and models of "
        "an axis in turn. The line is that of least squares through the medians; what is fixed is paid once a batch. "
        "Shares are measured apart, with clocks around the parts; the largest is bold."
    )
    return "\n\n".join(sections) + "\n"


def _count(number: int, kind: Kind) -> str:
    return f"{number} {kind.unit if number == 1 else kind.units}"


def _points_table(measured: dict) -> str:
    is_batched = measured["axis"] == "batch"
    batch_head, lines = ["ms a batch"] if is_batched else [], []
    heads = ["Models", KINDS[measured["axis"]].units, *batch_head, "ms a sentence", *PARTS]
    for name, model in measured["models"].items():
        for value, point in zip(measured["values"], model["points"]):
            batch = [f"{point['milliseconds']['median']:.2f}"] if is_batched else []
            shares = [point["shares"][part] for part in PARTS]
            cells = [f"**{share:.0%}**" if share == max(shares) else f"{share:.0%}" for share in shares]
            lines.append([name, str(value), *batch, f"{point['milliseconds_a_sentence']:.2f}", *cells])
    return markdown_table(heads, lines)


def _lines_table(measured: dict) -> str:
    kind, ends = KINDS[measured["axis"]], (measured["values"][0], measured["values"][-1])
    heads = ["Models", "fixed, ms", f"ms for each {kind.unit}", "R²", *(f"fixed at {_count(n, kind)}" for n in ends)]
    lines = []
    for name, model in measured["models"].items():
        fixed, slope = model["line"]["intercept"], model["line"]["slope"]
        # Of a line that begins below 0 or falls nothing is fixed.
        shares = [f"{fixed / (fixed + slope * value):.0%}" if fixed >= 0 <= slope else "" for value in ends]
        lines.append([name, f"{fixed:.2f}", f"{slope:.3f}", f"{model['line']['r_squared']:.4f}", *shares])
    return markdown_table(heads, lines)


def plot(result: dict, path: Path):
    """Draw a panel for each axis: points, the line through them, one colour a model; errors as of ``new_figure``."""
    figure = new_figure(12, 10)
    panels = dict(zip(KINDS, figure.subplots(2, 2).flat))
    colours = {name: f"C{number}" for number, name in enumerate(result["described"])}
    for measured in result["axes"]:
        axes, decoding = panels[measured["axis"]], measured["fixed"]["decoding"]
        marker, dashes = _STYLES[decoding]
        x = np.array([0, measured["values"][-1]])
        for name, model in measured["models"].items():
            line, style = model["line"], {"color": colours[name], "marker": marker, "linestyle": dashes}
            label = f"{name}, {decoding}" if measured["axis"] == "iterations" else name
            label += f": {line['intercept']:.1f} {line['slope']:+.2f} n, R² {line['r_squared']:.3f}"
            medians = [point["milliseconds"]["median"] for point in model["points"]]
            axes.plot(x, line["intercept"] + line["slope"] * x, **style | {"marker": ""}, linewidth=1, alpha=0.7)
            axes.plot(measured["values"], medians, **style | {"linestyle": ""}, markersize=5)
            axes.plot([], [], **style, label=label)  # for the legend
        axes.set(xlabel=f"n, {KINDS[measured['axis']].units}", ylabel="milliseconds a batch", axisbelow=True)
        axes.grid(color="0.9")
        axes.set_ylim(bottom=0)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), frameon=False, fontsize=9)
    for name in panels.keys() - {measured["axis"] for measured in result["axes"]}:
        panels[name].set_visible(False)
    save_figure(figure, path)
