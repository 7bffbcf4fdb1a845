"""Run the tests in fresh environments with the oldest, the tested and the newest packages that setup.py allows.

    python scripts/test_versions.py                        # every line of ROWS; several GB and about an hour
    python scripts/test_versions.py 3.12-tested --all      # one of them, with the end-to-end tests

A line's name is Python's version and which packages: "floors" are the lower bounds in setup.py, "tested" those of
constraints.txt, "newest" whatever pip takes without constraints. python3.11 and python3.12 are taken from the PATH, and
the last commit is tested, not what has been changed since. Results go into results/versions.md, where the lines that
were not run keep theirs.
"""

import argparse
import datetime
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROWS = ("3.11-floors", "3.11-tested", "3.11-newest", "3.12-tested", "3.12-newest")
SHOWN = ("numpy", "tokenizers", "sentencepiece", "sacrebleu", "safetensors")
SHOWN += ("transformers", "onnx", "onnxruntime", "ctranslate2", "fastapi")
TITLES = ("name", "Python", "torch", "others", "passed", "failed", "skipped", "date", "tests")
HEADER = """# Versions

What was tested together, as `python scripts/test_versions.py` wrote it. "floors" are the lower bounds in
[`setup.py`](../setup.py), "tested" the versions in [`constraints.txt`](../constraints.txt), "newest" what pip took
without constraints on that day. "unit" is everything but `tests/end_to_end`. All ran on CPUs.

"""


def floors(setup: str) -> list[str]:
    """The constraints that make pip install each lower bound of setup.py."""
    return [f"{name}=={version}" for name, version in re.findall(r'"([\w-]+)(?:\[\w+\])?>=([\d.]+)', setup)]


def find_python(version: str) -> str:
    """Python of this version, which must run: pyenv puts commands on the PATH that do not."""
    python = shutil.which(f"python{version}")
    command = [python or "false", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
    if subprocess.run(command, check=False, capture_output=True, text=True).stdout.strip() != version:
        sys.exit(f"python{version} is not on the PATH, or does not run: put the folder of one that does on it")
    return python


def test(name: str, folder: Path, all_tests: bool) -> tuple[str, ...]:
    """Install into a fresh environment in ``folder``, run the tests, and give back the line of the table.

    Raises:
        subprocess.CalledProcessError: something could not be installed.
    """
    version, packages = name.split("-")
    source, venv = folder / "source", folder / "venv"
    source.mkdir(parents=True)
    archive = subprocess.run([shutil.which("git"), "archive", "HEAD"], cwd=ROOT, check=True, capture_output=True).stdout
    subprocess.run([shutil.which("tar"), "x"], cwd=source, input=archive, check=True)

    python = venv / "bin" / "python"
    subprocess.run([find_python(version), "-m", "venv", venv], check=True)
    constraints = []
    if packages == "tested":
        constraints = ["-c", source / "constraints.txt"]
    elif packages == "floors":
        (folder / "floors.txt").write_text("\n".join(floors((source / "setup.py").read_text(encoding="utf-8"))))
        constraints = ["-c", folder / "floors.txt"]
    subprocess.run([python, "-m", "pip", "install", "--quiet", *constraints, "-e", f"{source}[test]"], check=True)

    # One thread a process, as in scripts/test.sh; the tests start commands of this environment by name, too.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{venv}/bin:{os.environ['PATH']}"}
    installed = versions(python)
    fetch = [python, "scripts/get_pretrained.py", "minilm-l6", ".cache/minilm-l6"]
    subprocess.run(fetch, cwd=source, env=environment, check=True)
    command = [python, "-m", "pytest", "-n", str(len(os.sched_getaffinity(0))), "--dist", "worksteal", "-rfEs"]
    command += [] if all_tests else ["--ignore=tests/end_to_end"]
    with subprocess.Popen(command, cwd=source, env=environment, stdout=subprocess.PIPE, text=True) as pytest:
        for line in pytest.stdout:
            print(line, end="", flush=True)

    if versions(python) != installed:
        sys.exit(f"{name}: the tests have changed the packages that they were to be run with")
    passed, failed, skipped = count(line)
    full = subprocess.run([python, "--version"], check=True, capture_output=True, text=True).stdout.split()[1]
    others = ", ".join(f"{package} {installed[package]}" for package in SHOWN)
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    counts = (str(passed), str(failed), str(skipped))
    return name, full, installed["torch"], others, *counts, today, "all" if all_tests else "unit"


def versions(python: Path) -> dict[str, str]:
    """The packages of an environment, by name."""
    listed = subprocess.run([python, "-m", "pip", "list", "--format=json"], check=True, capture_output=True).stdout
    return {package["name"].lower(): package["version"] for package in json.loads(listed)}


def count(summary: str) -> tuple[int, int, int]:
    """Tests passed, failed (or broken) and skipped, from the line with which pytest ends.

    Raises:
        ValueError: it is none, because pytest could not start or found no tests.
    """
    numbers = {name.rstrip("s"): int(number) for number, name in re.findall(r"(\d+) ([a-z]+)", summary)}
    if not numbers.keys() & {"passed", "failed", "error"}:
        raise ValueError(f"pytest ran no tests, see above; its last line is {summary!r}")
    return numbers.get("passed", 0), numbers.get("failed", 0) + numbers.get("error", 0), numbers.get("skipped", 0)


def table(rows: list[tuple[str, ...]], before: str = "") -> str:
    """The page: these rows, and those of the page as it was before that have other names."""
    lines = {line.split("|")[1].strip(): line for line in before.splitlines() if re.match(r"\| 3\.", line)}
    lines |= {row[0]: f"| {' | '.join(row)} |" for row in rows}
    head = [f"| {' | '.join(TITLES)} |", f"|{' --- |' * len(TITLES)}"]
    return HEADER + "\n".join([*head, *(lines[name] for name in sorted(lines))]) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"what to test, all by default: {', '.join(ROWS)}")
    parser.add_argument("--all", action="store_true", help="the end-to-end tests, too")
    parser.add_argument("--work", metavar="DIR", help="where the environments are made, one at a time (up to 10 GB)")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "versions.md", metavar="FILE", help="the table")
    args = parser.parse_args()
    unknown = [name for name in args.names if name not in ROWS]
    if unknown:
        parser.error(f"no such line: {', '.join(unknown)}; there are {', '.join(ROWS)}")
    names = args.names or ROWS
    for name in names:
        find_python(name.split("-")[0])  # before any work
    failed = 0
    for name in names:
        print(f"== {name}", flush=True)
        with tempfile.TemporaryDirectory(dir=args.work, prefix="versions-") as folder:
            row = test(name, Path(folder), args.all)
        before = args.out.read_text(encoding="utf-8") if args.out.exists() else ""
        args.out.write_text(table([row], before), encoding="utf-8")
        print(f"== {name}: {row[4]} passed, {row[5]} failed, {row[6]} skipped", flush=True)
        failed += int(row[5])
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
