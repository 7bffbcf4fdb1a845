"""Latency of trained checkpoints, measured side by side."""

import copy
import platform
import time
from dataclasses import dataclass

import numpy as np
import torch
from fairseq import checkpoint_utils, utils
from tqdm import tqdm

RESAMPLES = 1000


@dataclass
class System:
    """A checkpoint ready to generate.

    Attributes:
        name: of the user's choice.
        path: checkpoint.
        options: of the task, by their field names: ``decoding``, ``decoding_iterations``, ``precision``, ...
    """

    name: str
    path: str
    options: dict

    def load(self, data: str, device: torch.device):
        """Load through fairseq's checkpoint code; ``data`` is the folder of binarized data."""
        overrides = {"data": data, **self.options}
        (self.model,), self.cfg, self.task = checkpoint_utils.load_model_ensemble_and_task([self.path], overrides)
        self.model.eval().to(device)
        self.generator = self.task.build_generator([self.model], self.cfg.generation)

    def run(self, sample: dict) -> tuple[float, int, int]:
        """Milliseconds of ``task.inference_step``, tokens generated, passes over the target."""
        _synchronize()
        start = time.perf_counter()
        hypotheses = self.task.inference_step(self.generator, [self.model], sample)
        _synchronize()
        elapsed = 1000 * (time.perf_counter() - start)
        best = [one[0] for one in hypotheses]
        return elapsed, sum(len(one["tokens"]) for one in best), sum(one["steps"] for one in best)


def _synchronize():
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def measure(
    systems: list[System], data: str, subset: str, *, batch_size: int = 1, sentences: int = 200, warm_up: int = 5
) -> dict:
    """Time every system on the same sentences, one batch after the other, all systems at each.

    So whatever disturbs the machine disturbs all of them alike, and the ratios hold.

    Args:
        systems: the first is what the others are compared with.
        data: folder of binarized data.
        subset: ``test`` or the like.
        batch_size: sentences at a time.
        sentences: how many, evenly spaced over the data.
        warm_up: batches before the clock counts.

    Returns:
        For JSON: per system milliseconds a batch (mean, median, p90, p99), sentences/s, tokens and passes a sentence,
        and how many times as fast as the first it is, with a 95 % bootstrap interval over batches; and the device,
        threads and torch version.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for system in systems:
        system.load(data, device)
    task = systems[0].task
    task.load_dataset(subset)
    dataset = task.dataset(subset)
    chosen = np.unique(np.linspace(0, len(dataset) - 1, min(sentences, len(dataset))).astype(int))
    chosen = chosen[np.argsort(dataset.source_sizes[chosen], kind="stable")]
    batches = [
        dataset.collater([dataset[i] for i in chosen[at : at + batch_size]]) for at in range(0, len(chosen), batch_size)
    ]
    if device.type == "cuda":
        batches = utils.move_to_cuda(batches)
    times = {system.name: [] for system in systems}
    tokens, passes = dict.fromkeys(times, 0), dict.fromkeys(times, 0)
    warm = [batches[i % len(batches)] for i in range(warm_up)]
    for number, batch in enumerate(tqdm([*warm, *batches], desc=f"batches of {batch_size}", disable=None)):
        turn = number % len(systems)
        for system in systems[turn:] + systems[:turn]:
            elapsed, generated, steps = system.run(copy.deepcopy(batch))
            if number >= warm_up:
                times[system.name].append(elapsed)
                tokens[system.name] += generated
                passes[system.name] += steps
    first = np.array(times[systems[0].name])
    return {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "batch_size": batch_size,
        "sentences": len(chosen),
        "systems": {
            system.name: {
                "checkpoint": system.path,
                "options": system.options,
                **_summary(np.array(times[system.name]), first, len(chosen)),
                "tokens_per_sentence": tokens[system.name] / len(chosen),
                "passes_per_sentence": passes[system.name] / len(chosen),
            }
            for system in systems
        },
    }


def _summary(times: np.ndarray, first: np.ndarray, sentences: int) -> dict:
    """Of the batches' milliseconds; *first*: those of the system to compare with."""
    resamples = np.random.default_rng(1).integers(len(times), size=(RESAMPLES, len(times)))
    ratios = first[resamples].sum(1) / times[resamples].sum(1)
    return {
        "milliseconds": {
            "mean": times.mean(),
            "median": np.median(times),
            **{f"p{q}": np.percentile(times, q) for q in (90, 99)},
        },
        "sentences_per_second": 1000 * sentences / times.sum(),
        "speed_up": first.sum() / times.sum(),
        "speed_up_interval": [np.percentile(ratios, 2.5), np.percentile(ratios, 97.5)],
    }
