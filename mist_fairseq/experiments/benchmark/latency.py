"""Time any number of systems side by side, on the same sentences, and score what they say."""

import ctypes
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from difflib import SequenceMatcher
from pathlib import Path
from time import process_time, sleep
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from mist_fairseq.experiments.benchmark import measuring
from mist_fairseq.experiments.benchmark.floor import (
    COPIED,
    PRODUCT,
    WEIGHT_BYTES,
    Rates,
    floor_seconds,
    machine_rates,
    products,
)
from mist_fairseq.experiments.benchmark.inputs import GROUPS, Entry
from mist_fairseq.experiments.benchmark.systems import System, load_system
from mist_fairseq.experiments.results import new_figure, save_figure
from mist_fairseq.files.markdown import markdown_table
from mist_fairseq.scoring.scores import PROTOCOLS, score, with_trivial

MODES = ["warm", "cold"]
_STRETCH = 5  # batches

# As the paper's tables head them.
_METRICS = {
    "bleu-1": "BLEU-1",
    "bleu-4": "BLEU-4",
    "meteor15": "METEOR",
    "rouge155-1": "R-1",
    "rouge155-2": "R-2",
    "rouge155-l": "R-L",
    **{f"rouge-package-{kind.lower()}": f"R-{kind} (package)" for kind in "12L"},
    "rouge-l": "ROUGE-L",
    "sacrebleu": "sacrebleu",
    "ibleu": "iBLEU",
    "source-bleu": "BLEU with the source",
    "copies": "copies",
}


class Benchmark:
    """Systems in one process, compared with the first, and with those in *over*, which are names.

    One that fails is left out from then on, ``errors`` says why.
    """

    def __init__(self, entries: list[Entry], subset: str = "test", forced: bool = False, over: Sequence[str] = ()):
        self.entries, self.subset, self.forced, self.over = entries, subset, forced, over
        self.systems: dict[str, System] = {}
        self.errors: dict[str, str] = {}
        self.parameters: dict[str, int] = {}
        gpu = torch.cuda.is_available()
        self.not_run = {entry.name: "no GPU" for entry in entries if entry.needs_gpu and not gpu}
        self.not_run |= {entry.name: "on CPUs only" for entry in entries if entry.engine == "onnx" and gpu}
        for entry in tqdm(entries, desc="loading", disable=None):
            if entry.name not in self.not_run:
                self._guard(entry.name, self._load, entry)

    def _load(self, entry: Entry):
        system = load_system(entry, self.forced)
        system.load_data(self.subset)
        if self.systems:
            _check_same_sentences(next(iter(self.systems.values())), system)
        self.systems[entry.name] = system
        self.parameters[entry.name] = system.parameters

    def _guard(self, name: str, work: Callable, *arguments):
        """Return the result of *work*; if it fails, the system is out."""
        try:
            return work(*arguments)
        except Exception as error:  # noqa: BLE001 - whatever one system does wrong, the others go on
            lines = str(error).strip().splitlines() or [""]
            self.errors[name] = f"{type(error).__name__}: {lines[0]}".removeprefix("ValueError: ")
            self.systems.pop(name, None)
            return None

    def _each(self, work: Callable[[System], Any], ours: bool = False) -> dict:
        """Return by name what *work* gives; *ours* are only the systems made of source passes and target passes."""
        asked = {name: system for name, system in self.systems.items() if system.is_ours or not ours}
        results = {name: self._guard(name, work, system) for name, system in asked.items()}
        return {name: result for name, result in results.items() if result is not None}

    def choose(self, sentences: int) -> np.ndarray:
        """Return sentences evenly spaced over the data, in the order of their length."""
        if not self.systems:
            raise ValueError(f"no system could be loaded: {self.errors}")
        dataset = next(iter(self.systems.values())).dataset
        return _by_length(dataset, _evenly(len(dataset), sentences))

    def time(self, chosen: np.ndarray, batch_size: int, mode: str = "warm") -> dict:
        """Time every system on the same batches, all systems in turn, so that what disturbs the machine disturbs all.

        *mode* is ``warm``, in turn at every stretch of batches, of which each system answers the first once more before
        the clock starts, as on a busy server of one model; or ``cold``, in turn at every batch: after another's turn
        weights and threads are cold, as where one model serves now and then among others.

        Returns for JSON by system its ``summary``, speed over others, tokens and passes a sentence, and how many
        sentences took how many passes.
        """
        batches = _batches(chosen, batch_size)
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in self.systems}
        outputs: dict[str, dict[int, tuple[list[int], int]]] = {name: {} for name in self.systems}

        def prepare(system: System, stretch: list[np.ndarray]) -> list:
            return [system.batch(batch) for batch in stretch]

        def turn(system: System, samples: list):
            if mode == "warm":
                system.decode(samples[0])
            for sample in samples:
                before = process_time()
                elapsed, hypotheses = measuring.milliseconds(system.decode, sample)
                times[system.entry.name].append((elapsed, 1000 * (process_time() - before)))
                outputs[system.entry.name] |= system.read(sample, hypotheses)
            sleep(system.settle)

        def capture(system: System):
            for batch in 2 * batches[::-1] if system.captures else ():  # twice, as a large graph replaces all before it
                system.decode(system.batch(batch))

        for name, system in list(self.systems.items()):
            self._guard(name, capture, system)
        size = _STRETCH if mode == "warm" else 1
        stretches = [batches[at : at + size] for at in range(0, len(batches), size)]
        for number, stretch in enumerate(tqdm(stretches, desc=f"batches of {batch_size}, {mode}", disable=None)):
            names = list(self.systems)
            first = number % max(1, len(names))
            # Before any turn, as torch's threads wait busily after this.
            samples = {name: self._guard(name, prepare, self.systems[name], stretch) for name in names}
            sleep(System.settle)
            for name in names[first:] + names[:first]:
                if samples[name] is not None:
                    self._guard(name, turn, self.systems[name], samples[name])
        sizes = np.array([len(batch) for batch in batches])
        measured, systems = {name: np.array(times[name]) for name in self.systems}, {}
        elapsed = {name: both[:, 0] for name, both in measured.items()}
        bases = {name: elapsed[name] for name in self.over if name in elapsed}
        for name in self.systems:
            tokens, passes = zip(*outputs[name].values())
            systems[name] = {
                **summary(elapsed[name], sizes, elapsed.get(self.entries[0].name)),
                "cpu_milliseconds": float(measured[name][:, 1].sum() / sizes.sum()),
                "over": {base: speed_up(spent, elapsed[name]) for base, spent in bases.items()},
                "tokens_per_sentence": float(np.mean([len(ids) for ids in tokens])),
                "passes_per_sentence": float(np.mean(passes)),
                "passes": dict(sorted(Counter(passes).items())),
            }
        return {"batch_size": batch_size, "mode": mode, "sentences": len(chosen), "systems": systems}

    def parts(self, chosen: np.ndarray, batch_size: int) -> dict[str, dict[str, float]]:
        """Time the parts of our own systems: milliseconds a sentence."""
        batches = _batches(chosen, batch_size)

        def measure(system: System) -> dict[str, float]:
            # The first warms up.
            _, *times = (system.time_parts(system.batch(batch)) for batch in [batches[-1], *batches])
            return {part: sum(spent[part] for spent in times) / len(chosen) for part in times[0]}

        return self._each(measure, ours=True)

    def rates(self, mode: str = "warm") -> dict[str, Rates]:
        """Measure what the machine reaches now, for each of our own systems.

        Bytes are read from memory, but where a *warm* system's weights stay in a cache.
        """
        measured: dict[tuple[str, int], Rates] = {}

        def rates(system: System) -> Rates:
            precision = system.entry.precision
            read = min(COPIED, WEIGHT_BYTES[precision] * system.parameters) if mode == "warm" else COPIED
            if (precision, read) not in measured:
                measured[precision, read] = machine_rates(precision, system.device, read)
            return measured[precision, read]

        return self._each(rates, ours=True)

    def floor(self, chosen: np.ndarray, batch_size: int, rates: dict[str, Rates]) -> dict[str, float]:
        """Return the milliseconds a sentence that our own systems' matrix products take at least, at these rates."""

        def least(system: System) -> float:
            seconds, precision, decoding = 0.0, system.entry.precision, system.generator.decoding
            how = {"decoding": decoding.decoding, "iterations": decoding.passes}
            for batch in _batches(chosen, batch_size):  # counted by its mean lengths, outputs as long as references
                source, target = np.mean([system.dataset.size(int(i)) for i in batch], axis=0).round().astype(int)
                sizes = int(source), int(target), len(batch)
                listed = products(system.model.encoder, *sizes, **how, source_limit=system.model.limits.source)
                seconds += floor_seconds(listed, rates[system.entry.name], precision)
            return 1000 * seconds / len(chosen)

        return self._each(least, ours=True)

    def scores(
        self, reference: list[str], source: list[str] | None, protocol: str, metrics: list[str] | None = None
    ) -> dict[str, dict]:
        """Score all outputs of the subset; by system, scores and the first outputs. Arguments as of ``score``.

        The protocol's system without a model is among them, where the sources are given.
        """

        def generate(system: System) -> list[str]:
            dataset, answers = system.dataset, dict[int, tuple[list[int], int]]()
            if len(dataset) != len(reference):
                raise ValueError(f"{len(dataset):,} sentences in {system.entry.data} but {len(reference):,} references")
            batches = _batches(_by_length(dataset, np.arange(len(dataset))), 64)
            for batch in tqdm(batches, desc=system.entry.name, disable=None):
                sample = system.batch(batch)
                answers |= system.read(sample, system.decode(sample))
            return [system.text(answers[i][0]) for i in range(len(dataset))]

        texts = self._each(generate)
        if texts:
            texts = with_trivial(texts, source, PROTOCOLS[protocol])
        results = score(texts, reference, source, protocol=PROTOCOLS[protocol], metrics=metrics) if texts else {}
        return {name: result.as_dict() | {"outputs": texts[name][:20]} for name, result in results.items()}

    def memory(self, chosen: np.ndarray, batch_size: int) -> dict[str, int | None]:
        """Return the most bytes that weights and computation take, of each system loaded once more."""
        entries = [entry for entry in self.entries if entry.name in self.systems]
        given = self.subset, chosen[-batch_size:].tolist(), self.forced
        return {
            entry.name: self._guard(entry.name, measuring.apart, _peak_memory, entry, *given)
            for entry in tqdm(entries, desc="memory", disable=None)
        }

    def describe(self) -> dict:
        """Return the machine, what every system is and why one failed, for JSON."""
        described = {}
        for entry in self.entries:
            content = {key: value for key, value in asdict(entry).items() if value and key not in ("name", "folder")}
            for key, known in (("parameters", self.parameters), ("error", self.errors)):
                content |= {key: known[entry.name]} if entry.name in known else {}
            content |= {"not_run": self.not_run[entry.name]} if entry.name in self.not_run else {}
            described[entry.name] = content
        return measuring.machine() | {"forced_lengths": self.forced, "described": described}


def _evenly(count: int, wanted: int) -> np.ndarray:
    return np.unique(np.linspace(0, count - 1, min(wanted, count)).astype(int))


def _by_length(dataset, indices: np.ndarray) -> np.ndarray:
    """Sort sentences by the lengths of their sources."""
    return indices[np.argsort([dataset.size(int(i))[0] for i in indices], kind="stable")]


def _batches(indices: np.ndarray, size: int) -> list[np.ndarray]:
    return [indices[at : at + size] for at in range(0, len(indices), size)]


def _check_same_sentences(first: System, system: System):
    """Refuse data with other sentences than the first system's, whatever the tokens."""
    if len(system.dataset) != len(first.dataset):
        sizes = f"{len(system.dataset):,} sentences, that of {first.entry.name} {len(first.dataset):,}"
        raise ValueError(f"its data has {sizes}: all systems are timed on the same")
    rows, alike = _evenly(len(first.dataset), 20), 0
    for i in rows:
        texts = (s.dictionary.string(s.dataset[int(i)]["source"], "sentencepiece") for s in (first, system))
        plain = ["".join(c for c in text.lower() if c.isalnum()) for text in texts]
        length = min(map(len, plain))  # one may be cut earlier
        alike += SequenceMatcher(None, plain[0][:length], plain[1][:length], autojunk=False).ratio() > 0.5
    if alike < len(rows) / 2:
        raise ValueError(f"its data has other sentences than that of {first.entry.name}")


def summary(times: np.ndarray, sizes: np.ndarray, first: np.ndarray | None) -> dict:
    """Summarize for JSON a system's milliseconds and sentences of each batch, and the *first* one's, all (batches)."""
    each = np.repeat(times / sizes, sizes)
    p90, p99 = np.percentile(each, [90, 99])
    figures = {"mean": each.mean(), "median": np.median(each), "p90": p90, "p99": p99}
    content: dict = {
        "milliseconds": {name: float(value) for name, value in figures.items()},
        "sentences_per_second": float(1000 * sizes.sum() / times.sum()),
    }
    return content if first is None else content | speed_up(first, times)


def speed_up(first: np.ndarray, times: np.ndarray) -> dict:
    """Return for JSON how many times as fast as the first a system is, with its interval; *Shapes:* (batches)."""
    interval = measuring.bootstrap_interval(lambda a, b: a.sum(1) / b.sum(1), first, times)
    return {"speed_up": float(first.sum() / times.sum()), "speed_up_interval": interval}


def _peak_memory(entry: Entry, subset: str, batch: list[int], forced: bool) -> int | None:
    """Load and run one system. Returns bytes, None where the machine does not tell."""
    on_gpu = torch.cuda.is_available()
    before = torch.cuda.memory_allocated() if on_gpu else measuring.memory_status("VmRSS")
    system = load_system(entry, forced)
    system.load_data(subset)
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    elif before is not None:
        # Loading takes more than running does: begin anew.
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    system.decode(system.batch(batch))
    if entry.engine == "ctranslate2" and on_gpu:  # not torch's memory
        return None
    after = torch.cuda.max_memory_allocated() if on_gpu else measuring.memory_status("VmHWM")
    return None if before is None or after is None else after - before


def markdown(result: dict) -> str:
    """Return all tables of a result of ``scripts/benchmark_latency.py``."""
    sections = [_summary_table(result)]
    for run in result["runs"]:
        sections += [f"{_named(run).capitalize()}, {run['sentences']} sentences:", _details(result, run)]
        if run.get("floor"):
            medians = {name: system["milliseconds"]["median"] for name, system in run["systems"].items()}
            floors = [(name, least, medians[name]) for name, least in run["floor"].items()]
            lines = [[name, *(f"{ms:.2f}" for ms in (low, at, at / low))] for name, low, at in floors]
            sections.append("Over the floor, what the matrix products take at least at the machine's rates:")
            sections.append(markdown_table(["Models", "floor, ms", "median, ms", "median ÷ floor"], lines))
    for mode, rates in result.get("rates", {}).items():
        lines = [[name, *(f"{one[key] / 1e9:.0f}" for key in Rates._fields)] for name, one in rates.items()]
        sections.append(f"Rates of {PRODUCT}, and of copying as much as weights are, {mode}:")
        sections.append(markdown_table(["Models", "operations, G/s", "bytes, GB/s"], lines))
    if result.get("parts"):
        parts, lines = list(next(iter(result["parts"].values()))), []
        for name, spent in result["parts"].items():
            share = spent["overhead"] / sum(spent.values())
            lines.append([name, *(f"{spent[part]:.2f}" for part in parts), f"{share:.1%}"])
        sections += ["Milliseconds a sentence by part:", markdown_table(["Models", *parts, "share of overhead"], lines)]
    lengths = "as long as their references" if result["forced_lengths"] else "as long as the systems make them"
    sections.append(
        f"{result['device']}, {result['threads']} threads, torch {result['torch']}; outputs {lengths}. Speed is over "
        "the first system, in the same run, with a 95 % bootstrap interval. Memory: weights and computation, of the "
        "longest sentences. `N` passes are as many as there are tokens."
    )
    return "\n\n".join(sections) + "\n"


def _rows(result: dict) -> list[tuple[str, str]]:
    """Return groups and names, in the paper's order of groups."""
    described = result["described"]
    return [(group, name) for group in GROUPS for name, content in described.items() if content["group"] == group]


def _trivial(result: dict) -> list[str]:
    """Return the names of those that are scored and take no time."""
    return [name for name in result.get("scores", {}) if name not in result["described"]]


def _summary_table(result: dict) -> str:
    """Return the paper's table (group, model, scores, iterations, speed), and what failed."""
    scores, runs = {name: one.get("values", {}) for name, one in result.get("scores", {}).items()}, result["runs"]
    metrics = [key for key in _METRICS if any(key in values for values in scores.values())]
    heads = ["", "Models", *(_METRICS[key] for key in metrics), "Iter."]
    over = list(dict.fromkeys(base for run in runs for one in run["systems"].values() for base in one.get("over", {})))
    columns = [(run, base) for base in [None, *over] for run in runs]  # None is the first system
    heads += [f"{f'Over {base}' if base else 'Speed'}, {_named(run)}" for run, base in columns]
    lines = []
    for group, name in [*_rows(result), *(("", name) for name in _trivial(result))]:
        values, timed = scores.get(name, {}), [run["systems"][name] for run in runs if name in run["systems"]]
        passes, speeds = "" if group else "0", [_speed(name, *column) for column in columns]
        if timed:
            passes = "N" if group == "AR" else f"{timed[0]['passes_per_sentence']:.1f}".removesuffix(".0")
        elif group:
            missing = result["described"][name].get("not_run")
            speeds = [f"not run: {missing}" if missing else "failed"] * len(columns)
        figures = [f"{values[key]:.2f}" if key in values else "" for key in metrics]
        lines.append([group, name, *figures, passes, *speeds])
    table = markdown_table(heads, lines)
    failures = [f"- {name}: {content['error']}" for name, content in result["described"].items() if "error" in content]
    return "\n\n".join([table, "Failed:", "\n".join(failures)]) if failures else table


def _named(run: dict) -> str:
    """``batch 1``, and the mode if it is not the usual one."""
    return f"batch {run['batch_size']}" + (", cold" if run.get("mode") == "cold" else "")


def _speed(name: str, run: dict, base: str | None) -> str:
    timed = run["systems"].get(name, {})
    timed = timed.get("over", {}).get(base, {}) if base else timed
    if "speed_up" not in timed:
        return ""
    low, high = timed["speed_up_interval"]
    one_batch = run["sentences"] <= run["batch_size"]  # whose interval has no width
    return f"{timed['speed_up']:.2f}×" + ("" if one_batch else f" ({low:.2f} - {high:.2f})")


def _details(result: dict, run: dict) -> str:
    heads = ["Models", "ms mean", "median", "p90", "p99", "CPU ms", "sentences/s", "tokens", "passes", "parameters"]
    heads.append("memory")
    lines = []
    for name in [name for _, name in _rows(result) if name in run["systems"]]:
        timed, content, memory = run["systems"][name], result["described"][name], result.get("memory", {}).get(name)
        figures = [timed["milliseconds"][key] for key in ("mean", "median", "p90", "p99")]
        further = "cpu_milliseconds", "sentences_per_second", "tokens_per_sentence", "passes_per_sentence"
        figures += [timed[key] for key in further]
        parameters = f"{content['parameters'] / 1e6:.1f} M"
        size = "" if memory is None else f"{memory / 2**20:,.0f} MiB"
        lines.append([f"{name}, {content['precision']}", *(f"{value:.1f}" for value in figures), parameters, size])
    return markdown_table(heads, lines)


def plot(result: dict, metric: str, path: Path):
    """Draw quality over latency at the first batch size; ValueError if there are no scores of this metric."""
    run, scores = result["runs"][0], result.get("scores", {})
    points = [
        (name, group, run["systems"][name]["milliseconds"]["mean"], scores[name]["values"][metric])
        for group, name in _rows(result)
        if name in run["systems"] and metric in scores.get(name, {}).get("values", {})
    ]
    if not points:
        raise ValueError(f"no scores of {metric}: there is nothing to plot")
    figure = new_figure(11, 6)
    axes = figure.add_subplot()
    style = dict(zip(GROUPS, (("o", "tab:blue"), ("s", "tab:orange"), ("^", "tab:green"))))
    for number, (name, group, x, y) in enumerate(points, 1):
        marker, colour = style[group]
        axes.scatter(x, y, marker=marker, color=colour, s=40, label=f"{number}  {name} ({group})")
        axes.annotate(str(number), (x, y), xytext=(4, 4), textcoords="offset points", fontsize=9)
    for name in _trivial(result):
        if metric in scores[name]["values"]:
            axes.axhline(scores[name]["values"][metric], color="0.5", linestyle="--", label=f"     {name}")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    xlabel = f"milliseconds a sentence, batches of {run['batch_size']}"
    axes.set(xlabel=xlabel, ylabel=_METRICS.get(metric, metric), axisbelow=True)
    axes.grid(color="0.9", which="both")
    figure.legend(loc="outside right upper", frameon=False, fontsize=9)
    save_figure(figure, path)
