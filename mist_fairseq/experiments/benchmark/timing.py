"""Time any number of systems side by side, on the same sentences, and score what they say."""

import ctypes
import multiprocessing
import platform
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from difflib import SequenceMatcher
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from tqdm import tqdm

from mist_fairseq.experiments.benchmark.floor import Rates, floor_seconds, machine_rates, products
from mist_fairseq.experiments.benchmark.systems import Entry, System, load_system
from mist_fairseq.models.generator import NARGenerator
from mist_fairseq.scoring.scores import PROTOCOLS, score

RESAMPLES = 1000
_Result = TypeVar("_Result")
PARTS = {
    "encode_source": "source pass",
    "encode_and_guess": "source pass",
    "length_logits": "length",
    "decode_target": "target pass",
    "likeliest_tokens": "head",
}


class Benchmark:
    """Systems loaded into one process. One that fails is left out from then on, and ``errors`` says why.

    Args:
        entries: the first is what the others' speed is compared with.
        subset: ``test`` or the like.
        forced: give every output the length of its reference.
        threads: of the CPU, for each system; None for torch's default.
    """

    def __init__(self, entries: list[Entry], subset: str = "test", forced: bool = False, threads: int | None = None):
        if threads is not None:
            torch.set_num_threads(threads)
        self.entries, self.subset, self.forced = entries, subset, forced
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.systems: dict[str, System] = {}
        self.errors: dict[str, str] = {}
        self.parameters: dict[str, int] = {}
        for entry in tqdm(entries, desc="loading", disable=None):
            self._guard(entry.name, self._load, entry)

    def _load(self, entry: Entry):
        system = load_system(entry, self.device, self.forced)
        system.load_data(self.subset)
        for first in list(self.systems.values())[:1]:
            _check_same_sentences(first, system)
        self.systems[entry.name] = system
        self.parameters[entry.name] = system.parameters

    def _guard(self, name: str, work: Callable, *arguments):
        """The result of *work*; if it fails, the system is out."""
        try:
            return work(*arguments)
        except Exception as error:  # noqa: BLE001 - whatever one system does wrong, the others go on
            lines = str(error).strip().splitlines() or [""]
            self.errors[name] = f"{type(error).__name__}: {lines[0]}".removeprefix("ValueError: ")
            if name in self.systems:
                self.systems.pop(name).close()
            return None

    def choose(self, sentences: int) -> np.ndarray:
        """Sentences evenly spaced over the data, in the order of their length."""
        if not self.systems:
            raise ValueError(f"no system could be loaded: {self.errors}")
        dataset = next(iter(self.systems.values())).dataset
        chosen = np.unique(np.linspace(0, len(dataset) - 1, min(sentences, len(dataset))).astype(int))
        return _by_length(dataset, chosen)

    def time(self, chosen: np.ndarray, batch_size: int, warm_up: int = 3) -> dict:
        """Milliseconds of every system on the same batches, all systems in turn at each.

        So whatever disturbs the machine disturbs all of them alike, and the ratios hold.

        Args:
            chosen: sentences.
            batch_size: sentences at a time.
            warm_up: batches before the clock counts.

        Returns:
            For JSON: by system, milliseconds a sentence (mean, median, p90, p99 over batches), sentences/s, tokens and
            passes a sentence, how many sentences took how many passes, how many times as fast as the first it is, with
            a 95 % bootstrap interval over batches.
        """
        parts = _batches(chosen, batch_size)
        times: dict[str, list[float]] = {name: [] for name in self.systems}
        outputs: dict[str, dict[int, tuple[list[int], int]]] = {name: {} for name in self.systems}
        # From the longest on, so that no batch is the first of its size.
        warm = [parts[i] for i in np.linspace(len(parts) - 1, 0, warm_up).astype(int)]

        def once(system: System, part: np.ndarray, counts: bool):
            sample = system.batch(part)
            elapsed, hypotheses = _clock(system.decode, sample)
            found = system.read(sample, hypotheses)
            time.sleep(system.settle)
            if counts:
                times[system.entry.name].append(elapsed)
                outputs[system.entry.name] |= found

        for number, part in enumerate(tqdm([*warm, *parts], desc=f"batches of {batch_size}", disable=None)):
            names = list(self.systems)
            turn = number % max(1, len(names))
            for name in names[turn:] + names[:turn]:
                self._guard(name, once, self.systems[name], part, number >= warm_up)
        weights = np.array([len(part) for part in parts])
        first = self.entries[0].name
        base = np.array(times[first]) if first in self.systems else None
        return {
            "batch_size": batch_size,
            "sentences": len(chosen),
            "systems": {
                name: {
                    **_summary(np.array(times[name]), weights, base),
                    "tokens_per_sentence": float(np.mean([len(tokens) for tokens, _ in outputs[name].values()])),
                    "passes_per_sentence": float(np.mean([passes for _, passes in outputs[name].values()])),
                    "passes": dict(sorted(Counter(passes for _, passes in outputs[name].values()).items())),
                }
                for name in self.systems
            },
        }

    def parts(self, chosen: np.ndarray, batch_size: int) -> dict[str, dict[str, float]]:
        """Where the time of our own systems goes: milliseconds a sentence by part of the computation."""
        batches = _batches(chosen, batch_size)

        def measure(system: System) -> dict[str, float]:
            spent = dict.fromkeys([*PARTS.values(), "overhead"], 0.0)
            with clocked(system.generator.encoder, spent):
                for number, part in enumerate([batches[-1], *batches]):
                    if number == 1:  # the first warms up
                        spent.update(dict.fromkeys(spent, 0.0))
                    total, _ = _clock(system.decode, system.batch(part))
                    spent["overhead"] += total
            spent["overhead"] -= sum(spent[part] for part in set(PARTS.values()))
            return {part: milliseconds / len(chosen) for part, milliseconds in spent.items()}

        found = {name: self._guard(name, measure, system) for name, system in self._ours().items()}
        return {name: spent for name, spent in found.items() if spent}

    def _ours(self) -> dict[str, System]:
        """The systems that are made of a source pass and a target pass."""
        return {name: one for name, one in self.systems.items() if isinstance(one.generator, NARGenerator)}

    def rates(self) -> dict[str, Rates]:
        """What the machine reaches now, in every precision of our own systems."""
        precisions = {system.entry.precision for system in self._ours().values()}
        return {precision: machine_rates(precision, self.device) for precision in sorted(precisions)}

    def floor(self, chosen: np.ndarray, batch_size: int, rates: dict[str, Rates]) -> dict[str, float]:
        """Milliseconds a sentence that our own systems' matrix products take at least, at these rates.

        Each batch counts as sentences of its mean lengths, the outputs as long as the references. Guessed lengths
        count as right.
        """

        def least(system: System) -> float:
            generator, seconds = system.generator, 0.0
            for part in _batches(chosen, batch_size):
                source, target = np.mean([system.dataset.size(int(i)) for i in part], axis=0).round().astype(int)
                found = products(
                    system.model.encoder,
                    int(source),
                    int(target),
                    len(part),
                    precision=system.entry.precision,
                    decoding=generator.decoding,
                    iterations=generator.iterations,
                    source_limit=system.model.limits.source,
                    blocks=generator.guesses or None,
                )
                seconds += floor_seconds(found, rates[system.entry.precision])
            return 1000 * seconds / len(chosen)

        found = {name: self._guard(name, least, system) for name, system in self._ours().items()}
        return {name: milliseconds for name, milliseconds in found.items() if milliseconds}

    def scores(
        self,
        reference: list[str],
        source: list[str] | None,
        protocol: str,
        metrics: list[str] | None = None,
        batch_size: int = 64,
    ) -> dict[str, dict]:
        """Scores of all outputs of the subset, and the first outputs, by system; arguments as of ``score``."""
        texts = {}

        def generate(system: System) -> list[str]:
            dataset, found = system.dataset, dict[int, tuple[list[int], int]]()
            if len(dataset) != len(reference):
                raise ValueError(f"{len(dataset):,} sentences in {system.entry.data} but {len(reference):,} references")
            batches = _batches(_by_length(dataset, np.arange(len(dataset))), batch_size)
            for part in tqdm(batches, desc=system.entry.name, disable=None):
                sample = system.batch(part)
                found |= system.read(sample, system.decode(sample))
            return [system.text(found[i][0]) for i in range(len(dataset))]

        for name in list(self.systems):
            lines = self._guard(name, generate, self.systems[name])
            if lines is not None:
                texts[name] = lines
        results = score(texts, reference, source, protocol=PROTOCOLS[protocol], metrics=metrics) if texts else {}
        return {name: result.as_dict() | {"outputs": texts[name][:20]} for name, result in results.items()}

    def memory(self, chosen: np.ndarray, batch_size: int) -> dict[str, int | None]:
        """Most bytes that weights and computation take, of each system in a process of its own."""
        batch = chosen[-batch_size:].tolist()
        found = {}
        for entry in tqdm([e for e in self.entries if e.name in self.systems], desc="memory", disable=None):
            given = entry, self.subset, batch, self.forced, torch.get_num_threads()
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                found[entry.name] = self._guard(entry.name, pool.submit(_peak_memory, *given).result)
        return found

    def describe(self) -> dict:
        """For JSON: the machine, and what every system is; why one failed."""
        name = torch.cuda.get_device_name() if self.device.type == "cuda" else _processor()
        hidden = ("name", "folder")
        described = {
            entry.name: {key: value for key, value in asdict(entry).items() if value and key not in hidden}
            for entry in self.entries
        }
        for key, content in described.items():
            if key in self.parameters:
                content["parameters"] = self.parameters[key]
            if key in self.errors:
                content["error"] = self.errors[key]
        return {
            "device": name,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "forced_lengths": self.forced,
            "described": described,
        }


def _by_length(dataset, indices: np.ndarray) -> np.ndarray:
    """Sentences in the order of their sources' lengths."""
    return indices[np.argsort([dataset.size(int(i))[0] for i in indices], kind="stable")]


def _batches(indices: np.ndarray, size: int) -> list[np.ndarray]:
    return [indices[at : at + size] for at in range(0, len(indices), size)]


def _check_same_sentences(first: System, system: System):
    """Refuse data with other sentences than the first system's, whatever the tokens."""
    if len(system.dataset) != len(first.dataset):
        raise ValueError(
            f"its data has {len(system.dataset):,} sentences, that of {first.entry.name} {len(first.dataset):,}: all "
            "systems are timed on the same"
        )
    rows = np.unique(np.linspace(0, len(first.dataset) - 1, 20).astype(int))
    alike = 0
    for i in rows:
        texts = (s.dictionary.string(s.dataset[int(i)]["source"], "sentencepiece") for s in (first, system))
        plain = ["".join(c for c in text.lower() if c.isalnum()) for text in texts]
        length = min(map(len, plain))  # one may be cut earlier
        alike += SequenceMatcher(None, plain[0][:length], plain[1][:length], autojunk=False).ratio() > 0.5
    if alike < len(rows) / 2:
        raise ValueError(f"its data has other sentences than that of {first.entry.name}")


def _clock(work: Callable[..., _Result], *args, **kwargs) -> tuple[float, _Result]:
    """Milliseconds of *work*, and its result."""
    _synchronize()
    start = time.perf_counter()
    result = work(*args, **kwargs)
    _synchronize()
    return 1000 * (time.perf_counter() - start), result


def _synchronize():
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@contextmanager
def clocked(encoder, spent: dict[str, float]):
    """Add the milliseconds of an encoder's parts to *spent*, which has one for each of ``PARTS``."""

    def timed(method: Callable, part: str) -> Callable:
        def call(*args, **kwargs):
            elapsed, result = _clock(method, *args, **kwargs)
            spent[part] += elapsed
            return result

        return call

    usual = {name: vars(encoder).get(name) for name in PARTS}
    for name, part in PARTS.items():
        if hasattr(encoder, name):
            setattr(encoder, name, timed(getattr(encoder, name), part))
    try:
        yield
    finally:
        for name, method in usual.items():
            if method is not None:
                setattr(encoder, name, method)
            elif name in vars(encoder):
                delattr(encoder, name)


def _summary(times: np.ndarray, weights: np.ndarray, first: np.ndarray | None) -> dict:
    """Of the batches' milliseconds.

    Args:
        times: of each batch, *Shape:* (batches).
        weights: sentences of each batch, *Shape:* (batches).
        first: milliseconds of the system to compare with.
    """
    each = np.repeat(times / weights, weights)
    summary = {
        "milliseconds": {
            "mean": float(each.mean()),
            "median": float(np.median(each)),
            **{f"p{q}": float(np.percentile(each, q)) for q in (90, 99)},
        },
        "sentences_per_second": float(1000 * weights.sum() / times.sum()),
    }
    if first is not None:
        resamples = np.random.default_rng(1).integers(len(times), size=(RESAMPLES, len(times)))
        ratios = first[resamples].sum(1) / times[resamples].sum(1)
        summary["speed_up"] = float(first.sum() / times.sum())
        summary["speed_up_interval"] = [float(np.percentile(ratios, q)) for q in (2.5, 97.5)]
    return summary


def _processor() -> str:
    """What /proc/cpuinfo calls the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "cpu"


def _peak_memory(entry: Entry, subset: str, batch: list[int], forced: bool, threads: int) -> int | None:
    """Run one system alone in this process. Returns bytes, None where the system does not tell."""
    torch.set_num_threads(threads)
    before = _status("VmRSS")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    system = load_system(entry, device, forced)
    system.load_data(subset)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    elif before is not None:
        # Loading takes more than running does: begin anew.
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    system.decode(system.batch(batch))
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() if entry.engine != "ctranslate2" else None  # not torch's memory
    after = _status("VmHWM")
    return None if before is None or after is None else after - before


def _status(field: str) -> int | None:
    """Bytes, from /proc/self/status."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))
