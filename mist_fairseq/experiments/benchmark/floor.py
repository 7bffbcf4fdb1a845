"""How fast a model could be on this machine: its matrix products at the machine's own rates.

Every product takes at least the time of its arithmetic at the rate of a large product, and at least the time of
reading its weights from memory; everything else a model does is counted as free. What a measurement needs beyond this
floor is overhead that a better implementation might remove.

Dimensions are those of ``mist/encoder.py``.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from mist_fairseq.experiments.benchmark.measuring import median_seconds
from mist_fairseq.mist.encoder import Encoder
from mist_fairseq.models.baselines.nat_mass import EncoderDecoder

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
        """Multiplications and additions of all of them."""
        return 2 * self.rows * self.inner * self.outer * self.count


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
) -> list[Product]:
    """List all matrix products of generating *batch* sentences of one length.

    Args:
        encoder: the model's.
        source: tokens of ``[CLS] X [SEP]``.
        target: tokens of the output, [SEP] counted.
        batch: sentences.
        precision: one of ``WEIGHT_BYTES``, in which the weights are read.
        decoding: ``single-pass``, ``mist`` (outputs end in [SEP], as a trained model's do) or ``mask-predict``.
        iterations: passes over the target.
        source_limit: most tokens of a mixed source, where there is a limit.
    """
    size = WEIGHT_BYTES[precision]
    listed = [*_source_pass(encoder, source, batch, size), _length(encoder, batch, size)]
    for done in range(iterations):
        seen, masked = source, target
        if decoding == "mist" and done:
            seen = min(source + target, source_limit or source + target)
            listed += _source_pass(encoder, seen, batch, size, mixed=True)
        elif decoding == "mask-predict":
            masked = target * (iterations - done) // iterations
        listed += [*_target_pass(encoder, target, seen, batch, size), *_head(encoder, batch * masked, size)]
    return listed


def _source_pass(encoder, S: int, batch: int, size: int, mixed: bool = False) -> Iterator[Product]:
    """List the products of ``encode_source``; *size* is that of a weight in bytes.

    The length was predicted from the source alone, so nobody needs more of a *mixed* one's last layer than keys and
    values.
    """
    config, rows = encoder.config, batch * S
    is_one_stack = isinstance(encoder, Encoder)
    whole = config.layers - mixed if is_one_stack else config.encoder_layers
    # Beside whole layers, keys and values alone: of the last layer, or of the decoder's cross-attention.
    keys_only = config.layers - whole if is_one_stack else config.decoder_layers
    yield from _layers(config, rows, size, whole)
    yield from _attention(config, S, S, batch * whole)
    yield _weights(rows, config.hidden_size, 2 * config.hidden_size, size, keys_only)


def _target_pass(encoder, T: int, S: int, batch: int, size: int) -> Iterator[Product]:
    """List the products of ``decode_target`` over a source of S tokens."""
    config, rows = encoder.config, batch * T
    if isinstance(encoder, Encoder):
        yield from _layers(config, rows, size, config.layers)
        yield from _attention(config, T, S + T, batch * config.layers)
    else:
        D, layers = config.hidden_size, config.decoder_layers
        yield from _layers(config, rows, size, layers)
        yield _weights(rows, D, D, size, 2 * layers)  # query and output of cross-attention
        yield from _attention(config, T, T, batch * layers)
        yield from _attention(config, T, S, batch * layers)


def _layers(config, rows: int, size: int, count: int) -> Iterator[Product]:
    """List the products of self-attention's projections and the feed-forward network."""
    D, inner = config.hidden_size, config.ffn_size
    for inputs, outputs in ((D, 3 * D), (D, D), (D, inner), (inner, D)):
        yield _weights(rows, inputs, outputs, size, count)


def _attention(config, L: int, K: int, count: int) -> Iterator[Product]:
    """List the products that give scores of K keys and sums of their values for L queries."""
    width = config.hidden_size // config.heads
    yield Product(L, width, K, count=count * config.heads)
    yield Product(L, K, width, count=count * config.heads)


def _length(encoder, batch: int, size: int) -> Product:
    return _weights(batch, encoder.config.hidden_size, encoder.config.length_classes, size)


def _head(encoder, rows: int, size: int) -> Iterator[Product]:
    """List the products of ``token_logits``."""
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
    """Count the operations of the matrix products of one update, forward and backward.

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

    def look(S: int, T: int) -> list[Product]:
        return [*_target_pass(encoder, T, S, 1, 0), *_head(encoder, T, 0)]

    total = 0
    for (S, T), sentences in Counter(zip(source_lengths, target_lengths, strict=True)).items():
        differentiated = [*_source_pass(encoder, S, 1, 0), _length(encoder, 1, 0), *look(S, T)]
        if mixing:
            mixed = min(S + T + 1, source_limit or S + T + 1)
            differentiated += [*_source_pass(encoder, mixed, 1, 0, mixed=True), *look(mixed, T)]
        total += sentences * (3 * operations(differentiated) + (operations(look(S, T)) if glancing else 0))
    return total


def operations(listed: Iterable[Product]) -> int:
    """Count the operations of all products together."""
    return sum(product.operations for product in listed)


def floor_seconds(listed: Iterable[Product], rates: Rates) -> float:
    """Return the seconds that the products take at least: each its arithmetic or the reading of its weights.

    Weights that stay in a cache from one sentence to the next are read faster than *rates* say.
    """
    return sum(
        max(product.operations / rates.operations, product.count * product.weight_bytes / rates.bandwidth)
        for product in listed
    )


# -- rates of a machine -----------------------------------------------------------------------------------------


def machine_rates(precision: str, device: str | torch.device = "cpu", repeats: int = 7) -> Rates:
    """Measure what this machine reaches now, with torch's number of threads.

    Operations: ``fastest_product``, median time.
    Bandwidth: bytes read plus bytes written while copying 256 MiB, as STREAM counts them, median time.

    Args:
        precision: one of ``WEIGHT_BYTES``.
        device: of the product and the copy.
        repeats: of each measurement.

    Raises:
        ValueError: as in ``fastest_product``.
    """
    product, count = fastest_product(precision, device, repeats)
    data = torch.ones(_COPIED // 4, device=device)
    copy = torch.empty_like(data)
    copying = median_seconds(lambda: copy.copy_(data), repeats)
    return Rates(count / median_seconds(product, repeats), 2 * _COPIED / copying)


def mean_rates(measured: list[Rates]) -> Rates:
    """Return the mean of several measurements."""
    return Rates(*np.mean([(rates.operations, rates.bandwidth) for rates in measured], axis=0).tolist())


def fastest_product(
    precision: str, device: str | torch.device = "cpu", repeats: int = 7
) -> tuple[Callable[[], Tensor], int]:
    """Return a product of 2048 x 2048 matrices by the fastest kernel, and its operations. Args: as ``machine_rates``.

    The matrices are an eighth as wide where it would take seconds, as one in bf16 does on CPUs that have no bf16.

    Raises:
        ValueError: no kernel of this device has the precision.
    """
    small, seconds = _SIZE // 8, {}
    for make in _KERNELS[precision]:  # small ones first, as a large product by some kernels takes forever
        try:
            seconds[make] = median_seconds(make(device, small), repeats)
        except (RuntimeError, AttributeError, NotImplementedError):  # this torch or device does not have it
            continue
    if not seconds:
        raise ValueError(f"torch has no matrix product in {precision} on {device}: measure another precision")
    fast = [make for make in seconds if seconds[make] * (_SIZE / small) ** 3 < _LONGEST]
    size = _SIZE if fast else small
    kernels = [make(device, size) for make in fast or seconds]
    return min(kernels, key=lambda kernel: median_seconds(kernel, repeats)), 2 * size**3


def _mm(dtype: torch.dtype, device, size: int) -> Callable[[], Tensor]:
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return lambda: torch.mm(a, b)


def _packed(dtype: torch.dtype, device, size: int) -> Callable[[], Tensor]:
    """Make oneDNN's product, which on some CPUs is faster than ``torch.mm`` is."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    weight = torch.ops.mkldnn._reorder_linear_weight(b)
    return lambda: torch.ops.mkldnn._linear_pointwise(a, weight, None, "none", [], "")


def _int8_mm(device, size: int) -> Callable[[], Tensor]:
    a, b = (torch.randint(-127, 128, (size, size), dtype=torch.int8, device=device) for _ in range(2))
    return lambda: torch._int_mm(a, b)


def _int8_packed(device, size: int) -> Callable[[], Tensor]:
    """Make oneDNN's product; with signed activations it would fall back to a loop, a thousand times slower."""
    a = torch.randint(0, 256, (size, size), dtype=torch.uint8, device=device)
    b = torch.randint(-127, 128, (size, size), dtype=torch.int8, device=device)
    weight = torch.ops.onednn.qlinear_prepack(b, None)
    scales, zeros = torch.ones(size), torch.zeros(size, dtype=torch.int64)
    # Bias, the output's scale, zero point and type, no activation.
    last: tuple = (None, 1.0, 0, torch.float32, "none", [], "")
    return lambda: torch.ops.onednn.qlinear_pointwise(a, 1.0, 128, weight, scales, zeros, *last)


_KERNELS: dict[str, list[Callable]] = {
    "fp32": [partial(_mm, torch.float32), partial(_packed, torch.float32)],
    "bf16": [partial(_mm, torch.bfloat16), partial(_packed, torch.bfloat16)],
    "int8": [_int8_mm, _int8_packed],
}
