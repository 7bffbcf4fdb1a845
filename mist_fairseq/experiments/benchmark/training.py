"""Time updates of fairseq's own trainer, with the MIST loss beside without, as shares of what the machine can do."""

import logging
import shlex
import warnings
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from fairseq import tasks
from fairseq.trainer import Trainer
from tqdm import tqdm

import mist_fairseq.tasks  # noqa: F401 # registers with fairseq
from mist_fairseq.experiments.benchmark import measuring
from mist_fairseq.experiments.benchmark.floor import PRODUCT, fastest_product, training_operations
from mist_fairseq.experiments.benchmark.inputs import Entry, write_data
from mist_fairseq.experiments.benchmark.systems import training_configuration
from mist_fairseq.files.markdown import markdown_table

ARMS = {"MIST": 1.0, "no mixing": 0.0}  # with their --mist-loss-factor
_BATCHES = 4  # different ones, taken in turn


def write_batches(folder: Path, profile: dict, batch_size: int):
    """Write random sentences of a profile's lengths for a few different batches."""
    write_data(folder, profile, _BATCHES * batch_size, "train")


class Training:
    """A model with random weights, fairseq's trainer for it, its batches, and their ``training_operations``."""

    def __init__(self, entry: Entry, arm: str):
        self.arm = arm
        arguments = (
            "--task mist --criterion mist_loss --optimizer bert_adamw --lr 3e-5 --clip-norm 1.0 --label-smoothing 0.1 "
            f"--mist-loss-factor {ARMS[arm]} --precision {entry.precision} {entry.arguments}"
        )
        cfg = training_configuration(replace(entry, arguments=arguments))
        task = tasks.setup_task(cfg.task)
        model = task.build_model(cfg.model)
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        task.load_dataset("train")
        dataset, self.batches, self.operations = task.dataset("train"), [], []
        options = {"mixing": ARMS[arm] > 0, "glancing": cfg.criterion.glancing_ratio > 0}
        for rows in np.split(dataset.ordered_indices(), _BATCHES):
            batch = dataset.collater([dataset[int(i)] for i in rows])
            lengths = [batch["net_input"][name].tolist() for name in ("src_lengths", "target_lengths")]
            counted = training_operations(model.encoder, *lengths, **options, source_limit=task.limits.source)
            self.batches.append(batch)
            self.operations.append(counted)
        self.batch_size = len(rows)
        self.trainer = Trainer(cfg, task, model, task.build_criterion(cfg.criterion))
        self.trainer.lr_step_update()

    def update(self, number: int):
        """Do all of an update: losses, gradients, clipping, the optimizer's step."""
        self.trainer.train_step([self.batches[number % _BATCHES]])


def time_training(entry: Entry, updates: int, warm_up: int = 2) -> dict:
    """Time updates with and without mixing in turn, and beside each pair the machine's own product, for JSON.

    Ratios and shares are medians over such rounds, each disturbed alike by whatever disturbs the machine.
    """
    trainings = [Training(entry, arm) for arm in ARMS]
    batch_size = trainings[0].batch_size
    product, product_operations = fastest_product(entry.precision, trainings[0].trainer.device, repeats=3)
    rounds = range(warm_up + updates)
    times, rates = np.zeros((len(trainings), len(rounds))), np.zeros(len(rounds))
    for number in tqdm(rounds, desc=f"{entry.precision}, batches of {batch_size}", disable=None):
        for arm in range(len(trainings))[:: 1 if number % 2 else -1]:
            times[arm, number] = measuring.milliseconds(trainings[arm].update, number)[0] / 1000
        rates[number] = product_operations / measuring.median_seconds(product, 3)
    operations = np.array([[one.operations[number % _BATCHES] for number in rounds] for one in trainings], dtype=float)
    times, operations, rates = times[:, warm_up:], operations[:, warm_up:], rates[warm_up:]
    arms = {
        arm: {
            "seconds": _median(seconds),
            "samples_per_second": _median(batch_size / seconds),
            "operations": float(counted.mean()),
            "flops": _median(counted / seconds),
            "share": _median(counted / seconds / rates),
        }
        for arm, seconds, counted in zip(ARMS, times, operations)
    }
    return {
        "precision": entry.precision,
        "batch_size": batch_size,
        "updates": updates,
        "parameters": trainings[0].parameters,
        "product_flops": _median(rates),
        "time_ratio": _median(times[0] / times[1]),
        "operations_ratio": float(operations[0].sum() / operations[1].sum()),
        "arms": arms,
    }


def _median(values: np.ndarray) -> dict[str, float | list[float]]:
    """Return the median with its 95 % bootstrap interval."""
    interval = measuring.bootstrap_interval(lambda samples: np.median(samples, axis=1), values)
    return {"median": float(np.median(values)), "interval": interval}


def measure_memory(entry: Entry) -> dict[str, int | None]:
    """Measure peak bytes of training each arm; None where the system does not tell.

    On a GPU it is what training takes of the GPU's memory, on a CPU all that a process of its own ever held, Python and
    its libraries included.
    """
    return {arm: measuring.apart(_peak_memory, entry, arm) for arm in ARMS}


def _peak_memory(entry: Entry, arm: str) -> int | None:
    warnings.simplefilter("ignore")
    logging.disable(logging.INFO)
    on_gpu = torch.cuda.is_available()
    before = torch.cuda.memory_allocated() if on_gpu else 0
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    with patch.object(torch.cuda, "reset_peak_memory_stats"):  # by which fairseq's trainer forgets each update's peak
        training = Training(entry, arm)
        for number in range(_BATCHES):
            training.update(number)
    return torch.cuda.max_memory_allocated() - before if on_gpu else measuring.memory_status("VmHWM")


def markdown(result: dict) -> str:
    """Return the tables of a result of ``scripts/benchmark_training.py``."""
    heads = ["Precision", "batch", "", "samples/s", "GFLOP/s", "of the product's", "TFLOP an update", "peak memory"]
    lines, ratios = [], []
    for run in result["runs"]:
        setting, limit = [run["precision"], str(run["batch_size"])], run["product_flops"]["median"]
        for arm, measured in run["arms"].items():
            speed, rate, share = (measured[key]["median"] for key in ("samples_per_second", "flops", "share"))
            (low, high), memory = measured["share"]["interval"], run.get("memory", {}).get(arm)
            cells = [f"{speed:.1f}", f"{rate / 1e9:.0f} of {limit / 1e9:.0f}", f"{share:.0%} ({low:.0%} - {high:.0%})"]
            cells += [f"{measured['operations'] / 1e12:.3f}", "" if memory is None else f"{memory / 2**30:.2f} GiB"]
            lines.append([*setting, arm, *cells])
        (low, high), time, counted = run["time_ratio"]["interval"], run["time_ratio"]["median"], run["operations_ratio"]
        ratio = [f"{time:.3f} ({low:.3f} - {high:.3f})", f"{counted:.3f}", f"{time / counted:.3f}"]
        ratios.append([*setting, " / ".join(run["arms"]), *ratio])
    ratio_heads = ["Precision", "batch", "", "time", "operations", "time / operations"]
    return (
        f"{markdown_table(heads, lines)}\n\nWhat mixing costs, in time and in operations:\n\n"
        f"{markdown_table(ratio_heads, ratios)}\n\n"
        f"`{shlex.join(result['arguments'])}`, {result['runs'][0]['parameters'] / 1e6:.1f} M parameters; lengths of "
        f"{result['profile']}; {result['device']}, {result['threads']} threads, torch {result['torch']}. Updates of "
        f"fairseq's trainer, the arms and {PRODUCT}, of the same precision in turn: medians with 95 % bootstrap "
        "intervals. Operations are those of matrix products at real positions. Memory is that of the whole process, or "
        "what training takes of a GPU's.\n"
    )
