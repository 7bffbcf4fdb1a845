"""Time updates of fairseq's own trainer, with the MIST loss beside without, as shares of what the machine can do."""

import logging
import multiprocessing
import shlex
import warnings
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from fairseq import tasks
from fairseq.trainer import Trainer
from tqdm import tqdm

import mist_fairseq.tasks  # noqa: F401 # registers with fairseq
from mist_fairseq.experiments.benchmark.floor import fastest_product, median_seconds, training_operations
from mist_fairseq.experiments.benchmark.synthetic import write_data
from mist_fairseq.experiments.benchmark.systems import Entry, _training_configuration
from mist_fairseq.experiments.benchmark.timing import _clock, _processor, _status
from mist_fairseq.files.output import markdown_table

ARMS = {"MIST": 1.0, "no mixing": 0.0}  # with their --mist-loss-factor
RESAMPLES = 1000
_BATCHES = 4  # different ones, taken in turn


@dataclass
class Setting:
    """What is trained how.

    Attributes:
        arguments: of fairseq-train: ``--arch``, sizes and whatever is not to be the paper's.
        precision: ``fp32`` or ``bf16``.
        batch_size: sentences an update.
        folder: where ``write_batches`` wrote its data.
    """

    arguments: list[str]
    precision: str
    batch_size: int
    folder: str


def write_batches(folder: Path, profile: dict, batch_size: int):
    """Random sentences of a profile's lengths for a few different batches; see ``synthetic.write_data``."""
    write_data(folder, profile, _BATCHES * batch_size, "train")


class Training:
    """A model with random weights, fairseq's trainer for it, and its batches.

    Args:
        setting: what to train.
        arm: one of ``ARMS``.

    Attributes:
        batches: as many as ``write_batches`` wrote.
        operations: of the matrix products of each batch's update, as ``training_operations`` counts them.

    Raises:
        ValueError: fairseq-train does not take the arguments.
    """

    def __init__(self, setting: Setting, arm: str):
        self.arm = arm
        arguments = (
            "--task mist --criterion mist_loss --optimizer bert_adamw --lr 3e-5 --clip-norm 1.0 --label-smoothing 0.1 "
            f"--mist-loss-factor {ARMS[arm]} --precision {setting.precision} {shlex.join(setting.arguments)}"
        )
        cfg = _training_configuration(Entry(arm, arguments=arguments, data=setting.folder))
        task = tasks.setup_task(cfg.task)
        model = task.build_model(cfg.model)
        task.load_dataset("train")
        dataset, size = task.dataset("train"), setting.batch_size
        order = dataset.ordered_indices()
        parts = [order[at : at + size] for at in range(0, len(order), size)]
        self.batches = [dataset.collater([dataset[int(i)] for i in part]) for part in parts]
        self.operations = [
            training_operations(
                model.encoder,
                batch["net_input"]["src_lengths"].tolist(),
                batch["net_input"]["target_lengths"].tolist(),
                mixing=ARMS[arm] > 0,
                glancing=cfg.criterion.glancing_ratio > 0,
                source_limit=task.limits.source,
            )
            for batch in self.batches
        ]
        self.trainer = Trainer(cfg, task, model, task.build_criterion(cfg.criterion))
        self.trainer.lr_step_update()

    @property
    def parameters(self) -> int:
        """Their number."""
        return sum(parameter.numel() for parameter in self.trainer.get_model().parameters())

    def update(self, number: int):
        """All of an update: losses, gradients, clipping, the optimizer's step."""
        self.trainer.train_step([self.batches[number % len(self.batches)]])


def time_training(setting: Setting, updates: int, warm_up: int = 2) -> dict:
    """Time updates with and without mixing in turn, and beside each pair the machine's own product.

    So whatever disturbs the machine disturbs all three alike. Ratios and shares are medians over such rounds.

    Args:
        setting: what to train.
        updates: of each arm.
        warm_up: updates before the clock counts.

    Returns:
        For JSON.
    """
    trainings = {arm: Training(setting, arm) for arm in ARMS}
    device = trainings["MIST"].trainer.device
    product, product_operations = fastest_product(setting.precision, device, repeats=3)
    seconds: dict[str, list[float]] = {arm: [] for arm in ARMS}
    operations: dict[str, list[int]] = {arm: [] for arm in ARMS}
    rates = []
    name = f"{setting.precision}, batches of {setting.batch_size}"
    for number in tqdm(range(warm_up + updates), desc=name, disable=None):
        order = list(ARMS)[:: 1 if number % 2 else -1]
        for arm in order:
            elapsed, _ = _clock(trainings[arm].update, number)
            if number >= warm_up:
                seconds[arm].append(elapsed / 1000)
                operations[arm].append(trainings[arm].operations[number % _BATCHES])
        if number >= warm_up:
            rates.append(product_operations / median_seconds(product, device, 3))
    times, counts = ({arm: np.array(found[arm], dtype=float) for arm in ARMS} for found in (seconds, operations))
    mixing, without = ARMS
    return {
        "precision": setting.precision,
        "batch_size": setting.batch_size,
        "updates": updates,
        "parameters": trainings[mixing].parameters,
        "product_flops": _median(np.array(rates)),
        "time_ratio": _median(times[mixing] / times[without]),
        "operations_ratio": float(counts[mixing].sum() / counts[without].sum()),
        "arms": {
            arm: {
                "seconds": _median(times[arm]),
                "samples_per_second": _median(setting.batch_size / times[arm]),
                "operations": float(counts[arm].mean()),
                "flops": _median(counts[arm] / times[arm]),
                "share": _median(counts[arm] / times[arm] / np.array(rates)),
            }
            for arm in ARMS
        },
    }


def _median(values: np.ndarray) -> dict[str, float | list[float]]:
    """With its 95 % bootstrap interval."""
    resamples = np.random.default_rng(1).choice(values, size=(RESAMPLES, len(values)))
    medians = np.median(resamples, axis=1)
    return {"median": float(np.median(values)), "interval": [float(np.percentile(medians, q)) for q in (2.5, 97.5)]}


def measure_memory(setting: Setting) -> dict[str, int | None]:
    """Peak bytes of training each arm, in a process of its own; on a GPU, of the GPU's memory.

    On a CPU it is all that the process ever held, Python and its libraries included. None where the system does not
    tell.
    """
    found = {}
    for arm in ARMS:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            found[arm] = pool.submit(_peak_memory, setting, arm, torch.get_num_threads()).result()
    return found


def _peak_memory(setting: Setting, arm: str, threads: int) -> int | None:
    torch.set_num_threads(threads)
    warnings.simplefilter("ignore")
    logging.disable(logging.INFO)
    training = Training(setting, arm)
    for number in range(_BATCHES):
        training.update(number)
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else _status("VmHWM")


def describe() -> dict:
    """For JSON: the machine."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else _processor()
    return {"device": name, "threads": torch.get_num_threads(), "torch": torch.__version__}


def markdown(result: dict) -> str:
    """Tables of a result of ``scripts/benchmark_training.py``."""
    heads = ["Precision", "batch", "", "samples/s", "GFLOP/s", "of the product's", "TFLOP an update", "peak memory"]
    lines, ratios = [], []
    for run in result["runs"]:
        setting = [run["precision"], str(run["batch_size"])]
        for arm, found in run["arms"].items():
            low, high = found["share"]["interval"]
            memory = run.get("memory", {}).get(arm)
            lines.append(
                [
                    *setting,
                    arm,
                    f"{found['samples_per_second']['median']:.1f}",
                    f"{found['flops']['median'] / 1e9:.0f} of {run['product_flops']['median'] / 1e9:.0f}",
                    f"{found['share']['median']:.0%} ({low:.0%} - {high:.0%})",
                    f"{found['operations'] / 1e12:.3f}",
                    "" if memory is None else f"{memory / 2**30:.2f} GiB",
                ]
            )
        (low, high), (first, second) = run["time_ratio"]["interval"], run["arms"]
        time, counted = run["time_ratio"]["median"], run["operations_ratio"]
        ratio = [f"{time:.3f} ({low:.3f} - {high:.3f})", f"{counted:.3f}", f"{time / counted:.3f}"]
        ratios.append([*setting, f"{first} / {second}", *ratio])
    sections = [
        markdown_table(heads, lines),
        "What mixing costs, in time and in operations:",
        markdown_table(["Precision", "batch", "", "time", "operations", "time / operations"], ratios),
        (
            f"`{shlex.join(result['arguments'])}`, {result['runs'][0]['parameters'] / 1e6:.1f} M parameters; lengths "
            f"of {result['profile']}; {result['device']}, {result['threads']} threads, torch {result['torch']}. "
            "Updates of fairseq's trainer, the arms and a product of 2048 x 2048 matrices (256 x 256 where those take "
            "seconds) of the same precision in turn: medians with 95 % bootstrap intervals. Operations are those of "
            "matrix products at real positions. Memory is that of the whole process, or of the GPU."
        ),
    ]
    return "\n\n".join(sections) + "\n"
