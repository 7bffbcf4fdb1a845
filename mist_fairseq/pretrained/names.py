"""How other people call their weights: one table of names a family, read in both directions.

A table has the names of our modules and weights, with ``{}`` for the number of the layer, and theirs: several where
ours is one matrix of them, in this order. What is not in the table has the same name here and there.
"""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Names = Mapping[str, str | list[str]]


@dataclass(frozen=True)
class Family:
    """What a family of encoders calls its settings and weights, and what it does otherwise than BERT."""

    model_types: tuple[str, ...]  # its names in config.json
    sizes: Mapping[str, str]  # name in config.json -> the option of ours, a whole number; each must be there
    optional: Mapping[str, str]  # likewise, of any type, of what may be there; without it the option has its default
    settings: Mapping[str, object]  # what else changes a model -> its only supported value, which is also the default
    names: Names  # the table
    prefix: str  # what the names of encoder weights may begin with, in files, beside what the table has
    tidy: Callable[[dict[str, Tensor]], dict[str, Tensor]]  # makes a state dict, without prefix, one of these names
    mark: str = ""  # a part of the names of weights by which the family is known among those of its model types
    settle: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict  # another version's config.json -> this one's
    options: Mapping[str, Any] = field(default_factory=dict)  # of ours, which every model of the family has
    adjust: Callable[[dict[str, Any]], dict[str, Any]] = dict  # the options that were read -> those of ours
    first_position: int | None = 0  # row of the table of positions; None: the one after ``pad_token_id``, as fairseq's
    has_types: bool = True  # of tokens; if not, the target's starts as a copy of the only one, or at zero


def their_names(names: Names, ours: str) -> list[str]:
    """The names of the weights that one of ours is made of."""
    layer = re.search(r"\.(\d+)\.", ours)
    pattern, end = re.sub(r"\.\d+\.", ".{}.", ours, count=1), ""
    if pattern not in names:
        pattern, dot, kind = pattern.rpartition(".")
        end = dot + kind
    parts = names.get(pattern, pattern)
    return [part.format(layer and layer[1]) + end for part in ([parts] if isinstance(parts, str) else parts)]


def convert(
    state: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    names: Names,
    source: str,
    advice: str,
    optional: Collection[str] = (),
    ignored: Collection[str] | None = None,
) -> dict[str, Tensor]:
    """Our weights, of *own*'s names and shapes, from theirs, *state*; on the meta device only shapes are compared.

    *names* is the table. *optional* ones of ours may be missing, *ignored* ones of theirs left over, None for any.
    A ValueError names what is missing, unknown or of another shape, the *source* of the weights and an *advice*.
    """
    parts = {name: their_names(names, name) for name in own}
    lacks = [part for name in parts if name not in optional for part in parts[name] if part not in state]
    if lacks:
        raise ValueError(f"{source} lacks {_some(lacks)}, which the model needs: {advice}")
    unknown = sorted(state.keys() - {part for theirs in parts.values() for part in theirs} - set(ignored or ()))
    if unknown and ignored is not None:
        raise ValueError(f"{source} has {_some(unknown)}, unknown to the model: {advice}")
    converted = {}
    for name, theirs in parts.items():
        if not all(part in state for part in theirs):
            continue
        first, *rest = own[name].shape
        expected = (first // len(theirs), *rest)
        for part in theirs:
            if (shape := tuple(state[part].shape)) != expected:
                raise ValueError(f"{source}: {part} has shape {shape}, the model needs {expected}: {advice}")
        converted[name] = state[theirs[0]] if len(theirs) == 1 else torch.cat([state[part] for part in theirs])
    return converted


def export(state: Mapping[str, Tensor], names: Names) -> dict[str, Tensor]:
    """Their weights from ours: the inverse of ``convert``."""
    exported: dict[str, Tensor] = {}
    for name, tensor in state.items():
        theirs = their_names(names, name)
        exported |= zip(theirs, (part.contiguous() for part in tensor.chunk(len(theirs))), strict=True)
    return exported


def split(state: Mapping[str, Tensor], fused: str, parts: list[str]) -> dict[str, Tensor]:
    """A state dict in which each weight with *fused* in its name is split into as many as there are *parts*."""
    apart: dict[str, Tensor] = {}
    for name, tensor in state.items():
        split_here = fused in name and tensor.dim() > 0
        names = [name.replace(fused, part) for part in parts] if split_here else [name]
        apart |= zip(names, tensor.chunk(len(parts)) if split_here else [tensor], strict=False)
    return apart


def _some(names: list[str]) -> str:
    return f"{', '.join(names[:3])} ({len(names)} in all)"
