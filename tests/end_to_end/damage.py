"""Damaged files, seeded: truncated, with flipped bits, with parts swapped, overwritten or repeated."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path

from omegaconf import OmegaConf

from mist_fairseq.tasks.mist_task import MistTask, MistTaskConfig


def damages(whole: bytes, others: list[bytes], count: int, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """What can become of a file, with a name for it.

    Args:
        whole: the file.
        others: files of the same kind, which might stand in its place.
        count: how many.
        seed: of the random choices.
    """
    rng = random.Random(seed)
    kinds = [_truncated, _flipped, _flipped, _swapped, _overwritten, _repeated]
    for i in range(count):
        if others and i % 20 == 0:
            yield f"{i}: another file", others[i // 20 % len(others)]
            continue
        kind = kinds[i % len(kinds)]
        yield f"{i}: {kind.__name__.strip('_')}", bytes(kind(rng, bytearray(whole)))


def _truncated(rng, data):
    near_the_end = rng.random() < 0.3
    return data[: rng.randrange(max(0, len(data) - 30) if near_the_end else 0, len(data))]


def _flipped(rng, data):
    for _ in range(rng.choice([1, 1, 1, 2, 8])):
        data[_place(rng, data)] ^= 1 << rng.randrange(8)
    return data


def _swapped(rng, data):
    """Two blocks of the same size."""
    size = rng.randint(1, max(1, len(data) // 4))
    one, other = sorted(rng.randrange(0, len(data) - size + 1) for _ in range(2))
    other = max(other, min(one + size, len(data) - size))
    data[one : one + size], data[other : other + size] = data[other : other + size], data[one : one + size]
    return data


def _overwritten(rng, data):
    size = rng.choice([1, 4, 8, 64])
    start = _place(rng, data)
    return data[:start] + rng.choice([bytes(size), b"\xff" * size, rng.randbytes(size)]) + data[start + size :]


def _repeated(rng, data):
    start = _place(rng, data)
    return data[:start] + data[rng.randrange(len(data)) :]


def _place(rng, data):
    """Anywhere, or in the first or last bytes, where formats keep what they say of themselves."""
    return rng.choice(
        [rng.randrange(len(data)), rng.randrange(min(200, len(data))), -1 - rng.randrange(min(200, len(data)))]
    ) % len(data)


def survive(path: Path, others: list[bytes], load: Callable, count: int = 200, names: tuple[str, ...] = ()):
    """Load a file in each of its damaged states: an error that names it, or what it gives when whole.

    Args:
        path: the file, which is left whole.
        others: as of ``damages``.
        load: what reads it, and gives something that can be compared.
        count: how many.
        names: that an error may have instead of the file's own.

    Returns:
        How many were refused.
    """
    whole, expected, refused = path.read_bytes(), load(), 0
    try:
        for what, data in damages(whole, others, count):
            path.write_bytes(data)
            try:
                found = load()
            except (ValueError, OSError) as error:
                assert any(name in str(error) for name in (path.name, *names)), f"{what}: {error}"
                refused += 1
            else:
                assert found == expected, f"{what}: read as if nothing were wrong"
    finally:
        path.write_bytes(whole)
    return refused


def read_data(folder: Path) -> tuple:
    """The dictionary and all pairs, as a training gets them."""
    config = MistTaskConfig(data=str(folder), train_subset="train", dataset_impl=None)
    task = MistTask.setup_task(OmegaConf.structured(config))
    task.load_dataset("train")
    pairs = [
        (item["source"].tolist(), item["target"].tolist()) for item in map(task.dataset("train").__getitem__, range(80))
    ]
    return task.dictionary, len(task.dataset("train")), pairs
