"""How fast a model could be on this machine: its matrix products at the machine's own rates.

Every product takes at least the time of its arithmetic at the rate of a large product, and at least the time of
reading its weights from memory; everything else a model does is counted as free. What a measurement needs beyond this
floor is overhead that a better implementation might remove.

Dimensions are those of ``models/encoder.py``.
"""

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from mist_fairseq.mist.encoder import Encoder
from mist_fairseq.mist.encoder_decoder import EncoderDecoder

WEIGHT_BYTES = {"fp32": 4, "bf16": 2, "int8": 1}
_SIZE = 2048  # of the square product whose rate is the machine's
_LONGEST = 2.0  # seconds
_COPIED = 2**28  # bytes, more than any cache


@dataclass(frozen=True)
class Product:
    """*count* matrix products of (rows, inner) and (inner, outer).

    Attributes:
        weight_bytes: of the second factor of one of them; 0 where both are activations, as in attention.
    """

    rows: int
    inner: int
    outer: int
    weight_bytes: int = 0
    count: int = 1

    @property
    def operations(self) -> int:
        """Multiplications and additions of one of them."""
        return 2 * self.rows * self.inner * self.outer


@dataclass(frozen=True)
class Rates:
    """What the machine does a second, measured: floating-point (or integer) operations, and bytes."""

    operations: float
    bandwidth: float


# -- products of a model ----------------------------------------------------------------------------------------


def products(
    encoder: Encoder | EncoderDecoder,
    source: int,
    target: int,
    batch: int = 1,
    *,
    precision: str = "fp32",
    decoding: str = "single-pass",
    iterations: int = 1,
    source_limit: int | None = None,
    blocks: int | None = None,
) -> list[Product]:
    """All matrix products of generating *batch* sentences of one length.

    Args:
        encoder: the model's.
        source: tokens of ``[CLS] X [SEP]``.
        target: tokens of the output, [SEP] counted.
        batch: sentences.
        precision: ``fp32``, ``bf16`` or ``int8``, in which the weights are read.
        decoding: ``single-pass``, ``mist`` (outputs end in [SEP], as a trained model's do) or ``mask-predict``.
        iterations: passes over the target.
        source_limit: most tokens of a mixed source, where there is a limit.
        blocks: instead of the two passes of ``Encoder``, one joint pass over the source and as many blocks of [MASK]s
            of the target's length, each of which sees the source and itself; the head gets the rows of one. Weights
            are read once.

    Raises:
        ValueError: an unknown precision or decoding, or *blocks* for a model or a decoding that has no joint pass.
    """
    if precision not in WEIGHT_BYTES:
        raise ValueError(f"precision is {precision!r}, expected one of {', '.join(WEIGHT_BYTES)}")
    if decoding not in ("single-pass", "mist", "mask-predict") or (decoding == "single-pass" and iterations != 1):
        raise ValueError(f"decoding is {decoding!r} with {iterations} iterations, expected one that the generator has")
    if blocks is not None and (decoding != "single-pass" or not isinstance(encoder, Encoder)):
        raise ValueError("blocks need a single pass of the encoder model: an encoder-decoder has no joint pass")
    size = WEIGHT_BYTES[precision]
    found: list[Product]
    if blocks is not None and isinstance(encoder, Encoder):
        found = [*_joint_pass(encoder, source, target, blocks, batch, size), *_length(encoder, batch, size)]
        return [*found, *_head(encoder, batch * target, size)]
    found = [*_source_pass(encoder, source, batch, size), *_length(encoder, batch, size)]
    for done in range(iterations):
        seen, masked = source, target
        if decoding == "mist" and done:
            seen = source + target if source_limit is None else min(source + target, source_limit)
            found += _source_pass(encoder, seen, batch, size, mixed=True)
        elif decoding == "mask-predict":
            masked = target * (iterations - done) // iterations
        found += [*_target_pass(encoder, target, seen, batch, size), *_head(encoder, batch * masked, size)]
    return found


def _source_pass(encoder, S: int, batch: int, size: int, mixed: bool = False) -> Iterator[Product]:
    """Of ``encode_source``; *size* is that of a weight in bytes.

    The length was predicted from the source alone, so nobody needs more of a *mixed* one's last layer than keys and
    values.
    """
    config, rows = encoder.config, batch * S
    if isinstance(encoder, Encoder):
        whole = config.layers - mixed
        yield from _layer(config, rows, size, whole)
        yield from _attention(config, S, S, batch * whole)
        yield _weights(rows, config.hidden_size, 2 * config.hidden_size, size, config.layers - whole)
    else:
        yield from _layer(config, rows, size, config.encoder_layers)
        yield from _attention(config, S, S, batch * config.encoder_layers)
        # Keys and values of the decoder's cross-attention.
        yield _weights(rows, config.hidden_size, 2 * config.hidden_size, size, config.decoder_layers)


def _target_pass(encoder, T: int, S: int, batch: int, size: int) -> Iterator[Product]:
    """Of ``decode_target`` over a source of S tokens."""
    config, rows = encoder.config, batch * T
    if isinstance(encoder, Encoder):
        yield from _layer(config, rows, size, config.layers)
        yield from _attention(config, T, S + T, batch * config.layers)
    else:
        D, layers = config.hidden_size, config.decoder_layers
        yield from _layer(config, rows, size, layers)
        yield _weights(rows, D, D, size, 2 * layers)  # query and output of cross-attention
        yield from _attention(config, T, T, batch * layers)
        yield from _attention(config, T, S, batch * layers)


def _joint_pass(encoder: Encoder, S: int, T: int, blocks: int, batch: int, size: int) -> Iterator[Product]:
    config = encoder.config
    yield from _layer(config, batch * (S + blocks * T), size, config.layers)
    yield from _attention(config, S, S, batch * config.layers)
    yield from _attention(config, T, S + T, batch * config.layers * blocks)


def _layer(config, rows: int, size: int, layers: int) -> Iterator[Product]:
    """Self-attention's projections and the feed-forward network."""
    D, inner = config.hidden_size, config.ffn_size
    for inputs, outputs in ((D, 3 * D), (D, D), (D, inner), (inner, D)):
        yield _weights(rows, inputs, outputs, size, layers)


def _attention(config, L: int, K: int, count: int) -> Iterator[Product]:
    """Scores of K keys and the sums of their values for L queries, in *count* layers of a sentence."""
    width = config.hidden_size // config.heads
    yield Product(L, width, K, count=count * config.heads)
    yield Product(L, K, width, count=count * config.heads)


def _length(encoder, batch: int, size: int) -> Iterator[Product]:
    yield _weights(batch, encoder.config.hidden_size, encoder.config.length_classes, size)


def _head(encoder, rows: int, size: int) -> Iterator[Product]:
    """Of ``token_logits``."""
    config = encoder.config
    if isinstance(encoder, Encoder):
        yield _weights(rows, config.hidden_size, config.hidden_size, size)
    yield _weights(rows, config.hidden_size, config.vocab_size, size)


def _weights(rows: int, inner: int, outer: int, size: int, count: int = 1) -> Product:
    return Product(rows, inner, outer, size * inner * outer, count)


def training_operations(
    encoder: Encoder | EncoderDecoder,
    source_lengths: Iterable[int],
    target_lengths: Iterable[int],
    *,
    mixing: bool = True,
    glancing: bool = True,
    source_limit: int | None = None,
) -> int:
    """Floating-point operations of the matrix products of one update, forward and backward.

    Of real positions alone, padding would be waste. A backward pass takes two products for each of the forward pass;
    what is computed again instead of kept does not count. The first look of glancing is never differentiated.

    Args:
        encoder: the model's.
        source_lengths: tokens of each ``[CLS] X [SEP]``.
        target_lengths: tokens of each ``Y [SEP]``.
        mixing: with the MIST loss, whose sources are ``[CLS] Y_p [SEP] X [SEP]``.
        glancing: with a first look.
        source_limit: most tokens of a mixed source, where there is a limit.
    """

    def looks(S: int, T: int) -> list[Product]:
        return [*_target_pass(encoder, T, S, 1, 0), *_head(encoder, T, 0)]

    total = 0
    for (S, T), sentences in Counter(zip(source_lengths, target_lengths, strict=True)).items():
        differentiated = [*_source_pass(encoder, S, 1, 0), *_length(encoder, 1, 0), *looks(S, T)]
        if mixing:
            mixed = S + T + 1 if source_limit is None else min(S + T + 1, source_limit)
            differentiated += [*_source_pass(encoder, mixed, 1, 0, mixed=True), *looks(mixed, T)]
        total += sentences * (3 * operations(differentiated) + (operations(looks(S, T)) if glancing else 0))
    return total


def operations(found: Iterable[Product]) -> int:
    """Operations of all products together."""
    return sum(product.count * product.operations for product in found)


def floor_seconds(found: Iterable[Product], rates: Rates) -> float:
    """Seconds that the products take at least: each its arithmetic or the reading of its weights, one by one.

    Weights that stay in a cache from one sentence to the next are read faster than *rates* say.
    """
    return sum(
        product.count * max(product.operations / rates.operations, product.weight_bytes / rates.bandwidth)
        for product in found
    )


# -- rates of a machine -----------------------------------------------------------------------------------------


def machine_rates(precision: str, device: str | torch.device = "cpu", repeats: int = 7) -> Rates:
    """What this machine reaches now, with torch's number of threads.

    Operations: ``fastest_product``, median time.
    Bandwidth: bytes read plus bytes written while copying 256 MiB, as STREAM counts them, median time.

    Args:
        precision: ``fp32``, ``bf16`` or ``int8``.
        device: of the product and the copy.
        repeats: of each measurement.

    Raises:
        ValueError: as in ``fastest_product``.
    """
    device = torch.device(device)
    product, operations = fastest_product(precision, device, repeats)
    computing = median_seconds(product, device, repeats)
    data = torch.ones(_COPIED // 4, device=device)
    copy = torch.empty_like(data)
    copying = median_seconds(lambda: copy.copy_(data), device, repeats)
    return Rates(operations / computing, 2 * _COPIED / copying)


def mean_rates(measured: list[Rates]) -> Rates:
    """Of several measurements."""
    return Rates(
        statistics.mean(rates.operations for rates in measured), statistics.mean(rates.bandwidth for rates in measured)
    )


def fastest_product(
    precision: str, device: str | torch.device = "cpu", repeats: int = 7
) -> tuple[Callable[[], Tensor], int]:
    """A product of 2048 x 2048 matrices by the fastest kernel, and its operations. Args: as ``machine_rates``.

    Of matrices an eighth as wide where it would take seconds, as one in bf16 does on CPUs that have no bf16.

    Raises:
        ValueError: an unknown precision, or one that no kernel of this device has.
    """
    device = torch.device(device)
    small, large = _SIZE // 8, _SIZE
    # Only kernels that work on this machine, and no large product by one that would take forever.
    found = [(median_seconds(kernel, device, repeats), make) for make, kernel in _kernels(precision, device, small)]
    if not found:
        raise ValueError(f"torch has no matrix product in {precision} on {device}: measure another precision")
    fast = [make for seconds, make in found if seconds * (large / small) ** 3 < _LONGEST]
    size = large if fast else small
    kernels = [make(device, size) for make in fast or [make for _, make in found]]
    return min(kernels, key=lambda kernel: median_seconds(kernel, device, repeats)), 2 * size**3


_Make: TypeAlias = Callable[[torch.device, int], Callable[[], Tensor]]


def _kernels(precision: str, device: torch.device, size: int) -> Iterator[tuple[_Make, Callable[[], Tensor]]]:
    """The ways to compute the product that work on this machine: what makes one for a size, and one of this size."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    found: list[_Make]
    if precision == "int8":
        found = [_int8_mm, _int8_packed]
    elif precision in WEIGHT_BYTES:
        found = [partial(_mm, dtype), partial(_packed, dtype)]
    else:
        raise ValueError(f"precision is {precision!r}, expected one of {', '.join(WEIGHT_BYTES)}")
    for make in found:
        try:
            kernel = make(device, size)
            kernel()
        except (RuntimeError, AttributeError, NotImplementedError):  # this torch or device does not have it
            continue
        yield make, kernel


def _mm(dtype: torch.dtype, device: torch.device, size: int) -> Callable[[], Tensor]:
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return lambda: torch.mm(a, b)


def _packed(dtype: torch.dtype, device: torch.device, size: int) -> Callable[[], Tensor]:
    """oneDNN's, which on some CPUs is faster than ``torch.mm`` is."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    weight = torch.ops.mkldnn._reorder_linear_weight(b)
    return lambda: torch.ops.mkldnn._linear_pointwise(a, weight, None, "none", [], "")


def _int8_mm(device: torch.device, size: int) -> Callable[[], Tensor]:
    a, b = (torch.randint(-127, 128, (size, size), dtype=torch.int8, device=device) for _ in range(2))
    return lambda: torch._int_mm(a, b)


def _int8_packed(device: torch.device, size: int) -> Callable[[], Tensor]:
    """oneDNN's; with signed activations it would fall back to a loop that is a thousand times slower."""
    a = torch.randint(0, 256, (size, size), dtype=torch.uint8, device=device)
    b = torch.randint(-127, 128, (size, size), dtype=torch.int8, device=device)
    weight = torch.ops.onednn.qlinear_prepack(b, None)
    scales, zeros = torch.ones(size), torch.zeros(size, dtype=torch.int64)
    # Bias, the output's scale, zero point and type, no activation.
    last: tuple = (None, 1.0, 0, torch.float32, "none", [], "")
    return lambda: torch.ops.onednn.qlinear_pointwise(a, 1.0, 128, weight, scales, zeros, *last)


def median_seconds(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Of *repeats* times, after one that does not count."""
    work()
    times = []
    for _ in range(repeats):
        _synchronize(device)
        start = time.perf_counter()
        work()
        _synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _synchronize(device: torch.device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)
