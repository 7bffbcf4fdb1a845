"""How fast a model could be on this machine: its matrix products at the machine's own rates.

Every product takes at least the time of its arithmetic at the rate of a large product, and at least that of reading
its weights from memory; everything else counts as free. What a measurement needs beyond this floor is overhead that a
better implementation might remove, as are products of local layers with what they do not see. Dimensions are those of
``mist/encoder.py``, and E the size of embeddings.
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from mist_fairseq.experiments.benchmark.measuring import median_seconds
from mist_fairseq.mist.config import EncoderConfig
from mist_fairseq.mist.encoder import Encoder
from mist_fairseq.mist.encoder_decoder import EncoderDecoder

WEIGHT_BYTES = {"fp32": 4, "bf16": 2, "int8": 1}
_SIZES = {"cpu": 2048, "cuda": 8192}  # of the square product whose rate is the machine's
PRODUCT = "a product of square matrices, 2048 wide (8192 on a GPU, 256 where those take seconds)"
_LONGEST = 2.0  # seconds
COPIED = 2**28  # bytes, more than any cache


class Product(NamedTuple):
    """Matrix products with the same number of rows: multiplications and additions, and weights to be read."""

    operations: int
    weights: int


class Rates(NamedTuple):
    """What the machine does a second, measured: floating-point (or integer) operations, and bytes."""

    operations: float
    bandwidth: float


def products(
    encoder: Encoder | EncoderDecoder,
    source: int,
    target: int,
    batch: int = 1,
    *,
    decoding: str = "single-pass",
    iterations: int = 1,
    source_limit: int | None = None,
) -> list[Product]:
    """List all matrix products of generating *batch* sentences of one length.

    *source* and *target* count the tokens of ``[CLS] X [SEP]`` and of the output, its [SEP] included. With ``mist``
    outputs end in [SEP], as a trained model's do. *source_limit* is the most tokens of a mixed source, if limited.
    """
    listed = [*_source_pass(encoder, source, batch), _length(encoder, batch)]
    for done in range(iterations):
        seen, masked = source, target
        if decoding == "mist" and done:
            seen = min(source + target, source_limit or source + target)
            listed += _source_pass(encoder, seen, batch, mixed=True)
        elif decoding == "mask-predict":
            masked = target * (iterations - done) // iterations
        listed += _target_pass(encoder, target, seen, masked, batch)
    return listed


def _source_pass(encoder, S: int, batch: int = 1, mixed: bool = False) -> list[Product]:
    """List the products of ``encode_source``; of a *mixed* one's last layer only a copy head needs all."""
    config, D = encoder.config, encoder.config.hidden_size
    if isinstance(encoder, Encoder):
        keys_only = int(mixed and not config.copy_head)
        whole = config.layers - keys_only
    else:  # keys and values for cross-attention
        whole, keys_only = config.encoder_layers, config.decoder_layers
    weights = whole * _layer_weights(config) + keys_only * 2 * D * D + _projection(config)
    return [_with_weights(batch * S, weights), _attention(D, S, S, batch * whole)]


def _target_pass(encoder, T: int, S: int, masked: int, batch: int = 1) -> list[Product]:
    """List the products of ``decode_target`` over a source of S tokens, and of ``token_logits`` at masked positions."""
    config, D = encoder.config, encoder.config.hidden_size
    if isinstance(encoder, Encoder):  # the head has a matrix before the vocabulary's
        layers, cross, E = config.layers, 0, config.embedding_size or D
        before, copied = D * E + config.copy_head * D * D, config.copy_head * S
    else:  # query and output of cross-attention
        layers, cross, E = config.decoder_layers, 2 * D * D, D
        before, copied = 0, 0
    body = _with_weights(batch * T, layers * (_layer_weights(config) + cross) + _projection(config))
    head = _with_weights(batch * masked, before + E * config.vocab_size)
    return [body, _attention(D, T, S + T, batch * layers), head, Product(2 * batch * T * copied * D, 0)]


def _length(encoder, batch: int = 1) -> Product:
    return _with_weights(batch, encoder.config.hidden_size * encoder.config.length_classes)


def _layer_weights(config) -> int:
    """Count the weights of self-attention's projections and the feed-forward network, shared ones in each layer."""
    matrices = 3 if isinstance(config, EncoderConfig) and config.gated else 2
    return 4 * config.hidden_size**2 + matrices * config.hidden_size * config.ffn_size


def _projection(config) -> int:
    """Count the weights between embeddings of a size of their own and the first layer."""
    return config.embedding_size * config.hidden_size if isinstance(config, EncoderConfig) else 0


def _with_weights(rows: int, weights: int) -> Product:
    return Product(2 * rows * weights, weights)


def _attention(D: int, L: int, K: int, count: int) -> Product:
    """Return the products that give scores of K keys, and sums of their values, for L queries."""
    return Product(4 * count * L * K * D, 0)


def training_operations(
    encoder: Encoder | EncoderDecoder,
    source_lengths: Iterable[int],
    target_lengths: Iterable[int],
    *,
    mixing: bool = True,
    glancing: bool = True,
    source_limit: int | None = None,
) -> int:
    """Count the operations of the matrix products of one update, forward and backward, at real positions.

    A backward pass takes two products for each of the forward pass; what is computed again instead of kept does not
    count. The first look of *glancing* is never differentiated. Lengths count the tokens of each ``[CLS] X [SEP]`` and
    ``Y [SEP]``; the sources of *mixing*, ``[CLS] Y_p [SEP] X [SEP]``, are cut at *source_limit* if any.
    """
    total = 0
    for (S, T), sentences in Counter(zip(source_lengths, target_lengths, strict=True)).items():
        look = _target_pass(encoder, T, S, T)
        differentiated = [*_source_pass(encoder, S), _length(encoder), *look]
        if mixing:
            mixed = min(S + T + 1, source_limit or S + T + 1)
            differentiated += _source_pass(encoder, mixed, mixed=True) + _target_pass(encoder, T, mixed, T)
        total += sentences * (3 * operations(differentiated) + glancing * operations(look))
    return total


def operations(listed: Iterable[Product]) -> int:
    """Count the operations of all products together."""
    return sum(count for count, _ in listed)


def floor_seconds(listed: Iterable[Product], rates: Rates, precision: str = "fp32") -> float:
    """Return the seconds that the products take at least: each its arithmetic or the reading of its weights."""
    size = WEIGHT_BYTES[precision]
    return sum(max(count / rates.operations, size * weights / rates.bandwidth) for count, weights in listed)


def machine_rates(precision: str, device: str | torch.device = "cpu", read: int = COPIED, repeats: int = 7) -> Rates:
    """Measure what this machine reaches now with torch's threads, by medians; errors as of ``fastest_product``.

    *read* is how many bytes are read again and again, which a cache may hold.
    """
    product, count = fastest_product(precision, device, repeats)
    data = torch.ones(max(1, read // 8), device=device)
    copy = torch.empty_like(data)
    times = max(1, COPIED // read)

    def copying() -> None:
        for _ in range(times):
            copy.copy_(data)

    # Of copying count the bytes read and the bytes written, as in STREAM.
    moved = 2 * times * data.nbytes
    return Rates(count / median_seconds(product, repeats), moved / median_seconds(copying, repeats))


def fastest_product(
    precision: str, device: str | torch.device = "cpu", repeats: int = 7
) -> tuple[Callable[[], Tensor], int]:
    """Return a product of large square matrices by the fastest kernel, and its operations.

    The matrices are an eighth as wide where it would take seconds, as one in bf16 does on CPUs that have no bf16.
    """
    large, seconds = _SIZES[torch.device(device).type], {}
    small = large // 8
    for make in _KERNELS[precision]:  # small ones first, as a large product by some kernels takes forever
        # This torch or device may not have it.
        with contextlib.suppress(RuntimeError, AttributeError, NotImplementedError):
            seconds[make] = median_seconds(make(device, small), repeats)
    if not seconds:
        raise ValueError(f"torch has no matrix product in {precision} on {device}: measure another precision")
    fast = [make for make in seconds if seconds[make] * (large / small) ** 3 < _LONGEST]
    size = large if fast else small
    kernels = [make(device, size) for make in fast or seconds]
    return min(kernels, key=lambda kernel: median_seconds(kernel, repeats)), 2 * size**3


def _floats(dtype: torch.dtype, packed: bool, device, size: int) -> Callable[[], Tensor]:
    """Make torch's product, or oneDNN's of a *packed* matrix, which is faster on some CPUs."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    if not packed:
        return lambda: torch.mm(a, b)
    weight = torch.ops.mkldnn._reorder_linear_weight(b)
    return lambda: torch.ops.mkldnn._linear_pointwise(a, weight, None, "none", [], "")


def _int8(packed: bool, device, size: int) -> Callable[[], Tensor]:
    """Make torch's or oneDNN's; with signed activations the latter falls back to a loop, a thousand times slower."""
    b = torch.randint(-127, 128, (size, size), dtype=torch.int8, device=device)
    a = torch.randint(0, 128, (size, size), dtype=torch.uint8 if packed else torch.int8, device=device)
    if not packed:
        return lambda: torch._int_mm(a, b)
    weight = torch.ops.onednn.qlinear_prepack(b, None)
    scales, zeros = torch.ones(size), torch.zeros(size, dtype=torch.int64)
    # Bias, the output's scale, zero point and type, no activation.
    last: tuple = (None, 1.0, 0, torch.float32, "none", [], "")
    return lambda: torch.ops.onednn.qlinear_pointwise(a, 1.0, 128, weight, scales, zeros, *last)


_KERNELS: dict[str, list[Callable]] = {
    "fp32": [partial(_floats, torch.float32, packed) for packed in (False, True)],
    "bf16": [partial(_floats, torch.bfloat16, packed) for packed in (False, True)],
    "int8": [partial(_int8, packed) for packed in (False, True)],
}
