"""Record what the package computes, for later code to be compared with.

    python -m tests.golden.record model        # train the tiny model, export it: checkpoint/, released/, vocabulary/
    python -m tests.golden.record outputs      # inputs that no rounding error changes, and the model's outputs
    python -m tests.golden.record exact DIR    # all in all digits, for tests.golden.compare on this machine
    python -m tests.golden.record trainings [DIR]  # losses, gradients' norms, parameters after 20 updates [out of DIR]

All but "exact" write the files in this folder that are committed; each takes a minute or a few. They were
recorded from commit fdab902, before the modules were arranged anew. Recording them again gives up the comparison with
that commit: do so only where the package is meant to compute something else, and say so in the commit.
"""

import argparse
import copy
import itertools
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from tests.golden import golden
from tests.golden.golden import CHECKPOINT, HERE, RELEASED, SETTINGS, TRAININGS, VOCABULARY
from tests.golden.texts import awkward, candidates

SENTENCES = 100
# Relative noise of the weights that must not change a word: far above rounding errors, about 1e-7 to 1e-6.
NOISE, TRIES = 1e-5, 4
ONNX_SETTINGS = ["single-pass", "mist-4", "mask-predict-4", "beam", "lengths", "bounds", "keep-repeats", "pairs"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["model", "outputs", "trainings", "exact"])
    parser.add_argument("folder", nargs="?", type=Path, help="of exact recordings")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        if args.what == "model":
            record_model(work)
        elif args.what == "outputs":
            record_outputs(work)
        elif args.what == "trainings":
            record_trainings(work, args.folder)
        elif args.folder is None:
            parser.error("exact needs a folder")
        else:
            record_exactly(work, args.folder)


def record_model(work: Path):
    """Long enough for most words to be right, short enough for iterations to change some."""
    data = golden.preprocess(work)
    line = ["--user-dir", "mist_fairseq", *golden.TRAININGS["mist_tiny"], *golden.SCHEDULE, "--save-dir", str(work)]
    more = ["--total-num-update", "450", "--max-update", "450", "--batch-size", "24", "--dropout", "0"]
    more += ["--attention-dropout", "0", "--encoder-embed-dim", "48", "--no-save-optimizer-state"]
    more += ["--source-lang", "src", "--target-lang", "tgt"]  # VOCABULARY has no data from which to tell
    golden.command("fairseq_cli.train", str(data), *line, *more)
    for folder in (CHECKPOINT, RELEASED, VOCABULARY):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
    shutil.copy(work / "checkpoint_last.pt", CHECKPOINT / "checkpoint.pt")
    for name in ("dict.src.txt", "dict.tgt.txt"):
        shutil.copy(data / name, VOCABULARY)
    told = ["--training-data", "Invented questions.", "--name", "golden"]
    checkpoint = CHECKPOINT / "checkpoint.pt"
    RELEASED.rmdir()
    golden.export(checkpoint, "--data", VOCABULARY, "--to", "folder", "--out", RELEASED, *told)


def record_outputs(work: Path):
    generator = golden.generator("released, none")
    inputs = robust(generator, candidates())[:SENTENCES]
    assert len(inputs) == SENTENCES, f"only {len(inputs)} inputs have outputs that noise does not change"
    write("inputs.json", inputs, indent=1)
    outputs = {setting: golden.generate(generator, inputs, setting) for setting in SETTINGS}
    write_by_line("outputs.json", {setting: shortened(found, setting) for setting, found in outputs.items()})
    golden.export(RELEASED, "--to", "onnx", "--out", work / "onnx")
    onnx = {
        name: {setting: golden.generate(generator, inputs, setting) for setting in ONNX_SETTINGS}
        for name, generator in golden.onnx_generators(work / "onnx")
    }
    same = [golden.words(onnx["onnx, fp32"][setting]) == golden.words(outputs[setting]) for setting in ONNX_SETTINGS]
    assert all(same), dict(zip(ONNX_SETTINGS, same))
    short = {}
    for name, found in onnx.items():
        for setting, rows in found.items():
            short[f"{name}, {setting}"] = [[[one["text"], round_to(one["score"])] for one in row] for row in rows]
    write_by_line("onnx.json", short)


def robust(generator, inputs: list) -> list:
    """Those whose texts, history and order are the same, in all settings, with weights that differ a little.

    The first, awkward ones are not chosen: they have to be robust.
    """
    right = {setting: golden.words(golden.generate(generator, inputs, setting)) for setting in SETTINGS}
    kept = [True] * len(inputs)
    for seed in range(TRIES):
        noisy = copy.deepcopy(generator)
        random = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in noisy.parameters():
                parameter.mul_(1 + NOISE * torch.randn(parameter.shape, generator=random))
        for setting in SETTINGS:
            found = golden.words(golden.generate(noisy, inputs, setting))
            kept = [k and a == b for k, a, b in zip(kept, found, right[setting])]
    # What a sentence is given in "lengths" depends on its place, and is to be the place's in which it is kept.
    fragile = [text for text, k in zip(inputs, kept) if not k]
    print(f"{len(fragile)} of {len(inputs)} inputs are fragile: {fragile[:5]}")
    assert all(kept[: len(awkward())]), fragile
    chosen = [text for text, k in zip(inputs, kept) if k]
    return chosen if not fragile else robust(generator, chosen)


def shortened(outputs: list[list[dict]], setting: str) -> list[list[dict]]:
    """Without what follows from the rest, in nine digits."""
    return [[_shortened(one, setting) for one in row] for row in outputs]


def _shortened(one: dict, setting: str) -> dict:
    short = {"text": one["text"], "score": round_to(one["score"])}
    if one["cut"]:
        short["cut"] = True
    if one["steps"] > 1:
        short["history"] = one["history"]
    elif one["steps"] == 0:
        short["history"] = []
    if setting in golden.DETAILED:
        short["tokens"] = " ".join(one["tokens"])
        short["token_scores"] = [round_to(score) for score in one["token_scores"]]
    if setting == "single-pass":
        likeliest = list(one["length_scores"].items())[:3]
        short["length_scores"] = {length: round_to(share) for length, share in likeliest}
    return short


def round_to(value: float, digits: int = 9) -> float:
    return float(f"{value:.{digits}g}")


def record_trainings(work: Path, folder: Path | None):
    if folder is None:
        folder = work / "exact"
        record_exactly(work, folder, trainings_alone=True)
    found = {name: json.loads((folder / f"{name}.json").read_text()) for name in ("data-bin", "machine")}
    for name in TRAININGS:
        training = json.loads((folder / f"training-{name}.json").read_text())
        for update in training["updates"]:
            del update["gradients"]
        training["updates"] = [{key: round_to(value) for key, value in one.items()} for one in training["updates"]]
        del training["checksums"]
        found[name] = training
    lines = {f"{name} {key}": part for name, one in found.items() for key, part in one.items()}
    write("trainings.json", lines)


def record_exactly(work: Path, folder: Path, trainings_alone: bool = False):
    """One file for each training, and one for each generator, with the machine."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "machine.json").write_text(json.dumps(golden.machine()))
    for name, content in itertools.chain(exact_trainings(work), () if trainings_alone else exact_generation(work)):
        (folder / f"{name}.json").write_text(json.dumps(content))
        print(name, flush=True)


def exact_trainings(work: Path, only: str = "") -> Iterator[tuple[str, dict]]:
    """Name and content of what is to be bit-equal on one machine."""
    data = golden.preprocess(work)
    yield "data-bin", golden.binarized_checksums(data)
    for name in TRAININGS:
        if only in f"training-{name}":
            yield f"training-{name}", golden.train(name, data, work / name)


def exact_generation(work: Path, only: str = "") -> Iterator[tuple[str, dict]]:
    """The same of generation: each engine's outputs."""
    inputs = read("inputs.json")
    for name in golden.GENERATORS:
        if only in _file(name):
            yield _file(name), _all_settings(golden.generator(name), inputs)
    if any(only in _file(f"onnx, {precision}") for precision in ("fp32", "int8")):
        golden.export(RELEASED, "--to", "onnx", "--out", work / "onnx")
        for name, generator in golden.onnx_generators(work / "onnx"):
            if only in _file(name):
                yield _file(name), _all_settings(generator, inputs)


def _file(name: str) -> str:
    return f"generation-{name.replace(', ', '-')}"


def _all_settings(generator, inputs: list) -> dict[str, list]:
    return {setting: golden.generate(generator, inputs, setting) for setting in SETTINGS}


def read(name: str):
    """A recording of this folder; lists of texts are pairs again."""
    content = json.loads((HERE / name).read_text(encoding="utf-8"))
    if name == "inputs.json":
        return [tuple(one) if isinstance(one, list) else one for one in content]
    return content


def write(name: str, content, indent: int | None = None):
    if indent is None and isinstance(content, dict):
        parts = [f"{json.dumps(key)}: {json.dumps(part, ensure_ascii=False)}" for key, part in content.items()]
        text = "{\n" + ",\n".join(parts) + "\n}"
    else:
        text = json.dumps(content, ensure_ascii=False, indent=indent)
    (HERE / name).write_text(text + "\n", encoding="utf-8")


def write_by_line(name: str, settings: dict[str, list]):
    """A line for each sentence, so that a difference can be read."""
    parts = []
    for setting, rows in settings.items():
        lines = ",\n".join(json.dumps(row, ensure_ascii=False, separators=(",", ":")) for row in rows)
        parts.append(f"{json.dumps(setting)}: [\n{lines}\n]")
    (HERE / name).write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
