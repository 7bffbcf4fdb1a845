"""Compare what the code computes now, bit by bit, with recordings that were made on this same machine.

    python -m tests.golden.record exact DIR     # with the code of before
    python -m tests.golden.compare DIR          # with the code of now [--trainings] [--generation] [--only NAME]

Of each training and each engine: whether it is bit-equal, and else the first update, or the settings, in which it is
not. Ends with status 1 where anything differs.
"""

import argparse
import itertools
import json
import sys
import tempfile
from pathlib import Path

import torch

from tests.golden import golden, record


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what tests.golden.record exact wrote")
    parser.add_argument("--trainings", action="store_true", help="of these alone")
    parser.add_argument("--generation", action="store_true", help="of this alone")
    parser.add_argument("--only", help="trainings and engines that have this in their names", default="")
    args = parser.parse_args()
    torch.set_num_threads(1)
    recorded_on, here = json.loads((args.folder / "machine.json").read_text()), golden.machine()
    changed = [
        f"{name} {recorded_on.get(name)} -> {here[name]}" for name in here if recorded_on.get(name) != here[name]
    ]
    if changed:
        print(f"another machine than that of the recordings, so differences may mean nothing: {', '.join(changed)}")
    both = args.trainings == args.generation
    names, all_equal = [], True
    with tempfile.TemporaryDirectory() as temporary:
        trainings = record.exact_trainings(Path(temporary), args.only) if both or args.trainings else ()
        generation = record.exact_generation(Path(temporary), args.only) if both or args.generation else ()
        for name, content in itertools.chain(trainings, generation):
            expected = json.loads((args.folder / f"{name}.json").read_text())
            found = json.loads(json.dumps(content))
            names.append(name)
            told = difference(name, found, expected)
            all_equal = all_equal and not told
            print(f"{name}: {told or 'bit-equal'}", flush=True)
    if names in ([], ["data-bin"]):
        sys.exit(f"nothing has {args.only!r} in its name")
    sys.exit(not all_equal)


def difference(name: str, found: dict, expected: dict) -> str:
    """What differs first, or nothing."""
    if found == expected:
        return ""
    kind = name.split("-", maxsplit=1)[0]
    if kind == "training":
        return training_difference(found, expected)
    if kind == "generation":
        return generation_difference(found, expected)
    return ", ".join(key for key in expected if found.get(key) != expected[key]) + " differ"


def training_difference(found: dict, expected: dict) -> str:
    """The first update with another number, and the gradients that differ there: what was computed first comes last."""
    told = []
    for i, (new, old) in enumerate(zip(found["updates"], expected["updates"])):
        keys = [key for key in new | old if key != "gradients" and new.get(key) != old.get(key)]
        numbers = [f"{key} {old.get(key)} -> {new.get(key)}" for key in keys]
        gradients = new["gradients"] | old["gradients"]
        other = [key for key in gradients if new["gradients"].get(key) != old["gradients"].get(key)]
        if numbers or other:
            told.append(f"first at update {i + 1}: {', '.join(numbers) or 'the logged numbers are equal'}")
            told.append(f"gradients of {len(other)} of {len(gradients)} tensors: {', '.join(other[:6])}")
            break
    else:
        told.append("all updates are equal")
    if found["sha256"] != expected["sha256"]:
        tensors = found["checksums"] | expected["checksums"]
        other = [key for key in tensors if found["checksums"].get(key) != expected["checksums"].get(key)]
        told.append(f"{len(other)} of {len(tensors)} tensors of the checkpoint: {', '.join(other[:6])}")
    return "DIFFERS, " + "; ".join(told)


def generation_difference(found: dict, expected: dict) -> str:
    """How many outputs differ, in words and in digits."""
    told, most = [], 0.0
    for setting in expected:
        pairs = list(zip(itertools.chain(*found[setting]), itertools.chain(*expected[setting]), strict=True))
        texts = sum(golden.words([[new]]) != golden.words([[old]]) for new, old in pairs)
        scores = sum(new != old for new, old in pairs)
        most = max([most, *(abs(new["score"] - old["score"]) for new, old in pairs)])
        if scores:
            told.append(f"{setting} {texts} in words and {scores} in all of {len(pairs)}")
    return f"DIFFERS, scores by up to {most:.1e}: {', '.join(told)}"


if __name__ == "__main__":
    main()
