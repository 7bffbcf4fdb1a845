"""All that the benchmarks know of the inside of our own generators: who changes those changes this file alone."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from mist_fairseq.experiments.benchmark.measuring import milliseconds
from mist_fairseq.models.generator import NARGenerator

# Methods of what runs the passes, and the part of the time that each of them is.
_METHODS = {
    "encode_source": "source pass",
    "length_logits": "length",
    "decode_target": "target pass",
    "likeliest_tokens": "head",
}
PARTS = [*_METHODS.values(), "overhead"]


def is_ours(generator) -> bool:
    """Tell whether a generator is made of source passes and target passes in torch, by an engine or without."""
    return isinstance(generator, NARGenerator)


def engine_name(generator: NARGenerator) -> str:
    """Return the class of what runs the passes."""
    return type(generator.encoder).__name__


def set_decoding(generator: NARGenerator, decoding: str, iterations: int):
    """Make a generator decode in another way from now on."""
    generator.decoding, generator.iterations = decoding, iterations


def time_parts(generator: NARGenerator, decode: Callable, sample) -> dict[str, float]:
    """Run ``decode(sample)`` and return the milliseconds of each of ``PARTS``."""
    spent = dict.fromkeys(PARTS, 0.0)
    with _clocked(generator.encoder, spent):
        total, _ = milliseconds(decode, sample)
    return spent | {"overhead": total - sum(spent.values())}


@contextmanager
def _clocked(encoder, spent: dict[str, float]) -> Iterator[None]:
    def timed(method: Callable, part: str) -> Callable:
        def call(*args, **kwargs):
            elapsed, result = milliseconds(method, *args, **kwargs)
            spent[part] += elapsed
            return result

        return call

    own = {name: vars(encoder).get(name) for name in _METHODS}
    for name, part in _METHODS.items():
        setattr(encoder, name, timed(getattr(encoder, name), part))
    try:
        yield
    finally:
        for name, method in own.items():
            if method is None:
                delattr(encoder, name)
            else:
                setattr(encoder, name, method)


def prescribe_lengths(generator: NARGenerator, lengths_of_batch: Callable[[], Tensor]):
    """Make a generator predict lengths and take others, and iterate on, changed or not.

    Args:
        generator: to change.
        lengths_of_batch: what gives the lengths of the current batch, [SEP] counted, *Shape:* (B).
    """
    predict = generator._predict_lengths

    def prescribed(source):
        beam = predict(source).shape[1]
        return lengths_of_batch().clamp(max=generator.model.limits.target)[:, None].expand(-1, beam)

    generator._predict_lengths = prescribed  # type: ignore[method-assign]
    generator._changed = lambda tokens, _: torch.ones_like(tokens[:, 0], dtype=torch.bool)  # type: ignore[method-assign]


def watch_outputs(generator) -> list[Tensor]:
    """Return a list to which each pass adds the first sentence's whole output, special tokens included, *Shape:* (T).

    Args:
        generator: ``NARGenerator`` or ``OnnxGenerator``.
    """
    outputs: list[Tensor] = []
    fill = generator._fill

    def watched(*args):
        tokens, scores = fill(*args)
        outputs.append(torch.as_tensor(tokens[0]).cpu())
        return tokens, scores

    generator._fill = watched
    return outputs


class Margins:
    """Watches plain PyTorch decide: differences between the two likeliest lengths' and tokens' logits.

    Attributes:
        length: difference of the last sentence's lengths.
        passes: differences in each of its passes by position, infinite where nothing was masked, *Shape:* (T).
    """

    length: float
    passes: list[Tensor]

    def __init__(self, generator: NARGenerator):
        encoder, never = generator.model.encoder, generator.model.never_predicted
        lengths, logits, fill = encoder.length_logits, encoder.token_logits, generator._fill

        def length_logits(source):
            scores = lengths(source)
            best = scores[0].topk(2).values
            self.length, self.passes = float(best[0] - best[1]), []
            return scores

        def token_logits(hidden):
            scores = logits(hidden)
            best = scores.float().index_fill(-1, never, float("-inf")).topk(2, dim=-1).values
            self._rows = best[:, 0] - best[:, 1]
            return scores

        def filled(tokens, *given):
            result = fill(tokens, *given)
            masked = tokens[0] == generator.dictionary.mask()
            rows = self._rows if len(self._rows) == masked.sum() else self._rows[masked]
            self.passes.append(torch.full(masked.shape, float("inf")).masked_scatter(masked.cpu(), rows.cpu()))
            return result

        encoder.length_logits, encoder.token_logits, generator._fill = length_logits, token_logits, filled
