"""A target under atheris, which looks for inputs that reach new code.

    python -m tests.fuzz TARGET FOLDER [libFuzzer options]

In FOLDER are kept the inputs found (``corpus``) and those that break the property (``crash-...``, ``timeout-...``).
``scripts/fuzz.sh`` runs it for a given time.
"""

import sys
from pathlib import Path

import atheris

from tests.fuzz import GUIDED, Target, load


def main():
    name, folder, *options = sys.argv[1:] if len(sys.argv) > 2 else ["", ""]
    if name not in GUIDED:
        sys.exit(f"{__doc__}\nerror: {name!r} is no target, expected one of {', '.join(GUIDED)}")
    # As if they were not installed: no target needs them, and they take seconds to import.
    sys.modules["torch"] = sys.modules["fairseq"] = None
    with atheris.instrument_imports(include=["mist_fairseq"]):
        target = load(name)
    arguments = prepare(target, Path(folder))
    atheris.Setup([sys.argv[0], *options, *arguments], target.check)
    atheris.Fuzz()  # ends the process


def prepare(target: Target, folder: Path) -> list[str]:
    """Write what libFuzzer starts from; its arguments that name it."""
    corpus, seeds, words = folder / "corpus", folder / "seeds", folder / "words.txt"
    for each in (corpus, seeds):
        each.mkdir(parents=True, exist_ok=True)
    for i, seed in enumerate(target.seeds):
        (seeds / str(i)).write_bytes(seed)
    short = [piece for piece in target.pieces if 0 < len(piece) <= 64]  # libFuzzer takes no longer ones
    escaped = ["".join(map("\\x{:02x}".format, piece)) for piece in short]
    words.write_text("".join(f'"{word}"\n' for word in escaped), encoding="ascii")
    return [f"-dict={words}", f"-artifact_prefix={folder}/", str(corpus), str(seeds)]


if __name__ == "__main__":
    main()
