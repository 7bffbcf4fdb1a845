"""Which outputs an engine or a precision changes, against plain PyTorch in fp32."""

import torch
from tqdm import tqdm

from mist_fairseq.benchmark.systems import Entry, System, load_system
from mist_fairseq.output import markdown_table
from mist_fairseq.scoring.scores import Protocol, score

NEAR = 1e-4  # difference of logits
PLAIN = "PyTorch, fp32"


class Margins:
    """Watches a model's PyTorch encoder decide: the two likeliest lengths' and tokens' logits, and their differences.

    Attributes:
        length: of the last sentence.
        tokens: of its last pass, *Shape:* (T).
    """

    def __init__(self, system: System):
        encoder, never = system.model.encoder, system.model.never_predicted
        lengths, logits = encoder.length_logits, encoder.token_logits

        def length_logits(source):
            scores = lengths(source)
            best = scores[0].topk(2).values
            self.length = float(best[0] - best[1])
            return scores

        def token_logits(hidden):
            scores = logits(hidden)
            best = scores.float().index_fill(-1, never, float("-inf")).topk(2, dim=-1).values
            self.tokens = best[:, 0] - best[:, 1]
            return scores

        encoder.length_logits, encoder.token_logits = length_logits, token_logits


def near_tie(expected: torch.Tensor, found: torch.Tensor, margins: Margins) -> bool:
    """Whether two outputs, whole ones with their final [SEP], differ where the model was undecided."""
    if len(expected) != len(found):
        return margins.length < NEAR
    return bool((margins.tokens[expected != found] < NEAR).all())


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
) -> dict:
    """Generate the first sentences of a subset one at a time, in a single pass, with every engine.

    Args:
        data: folder of binarized data.
        path: checkpoint.
        engines: ``--accelerate``, ``--precision`` and ``--length-guesses`` of each.
        subset: ``test`` or the like.
        sentences: how many.
        reference, source: raw text of the subset, for scores.
        protocol, metrics: of the scores.

    Returns:
        For JSON: by engine, outputs that differ, near-ties among them, the share of lengths guessed, scores.

    Raises:
        ValueError: the protocol needs sources, or an engine cannot be had.
    """
    if reference and protocol.group and not source:
        raise ValueError("this protocol scores outputs with equal sources as one: the sources are needed")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def load(name: str, precision: str, guesses: int) -> System:
        options = {"accelerate": name, "length_guesses": guesses}
        system = load_system(Entry(name, path, precision=precision, options=options, data=data), device)
        system.load_data(subset)
        decode = system.generator._decode

        def watched(*inputs):
            system.found = decode(*inputs)
            return system.found

        system.generator._decode = watched
        return system

    systems = {PLAIN: load("none", "fp32", 0)}
    for name, precision, guesses in engines:
        suffix = f", {guesses} guess{'es' * (guesses > 1)}" if guesses else ""
        systems[f"{name}, {precision}{suffix}"] = load(name, precision, guesses)
    plain = next(iter(systems.values()))
    margins, number = Margins(plain), min(sentences, len(plain.dataset))
    lines = {key: [] for key in systems}
    different, near = dict.fromkeys(systems, 0), dict.fromkeys(systems, 0)
    for i in tqdm(range(number), disable=None):
        whole = {}
        for key, system in systems.items():
            sample = system.batch([i])
            tokens, _ = system.read(sample, system.decode(sample))[i]
            whole[key] = system.found.tokens[0].cpu()
            lines[key].append(system.text(tokens))
        expected = whole[PLAIN]
        for key, found in whole.items():
            if not torch.equal(expected, found):
                different[key] += 1
                near[key] += near_tie(expected, found, margins)
    result = {"sentences": number, "engines": {}}
    scores = {}
    if reference:
        source = source and source[:number]
        scores = score(lines, reference[:number], source, protocol=protocol, metrics=metrics)
    for key, system in systems.items():
        found = {"different": different[key], "near_ties": near[key]}
        if system.generator.guesser is not None:
            found["guessed"] = system.generator.guesser.hits / system.generator.guesser.total
        if key in scores:
            found["scores"] = scores[key].as_dict()["values"]
        result["engines"][key] = found
    return result


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
