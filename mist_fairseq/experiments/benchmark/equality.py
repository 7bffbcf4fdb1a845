"""Which outputs an engine or a precision changes, against plain PyTorch in fp32."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from mist_fairseq.experiments.benchmark.inputs import Entry
from mist_fairseq.experiments.benchmark.systems import System, load_system
from mist_fairseq.experiments.benchmark.watching import Margins, WatchedEngine
from mist_fairseq.files.markdown import markdown_table
from mist_fairseq.generate.decoding import Decoding
from mist_fairseq.scoring.scores import Protocol, score

NEAR = 1e-4  # difference of logits
PLAIN = "PyTorch, fp32"


@dataclass
class _Compared:
    """A system with a watched engine, and what was counted of its outputs."""

    system: System
    engine: Any  # a WatchedEngine, plain PyTorch's with Margins
    different: int = 0
    near_ties: int = 0
    texts: list[str] = field(default_factory=list)


def is_near_tie(expected: list[Tensor], output: list[Tensor], margins: Margins) -> bool:
    """Tell whether two outputs, whole ones after each pass, part where the model was undecided."""
    if len(expected[0]) != len(output[0]):
        return margins.length < NEAR
    for one, other, margin in zip(expected, output, margins.passes):
        if not torch.equal(one, other):
            return bool((margin[one != other] < NEAR).all())
    return False


def compare(
    data: str,
    path: str,
    engines: list[tuple[str, str]],
    subset: str,
    sentences: int,
    reference: list[str] | None,
    source: list[str] | None,
    protocol: Protocol,
    metrics: list[str],
    decoding: Decoding,
) -> dict:
    """Generate the first sentences of a subset one at a time with every engine.

    Args:
        data, path: folder of binarized data, and checkpoint.
        engines: ``--accelerate`` and ``--precision`` of each; ``onnx`` stands for the exported model, which runs
            without torch.
        subset, sentences: ``test`` or the like, and how many sentences of it.
        reference, source: raw text of the subset, for scores.
        protocol, metrics: of the scores.
        decoding: how to generate.

    Returns:
        For JSON: by engine, the number of outputs that differ, of near-ties among them, and the scores.

    Raises:
        ValueError: the protocol needs sources, or an engine cannot be had.
    """
    if reference and protocol.group and not source:
        raise ValueError("this protocol scores outputs with equal sources as one: the sources are needed")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def load(name: str, precision: str) -> _Compared:
        options: dict = {"decoding": decoding.decoding, "decoding_iterations": decoding.passes}
        engine = "onnx" if name == "onnx" else "fairseq"
        if engine == "fairseq":
            options["accelerate"] = name
        system = load_system(Entry(name, path, engine=engine, precision=precision, options=options, data=data), device)
        system.load_data(subset)
        system.engine = (WatchedEngine if compared else Margins)(system.engine)
        return _Compared(system, system.engine)

    compared: dict[str, _Compared] = {}
    for name, precision in [("none", "fp32"), *engines]:
        compared[f"{name}, {precision}" if compared else PLAIN] = load(name, precision)
    plain = compared[PLAIN]
    number = min(sentences, len(plain.system.dataset))
    for i in tqdm(range(number), disable=None):
        for one in compared.values():
            one.engine.outputs.clear()
            sample = one.system.batch([i])
            tokens, _ = one.system.read(sample, one.system.decode(sample))[i]
            one.texts.append(one.system.text(tokens))
            if not torch.equal(plain.engine.outputs[-1], one.engine.outputs[-1]):
                one.different += 1
                one.near_ties += is_near_tie(plain.engine.outputs, one.engine.outputs, plain.engine)
    described: dict[str, dict] = {
        name: {"different": one.different, "near_ties": one.near_ties} for name, one in compared.items()
    }
    if reference:
        texts = {name: one.texts for name, one in compared.items()}
        scores = score(texts, reference[:number], source and source[:number], protocol=protocol, metrics=metrics)
        for name, result in scores.items():
            described[name]["scores"] = result.values
    return {"sentences": number, "engines": described}


def markdown(result: dict) -> str:
    """Return the table of a result of ``scripts/compare_engines.py``."""
    metrics = list(result["engines"][PLAIN].get("scores", {}))
    lines = []
    for name, counted in result["engines"].items():
        cells = [f"{counted['scores'][metric]:.2f}" for metric in metrics]
        lines.append([name, f"{counted['different']:,} of {result['sentences']:,}", str(counted["near_ties"]), *cells])
    return markdown_table(["Engine", "outputs that differ", "of these near-ties", *metrics], lines) + "\n"
