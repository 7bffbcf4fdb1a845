"""scripts/test_versions.py: which packages it asks for, and the table it writes; and that versions agree everywhere."""

import re
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SETUP = (ROOT / "setup.py").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def script() -> dict:
    return runpy.run_path(str(ROOT / "scripts" / "test_versions.py"))


def pinned() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return {name.lower().replace("_", "-"): version for name, version in (line.split("==") for line in lines[1:])}


def test_floors_are_the_lower_bounds(script):
    code = """"torch>=2.6",  # why
        ["transformers>=4.45,<5", "onnx>=1.17"], "ve-fairseq==0.12.3", "pyyaml", python_requires=">=3.11,<3.13\""""
    assert script["floors"](code) == ["torch==2.6", "transformers==4.45", "onnx==1.17"]
    assert len(script["floors"](SETUP)) == SETUP.count(">=") - 1  # Python's


def test_no_floor_is_above_what_is_tested(script):
    tested = pinned()
    for floor in script["floors"](SETUP):
        name, version = floor.split("==")
        floor_numbers, tested_numbers = ([int(part) for part in text.split(".")] for text in (version, tested[name]))
        assert floor_numbers <= tested_numbers, name


def test_the_version_stands_in_one_place():
    import mist_fairseq

    found = re.findall(r'__version__ = "(\d+\.\d+\.\d+)"', (ROOT / "mist_fairseq/__init__.py").read_text("utf-8"))
    assert found == [mist_fairseq.__version__]
    assert f"\n## {found[0]}" in (ROOT / "CHANGELOG.md").read_text("utf-8")
    for path in (ROOT / "setup.py", ROOT / "docs/conf.py", ROOT / "pyproject.toml"):
        assert found[0] not in path.read_text("utf-8"), path


def test_pythons_are_those_that_fairseq_has_packages_for(script):
    checked = re.search(
        r"\(3, (\d+)\) <= sys.version_info\[:2\] <= \(3, (\d+)\)", (ROOT / "scripts/setup_env.sh").read_text()
    )
    accepted = [f"3.{minor}" for minor in range(int(checked[1]), int(checked[2]) + 1)]
    assert sorted({name.split("-")[0] for name in script["ROWS"]}) == accepted
    assert f'python_requires=">={accepted[0]}"' in SETUP  # what runs without fairseq has no upper bound


@pytest.mark.parametrize(
    "summary, counts",
    [
        ("1040 passed, 3 skipped, 2 deselected, 7 warnings in 180.04s (0:03:00)", (1040, 0, 3)),
        ("1 failed, 2 passed, 1 error in 3.2s", (2, 2, 0)),
        ("2 failed, 3 errors in 3.2s", (0, 5, 0)),
    ],
)
def test_counts(script, summary, counts):
    assert script["count"](summary) == counts


@pytest.mark.parametrize(
    "summary", ["no tests ran in 0.01s", "", "ImportError: no module named x", "4 deselected in 1s"]
)
def test_nothing_ran(script, summary):
    with pytest.raises(ValueError, match=f"pytest ran no tests.*{re.escape(repr(summary))}"):
        script["count"](summary)


def test_the_table_keeps_other_lines(script):
    def row(name, torch):
        return (name, f"{name[:4]}.1", torch, "numpy 2.0", "10", "0", "1", "2026-11-23", "unit")

    first = script["table"]([row("3.12-tested", "2.6.0"), row("3.11-floors", "2.6.0")])
    second = script["table"]([row("3.12-tested", "2.7.0")], first)
    lines = [line for line in second.splitlines() if line.startswith("| 3.")]
    assert [line.split(" | ")[:3] for line in lines] == [
        ["| 3.11-floors", "3.11.1", "2.6.0"],
        ["| 3.12-tested", "3.12.1", "2.7.0"],
    ]
    assert script["table"]([], second) == second  # header included


def test_the_readme_says_the_same():
    def rows(path: str) -> list[list[str]]:
        lines = (ROOT / path).read_text(encoding="utf-8").splitlines()
        return [line.strip("| ").split(" | ") for line in lines if re.match(r"\| 3\.1\d", line)]

    full = rows("results/versions.md")
    found = rows("README.md")
    assert len(full) >= 4 and [(row[0], row[1], *row[-4:]) for row in found] == [
        (python, torch, tests, passed, failed, skipped)
        for _, python, torch, _, passed, failed, skipped, _, tests in full
    ]


def test_wrong_names_are_refused_before_any_work(script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["test_versions.py", "3.11-tested", "3.10-floors"])
    with pytest.raises(SystemExit):
        script["main"]()
    assert "no such line: 3.10-floors; there are 3.11-floors" in capsys.readouterr().err


def test_a_python_that_does_not_run_is_refused(script, monkeypatch, tmp_path):
    command = tmp_path / "python3.12"
    command.write_text("#!/bin/sh\necho 'pyenv: python3.12: command not found' >&2\nexit 127\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(SystemExit, match="python3.12 is not on the PATH, or does not run"):
        script["find_python"]("3.12")
