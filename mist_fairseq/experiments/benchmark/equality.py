"""Which outputs an engine or a precision changes, against plain PyTorch in fp32."""

import torch
from tqdm import tqdm

from mist_fairseq.experiments.benchmark.systems import Entry, System, load_system
from mist_fairseq.files.output import markdown_table
from mist_fairseq.hub.onnx_generator import OnnxGenerator
from mist_fairseq.scoring.scores import Protocol, score

NEAR = 1e-4  # difference of logits
PLAIN = "PyTorch, fp32"


class Margins:
    """Watches plain PyTorch decide: differences between the two likeliest lengths' and tokens' logits.

    Attributes:
        length: of the last sentence.
        passes: of each of its passes by position, infinite where nothing was masked, *Shape:* (T).
    """

    def __init__(self, system: System):
        generator, encoder, never = system.generator, system.model.encoder, system.model.never_predicted
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
            masked = tokens[0] == system.dictionary.mask()
            rows = self._rows if len(self._rows) == masked.sum() else self._rows[masked]
            self.passes.append(torch.full(masked.shape, float("inf")).masked_scatter(masked.cpu(), rows.cpu()))
            return result

        encoder.length_logits, encoder.token_logits, generator._fill = length_logits, token_logits, filled


def near_tie(expected: list[torch.Tensor], found: list[torch.Tensor], margins: Margins) -> bool:
    """Whether two outputs, whole ones with their final [SEP] after each pass, part where the model was undecided."""
    if len(expected[0]) != len(found[0]):
        return margins.length < NEAR
    for one, other, margin in zip(expected, found, margins.passes):
        if not torch.equal(one, other):
            return bool((margin[one != other] < NEAR).all())
    return False


def compare(
    data: str,
    path: str,
    engines: list[tuple[str, str, int]],
    subset: str,
    sentences: int,
    reference: list[str] | None,
    source: list[str] | None,
    protocol: Protocol,
    metrics: list[str],
    decoding: str = "single-pass",
    iterations: int = 1,
) -> dict:
    """Generate the first sentences of a subset one at a time with every engine.

    Args:
        data: folder of binarized data.
        path: checkpoint.
        engines: ``--accelerate``, ``--precision`` and ``--length-guesses`` of each; ``onnx`` stands for the exported
            model, which runs without torch.
        subset: ``test`` or the like.
        sentences: how many.
        reference, source: raw text of the subset, for scores.
        protocol, metrics: of the scores.
        decoding, iterations: as ``--decoding`` and ``--decoding-iterations``.

    Returns:
        For JSON: by engine, outputs that differ, near-ties among them, the share of lengths guessed, scores.

    Raises:
        ValueError: the protocol needs sources, or an engine cannot be had.
    """
    if reference and protocol.group and not source:
        raise ValueError("this protocol scores outputs with equal sources as one: the sources are needed")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def load(name: str, precision: str, guesses: int) -> System:
        options = {"decoding": decoding, "decoding_iterations": iterations}
        if name == "onnx":
            options |= {"length_guesses": guesses} if guesses else {}  # which it refuses
            entry = Entry(name, path, engine="onnx", precision=precision, options=options, data=data)
        else:
            options |= {"accelerate": name, "length_guesses": guesses}
            entry = Entry(name, path, precision=precision, options=options, data=data)
        system = load_system(entry, device)
        system.load_data(subset)
        return system

    systems = {PLAIN: load("none", "fp32", 0)}
    for name, precision, guesses in engines:
        suffix = f", {guesses} guess{'es' * (guesses > 1)}" if guesses else ""
        systems[f"{name}, {precision}{suffix}"] = load(name, precision, guesses)
    plain = next(iter(systems.values()))
    margins, number = Margins(plain), min(sentences, len(plain.dataset))
    seen = {key: _watch(system) for key, system in systems.items()}
    lines: dict[str, list[str]] = {key: [] for key in systems}
    different, near = dict.fromkeys(systems, 0), dict.fromkeys(systems, 0)
    for i in tqdm(range(number), disable=None):
        whole = {}
        for key, system in systems.items():
            sample = system.batch([i])
            tokens, _ = system.read(sample, system.decode(sample))[i]
            whole[key] = list(seen[key])
            lines[key].append(system.text(tokens))
        expected = whole[PLAIN]
        for key, found in whole.items():
            if not torch.equal(expected[-1], found[-1]):
                different[key] += 1
                near[key] += near_tie(expected, found, margins)
    described: dict[str, dict] = {}
    scores = {}
    if reference:
        source = source and source[:number]
        scores = score(lines, reference[:number], source, protocol=protocol, metrics=metrics)
    for key, system in systems.items():
        described[key] = {"different": different[key], "near_ties": near[key], **_guessed(system)}
        if key in scores:
            described[key]["scores"] = scores[key].as_dict()["values"]
    return {"sentences": number, "engines": described}


def _guessed(system: System) -> dict[str, float]:
    """The share of lengths guessed right, of a system that guesses."""
    guesser = getattr(system.generator, "guesser", None)
    return {} if guesser is None else {"guessed": guesser.hits / guesser.total}


def _watch(system: System) -> list[torch.Tensor]:
    """A list that holds the last sentence's whole output after each pass, with its repetitions and [SEP]s."""
    generator, seen = system.generator, list[torch.Tensor]()
    if isinstance(generator, OnnxGenerator):
        read = generator._hypothesis

        def watched(found, row, keep_repeats):
            seen[:] = [torch.from_numpy(step[row]) for step in found.history]
            return read(found, row, keep_repeats)

        generator._hypothesis = watched  # type: ignore[method-assign]
        return seen
    decode = generator._decode

    def decoded(*inputs):
        found = decode(*inputs)
        seen[:] = [step[0].cpu() for step in found.history]
        return found

    generator._decode = decoded
    return seen


def markdown(result: dict) -> str:
    """The table."""
    metrics = list(next(iter(result["engines"].values())).get("scores", {}))
    heads = ["Engine", "outputs that differ", "of these near-ties", "lengths guessed", *metrics]
    lines = []
    for key, found in result["engines"].items():
        guessed = f"{found['guessed']:.1%}" if "guessed" in found else ""
        cells = [f"{found['scores'][metric]:.2f}" for metric in metrics]
        lines.append(
            [key, f"{found['different']:,} of {result['sentences']:,}", str(found["near_ties"]), guessed, *cells]
        )
    return markdown_table(heads, lines) + "\n"
