"""Which outputs an engine or a precision changes, against plain PyTorch in fp32."""

from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from mist_fairseq.experiments.benchmark.inputs import Entry
from mist_fairseq.experiments.benchmark.systems import System, load_system
from mist_fairseq.files.markdown import markdown_table
from mist_fairseq.generate.decoding import Decoding
from mist_fairseq.scoring.scores import Protocol, score

NEAR = 1e-4  # difference of logits
PLAIN = "PyTorch, fp32"


def watch(engine: Any) -> list[Tensor]:
    """Return what will hold the first sentence's whole output of each pass, special tokens included, *Shape:* (T)."""
    outputs, fill = list[Tensor](), engine.fill

    def watched(*given):
        filled, scores = fill(*given)
        outputs.append(torch.as_tensor(filled[0]).cpu())
        return filled, scores

    engine.fill = watched
    return outputs


class Margins:
    """Watches plain PyTorch decide on a sentence: differences between the two likeliest logits."""

    def __init__(self, engine: Any):
        self.length = 0.0  # of its lengths
        self.passes: list[Tensor] = []  # of tokens in each pass, infinite where nothing was masked, (T)
        lengths, logits, fill = engine.length_logits, engine.token_logits, engine.fill

        def length_logits(source):
            scores = lengths(source)
            best = scores[0].topk(2).values
            self.length, self.passes = float(best[0] - best[1]), []
            return scores

        def token_logits(hidden):
            self._logits = logits(hidden)  # to which copies may be added
            return self._logits

        def watched(tokens, *given):
            filled = fill(tokens, *given)
            masked = tokens[0] == engine.special.mask
            never = torch.tensor(engine.special.never_predicted, device=masked.device)
            best = self._logits.float().index_fill(-1, never, float("-inf")).topk(2, dim=-1).values
            rows = best[:, 0] - best[:, 1]
            rows = rows if len(rows) == masked.sum() else rows[masked]
            self.passes.append(torch.full(masked.shape, float("inf")).masked_scatter(masked.cpu(), rows.cpu()))
            return filled

        engine.length_logits, engine.token_logits, engine.fill = length_logits, token_logits, watched


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

    *engines* are ``--accelerate`` and ``--precision`` of each; ``onnx`` stands for the exported model, without torch.
    With a *reference* (lines of raw text, as *source*) there are scores. Returns for JSON, by engine, the number of
    outputs that differ, of near-ties among them, and the scores.
    """
    if reference and protocol.group and not source:
        raise ValueError("this protocol scores outputs with equal sources as one: the sources are needed")
    options = {"decoding": decoding.decoding, "decoding_iterations": decoding.passes}
    systems, outputs = dict[str, System](), dict[str, list[Tensor]]()
    for name, precision in [("none", "fp32"), *engines]:
        engine, given = ("onnx", options) if name == "onnx" else ("fairseq", options | {"accelerate": name})
        system = load_system(Entry(name, path, engine=engine, precision=precision, options=given, data=data))
        system.load_data(subset)
        title = f"{name}, {precision}" if systems else PLAIN
        systems[title], outputs[title] = system, watch(system.model.engine)
    margins = Margins(systems[PLAIN].model.engine)
    described: dict[str, dict] = {name: {"different": 0, "near_ties": 0} for name in systems}
    texts: dict[str, list[str]] = {name: [] for name in systems}
    number = min(sentences, len(systems[PLAIN].dataset))
    for i in tqdm(range(number), disable=None):
        for name, system in systems.items():
            outputs[name].clear()
            sample = system.batch([i])
            tokens, _ = system.read(sample, system.decode(sample))[i]
            texts[name].append(system.text(tokens))
            if not torch.equal(outputs[PLAIN][-1], outputs[name][-1]):
                described[name]["different"] += 1
                described[name]["near_ties"] += is_near_tie(outputs[PLAIN], outputs[name], margins)
    if reference:
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
