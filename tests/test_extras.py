"""What pip brings with the package and its extras, and what the part without torch needs of it.

setup.py is run, as the installed package may be of an older one; other packages' requirements are those installed here.
"""

import functools
import importlib.metadata
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from mist_fairseq.extras import install_line
from tests.hub.test_onnx_generator import ALONE, PACKAGES

ROOT = Path(__file__).parent.parent
LIGHT = ["", "runtime", "serve", "hub", "tables"]
APART = {"ray"}  # too large for the tests, so not installed with them
HEAVY = {"torch", "torchaudio", "ve-fairseq", "fairseq", "hydra-core", "omegaconf", "sacrebleu", "transformers", "onnx"}


@functools.cache
def requirements(package: str) -> list[Requirement]:
    """Of a package that is installed here, all extras' included."""
    return list(map(Requirement, importlib.metadata.requires(package) or []))


@pytest.fixture(scope="module")
def declared() -> dict[str, list[str]]:
    """What setup.py asks for: by extra, and by "" what it always does."""
    with pytest.MonkeyPatch.context() as patch:
        given: dict = {}
        patch.setattr("setuptools.setup", lambda **options: given.update(options))
        runpy.run_path(str(ROOT / "setup.py"))
    return {"": given["install_requires"], **given["extras_require"]}


@pytest.fixture(scope="module")
def brought(declared):
    """A function: the names of all packages that pip installs with an extra."""

    @functools.cache
    def closure(extra: str) -> set[str]:
        found: set[tuple[str, str]] = set()
        waiting = [("mist-fairseq", ""), ("mist-fairseq", extra)]
        while waiting:
            name, of = waiting.pop()
            if (name, of) in found:
                continue
            found.add((name, of))
            own = name == "mist-fairseq"
            for needed in map(Requirement, declared[of]) if own else requirements(name):
                if needed.marker is None or needed.marker.evaluate({"extra": of}):
                    waiting += [(canonicalize_name(needed.name), extra) for extra in ("", *needed.extras)]
        return {name for name, _ in found}

    return closure


@pytest.mark.parametrize("extra", LIGHT)
def test_what_runs_an_onnx_folder_brings_nothing_heavy(brought, extra):
    packages = brought(extra)
    assert {"numpy", "tokenizers"} <= packages and not packages & HEAVY


def test_all_other_extras_bring_torch_and_fairseq(brought, declared):
    for extra in declared.keys() - LIGHT - APART:
        assert {"torch", "ve-fairseq", "sacrebleu", "pyyaml"} <= brought(extra), extra


def test_the_tests_have_all(brought, declared):
    assert set().union(*map(brought, declared.keys() - APART)) == brought("test")


def test_fairseq_comes_first(declared):
    """pip of a Python without a package of it would else fetch torch before it says so."""
    assert declared["train"][0].startswith("ve-fairseq==")


def modules_of(packages: set[str]) -> set[str]:
    """The names under which they are imported."""
    distributions = importlib.metadata.packages_distributions()
    return {module for module, names in distributions.items() if packages & set(map(canonicalize_name, names))}


def test_generation_needs_no_more_than_runtime_brings(brought):
    """PACKAGES is what tests/hub/test_onnx_generator.py generates with, in fp32, int8 and by the native engine."""
    assert PACKAGES - {"mist_fairseq"} <= modules_of(brought("runtime"))


def test_the_server_needs_no_more_than_serve_brings(brought, tmp_path):
    """It is imported with its command, the program and the door to the hub; nothing else is there."""
    packages = modules_of(brought("serve")) | {"mist_fairseq"}
    script = "import mist_fairseq.serve.__main__, mist_fairseq.hub.onnx_generator, sentencepiece, huggingface_hub"
    command = [sys.executable, "-c", f"PACKAGES = {packages}{ALONE}{script}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_every_extra_that_is_named_is_one(declared):
    """In messages, and in commands of documents and scripts."""
    assert install_line("serve") == "pip install 'mist-fairseq[serve]'"
    code, command = r"install_line\([\"'](\w+)", r"(?:-e \.|mist-fairseq)\[([\w,]+)\]"
    for files, pattern in {"mist_fairseq/**/*.py": code, "*.md": command, "docs/*.md": command}.items():
        named = [
            (path.name, extra)
            for path in ROOT.glob(files)
            for extras in re.findall(pattern, path.read_text(encoding="utf-8"))
            for extra in extras.split(",")
        ]
        assert len(named) > 3 and not [(name, extra) for name, extra in named if extra not in declared]
