"""Generation by ONNX Runtime against PyTorch's, and in an environment without it."""

import copy
import importlib.metadata
import json
import os
import pickle
import shutil
import subprocess
import sys
import venv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest

from mist_fairseq.engines.onnx_runtime import OLDEST
from mist_fairseq.hub.mist_generator import MistGenerator
from mist_fairseq.hub.onnx_generator import OnnxGenerator
from mist_fairseq.release.folder import save_folder
from mist_fairseq.release.onnx_folder import save_onnx
from tests.generate.plain import DECODINGS
from tests.helpers import renew_sums, tiny_generator, tiny_released, untied

ROOT = Path(__file__).parents[2]
TEXTS = [
    "How can I learn the guitar fast?",
    "what is best",
    "",
    "why do you do it, and who is in the way of it?",
    ("the guitar", "how can i learn it"),
    "caf\u00e9 \u2603 [SEP] the the",
    "how " * 60,
    "it",
    ("", "what is best for you?"),
    "who",
]


VARIANTS = {
    "absolute positions": {},
    "relative positions": dict(rel_pos_bins=8, max_rel_pos=12, token_types=6, source_type=4, target_type=5),
    "untied head": dict(untie_head=True),
}


def written(model, folder: Path) -> Path:
    save_onnx(model, str(folder))
    return folder


@pytest.fixture(scope="module", params=VARIANTS.values(), ids=VARIANTS)
def both(request, dictionary, tmp_path_factory):
    """A model in ONNX and in PyTorch."""
    model = untied(tiny_released(dictionary, **request.param))
    folder = written(model, tmp_path_factory.mktemp("both"))
    return OnnxGenerator.from_pretrained(folder, threads=1), tiny_generator(model)


@pytest.fixture(scope="module")
def plain(dictionary) -> MistGenerator:
    return tiny_generator(tiny_released(dictionary))


@pytest.fixture(scope="module")
def exported(dictionary, tmp_path_factory) -> Path:
    return written(tiny_released(dictionary), tmp_path_factory.mktemp("exported") / "onnx")


@pytest.fixture
def folder(exported, tmp_path) -> Path:
    """One that a test may spoil."""
    return Path(shutil.copytree(exported, tmp_path / "onnx"))


def assert_same(found, expected):
    """Lists of Outputs, or of lists of them, with all but the same scores."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected):
        if isinstance(one, list):
            assert_same(one, other)
            continue
        for name in ("text", "tokens", "steps", "history", "cut"):
            assert getattr(one, name) == getattr(other, name), name
        assert one.score == pytest.approx(other.score, abs=1e-4)
        assert one.token_scores == pytest.approx(other.token_scores, abs=1e-4)
        assert one.length_scores == pytest.approx(other.length_scores, abs=1e-5)
        assert list(one.length_scores)[:3] == list(other.length_scores)[:3]


@pytest.mark.parametrize("decoding, iterations", DECODINGS)
@pytest.mark.parametrize("options", [{}, {"nbest": 3}, {"length_beam": 4}], ids=["one", "nbest", "length beam"])
def test_generates_as_pytorch(both, decoding, iterations, options):
    given = dict(decoding=decoding, iterations=iterations, return_scores=True, batch_size=4, **options)
    found, expected = (each.generate(TEXTS, **given) for each in both)
    assert_same(found, expected)
    if not options:
        assert found[6].cut and not found[2].tokens and len({output.text for output in found}) > 5
        steps = {output.steps for output in found if output.tokens}
        assert steps == {1} if iterations == 1 else max(steps) == 3


@pytest.mark.parametrize("decoding, iterations", DECODINGS)
@pytest.mark.parametrize(
    "options",
    [
        {"lengths": 7},
        {"lengths": [3, None, 4, 19, None, 1, 2, 5, 5, 5]},
        {"min_length": 6, "max_length": 8},
        {"min_length": 4, "max_length": 5, "nbest": 4},  # more than there are lengths
        {"max_length": 100},
        {"keep_repeats": True, "min_length": 10},
    ],
    ids=["length", "lengths", "bounds", "few lengths", "no bound", "repeats"],
)
def test_generates_as_pytorch_with(both, decoding, iterations, options):
    found, expected = (
        each.generate(TEXTS, decoding=decoding, iterations=iterations, return_scores=True, **options) for each in both
    )
    assert_same(found, expected)


@pytest.mark.parametrize("decoding, iterations", [("mist", 20), ("mask-predict", 20)])
def test_many_iterations(both, decoding, iterations):
    """MIST stops where nothing changes, a sentence at a time; Mask-Predict has nothing left to mask."""
    found, expected = (
        each.generate(TEXTS, decoding=decoding, iterations=iterations, max_length=6, return_scores=True)
        for each in both
    )
    assert_same(found, expected)
    steps = {output.steps for output in found if output.tokens}
    assert len(steps) > 1 if decoding == "mist" else steps == {20}


def test_a_batch_equals_its_sentences(both):
    ours, _ = both
    for decoding, iterations in DECODINGS:
        options = dict(decoding=decoding, iterations=iterations, return_scores=True)
        assert_same(ours.generate(TEXTS, batch_size=1, **options), ours.generate(TEXTS, batch_size=10, **options))


def test_int8_generates_almost_the_same(exported, plain):
    """Of the given length, so that tokens can be compared; outputs are [SEP] free where every token shows."""
    ours = OnnxGenerator.from_pretrained(str(exported), "int8", threads=1)
    options = dict(lengths=9, keep_repeats=True, return_scores=True)
    pairs = [
        (one, other)
        for one, other in zip(ours.generate(TEXTS, **options), plain.generate(TEXTS, **options))
        if len(one.tokens) == len(other.tokens)
    ]
    assert len(pairs) >= 8
    same = [a == b for one, other in pairs for a, b in zip(one.tokens, other.tokens)]
    differences = [abs(a - b) for one, other in pairs for a, b in zip(one.token_scores, other.token_scores)]
    assert np.mean(same) > 0.8 and 1e-5 < max(differences) < 0.2


def test_many_threads_may_generate_at_once(both):
    ours, _ = both
    given = [(text, DECODINGS[i % 3]) for i, text in enumerate(TEXTS * 6)]

    def one(item):
        text, (decoding, iterations) = item
        return ours.generate([text], decoding=decoding, iterations=iterations, return_scores=True)[0]

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(one, given))
    assert_same(found, [one(item) for item in given])


# -- files ------------------------------------------------------------------------------------------------------


def test_a_copy_is_loaded_anew(folder):
    given = OnnxGenerator.from_pretrained(str(folder), "int8", threads=1)
    for other in (copy.deepcopy(given), pickle.loads(pickle.dumps(given))):
        assert other.engine is not given.engine
        assert other.generate(["how can i learn it"]) == given.generate(["how can i learn it"])


@pytest.mark.parametrize("name", ["config.json", "dict.txt", "source.onnx", "target.onnx"])
def test_a_missing_file(folder, name):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"has no {name}: export the model again"):
        OnnxGenerator.from_pretrained(str(folder))


def test_only_the_files_of_the_precision_are_needed(folder, plain):
    for name in ("source.onnx", "target.onnx"):
        (folder / name).unlink()
    assert OnnxGenerator.from_pretrained(str(folder), "int8").generate(["how can i learn it"])[0]


@pytest.mark.parametrize("name", ["source.onnx", "target.int8.onnx"])
@pytest.mark.parametrize(
    "damage", [lambda data: data[: len(data) // 2], lambda data: b"no ONNX at all", lambda data: b""]
)
def test_a_damaged_file(folder, name, damage):
    (folder / name).write_bytes(damage((folder / name).read_bytes()))
    for message in ("is damaged or not the one that SHA256SUMS beside it is of", "is damaged, or of a version"):
        with pytest.raises(ValueError, match=f"{name} {message}"):
            OnnxGenerator.from_pretrained(str(folder), "int8" if "int8" in name else "fp32")
        renew_sums(folder)


def rewrite(path, **changes):
    """Change an ONNX file's metadata."""
    model = onnx.load(path)
    metadata = {entry.key: entry.value for entry in model.metadata_props} | changes
    del model.metadata_props[:]
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)
    onnx.save(model, path)
    renew_sums(path.parent)


@pytest.mark.parametrize("name", ["source.onnx", "target.onnx"])
def test_an_onnx_file_of_another_version(folder, name):
    rewrite(folder / name, version="2")
    with pytest.raises(ValueError, match=f"{name} has version '2', this mist_fairseq reads version 1"):
        OnnxGenerator.from_pretrained(str(folder))


@pytest.mark.parametrize("changes", [{"max_source_positions": 60}, {"layers": 3}, {"heads": 2}])
def test_a_changed_configuration(folder, changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(ValueError, match=r"config.json was changed since the export: export the model again"):
        OnnxGenerator.from_pretrained(str(folder))


def test_an_onnx_file_of_another_ir_version(folder):
    model = onnx.load(folder / "source.onnx")
    model.ir_version = 1000
    onnx.save(model, folder / "source.onnx")
    renew_sums(folder)
    with pytest.raises(ValueError, match="source.onnx is damaged, or of a version that ONNX Runtime .* does not read"):
        OnnxGenerator.from_pretrained(str(folder))


def test_an_onnx_file_from_elsewhere(folder):
    rewrite(folder / "target.onnx", format="another")
    with pytest.raises(ValueError, match="target.onnx is not of mist_fairseq"):
        OnnxGenerator.from_pretrained(str(folder))


@pytest.mark.parametrize("one, other", [("source.onnx", "target.onnx"), ("source.onnx", "source.int8.onnx")])
def test_renamed_files(folder, one, other):
    shutil.copy(folder / other, folder / one)
    renew_sums(folder)
    with pytest.raises(ValueError, match=f"{one} has (pass 'target'|precision 'int8'), expected .*: was it renamed?"):
        OnnxGenerator.from_pretrained(str(folder))


def test_files_of_several_exports(folder, dictionary, tmp_path):
    other = written(tiny_released(dictionary, seed=1), tmp_path / "other")
    shutil.copy(other / "target.onnx", folder / "target.onnx")
    renew_sums(folder)
    with pytest.raises(ValueError, match="target.onnx is of another export than config.json .*: the folder mixes"):
        OnnxGenerator.from_pretrained(str(folder))


def test_another_vocabulary(folder):
    path = folder / "dict.txt"
    path.write_text(path.read_text().replace("guitar", "violin"))
    renew_sums(folder)
    with pytest.raises(ValueError, match="dict.txt is not the vocabulary that config.json names"):
        OnnxGenerator.from_pretrained(str(folder))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"version": 2}, "config.json has version 2, this mist_fairseq reads version 1"),
        ({"format": "else"}, "its format is 'else', expected 'onnx'. Export the model with scripts/export.py"),
        ({"layers": "2"}, "layers is '2', expected a whole number"),
        ({"max_target_positions": 0}, "max_target_positions is 0, expected a whole number"),
        ({"export": None}, "export is None, expected text"),
    ],
)
def test_a_wrong_configuration(folder, changes, message):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(ValueError, match=message):
        OnnxGenerator.from_pretrained(str(folder))


@pytest.mark.parametrize("text", ["{", "[]", "\ufffd"])
def test_a_configuration_that_is_none(folder, text):
    (folder / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match="config.json is not"):
        OnnxGenerator.from_pretrained(str(folder))


def test_a_released_model_of_pytorch(tmp_path):
    save_folder(tiny_released(), str(tmp_path), "")
    with pytest.raises(ValueError, match=r"its format is 'mist_fairseq', expected 'onnx'. Export the model with"):
        OnnxGenerator.from_pretrained(str(tmp_path))


def test_wrong_options(exported):
    with pytest.raises(ValueError, match="precision is 'bf16', expected fp32 or int8"):
        OnnxGenerator.from_pretrained(str(exported), "bf16")
    for threads in (0, 1.5):
        with pytest.raises(ValueError, match=f"threads is {threads}, expected a whole number"):
            OnnxGenerator.from_pretrained(str(exported), threads=threads)


def test_threads(exported):
    ours = OnnxGenerator.from_pretrained(str(exported), threads=2)
    for session in (ours.engine._source, ours.engine._target):
        assert session.get_session_options().intra_op_num_threads == 2


def test_without_onnx_runtime(exported, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ValueError, match="ONNX Runtime is not installed: .*, pip install onnxruntime"):
        OnnxGenerator.from_pretrained(str(exported))


@pytest.mark.parametrize("version", ["1.23.2", "1.9.0", "0.30"])
def test_an_onnx_runtime_that_reads_what_it_should_not(exported, monkeypatch, version):
    monkeypatch.setattr("onnxruntime.__version__", version)
    with pytest.raises(ValueError, match=f"ONNX Runtime is {version}, expected 1.24.1 or newer: pip install"):
        OnnxGenerator.from_pretrained(str(exported))


def test_the_oldest_onnx_runtime_is_that_of_setup(exported, monkeypatch):
    setup = (Path(__file__).parents[2] / "setup.py").read_text(encoding="utf-8")
    assert f'"onnxruntime>={OLDEST}"' in setup
    for version in (OLDEST, "1.100.0", "2.0.0rc1"):
        monkeypatch.setattr("onnxruntime.__version__", version)
        OnnxGenerator.from_pretrained(str(exported))


# -- without torch and fairseq ----------------------------------------------------------------------------------

GENERATE = """
import json, sys
from mist_fairseq.hub.onnx_generator import OnnxGenerator
found = {}
for precision in ("fp32", "int8"):
    generator = OnnxGenerator.from_pretrained(sys.argv[1], precision, threads=1)
    for decoding in ("single-pass", "mist", "mask-predict"):
        found[f"{precision} {decoding}"] = generator.generate(json.loads(sys.argv[2]), decoding=decoding)
json.dump({"found": found, "modules": sorted(sys.modules)}, sys.stdout)
"""

# Whatever else is installed here is not there for what comes after.
ALONE = """
import sys
PACKAGES = {"mist_fairseq", "numpy", "tokenizers", "onnxruntime"}

class Alone:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        return self.finder.find_spec(name, path, target) if top in PACKAGES | sys.stdlib_module_names else None

sys.meta_path[:] = map(Alone, sys.meta_path)
"""


def generate_in(python: Path, script: str, folder: Path, tmp_path: Path) -> dict:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [str(python), "-c", script, str(folder), json.dumps(TEXTS)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def assert_alone(result: dict, exported: Path, plain: MistGenerator):
    """It generated what is generated here, and loaded nothing heavy."""
    rounded = OnnxGenerator.from_pretrained(str(exported), "int8", threads=1)
    for decoding, _ in DECODINGS:
        assert result["found"][f"fp32 {decoding}"] == plain.generate(TEXTS, decoding=decoding)
        assert result["found"][f"int8 {decoding}"] == rounded.generate(TEXTS, decoding=decoding)
    loaded = {name.partition(".")[0] for name in result["modules"]}
    assert not loaded & {"torch", "fairseq", "onnx", "sentencepiece", "omegaconf", "hydra", "sacrebleu", "transformers"}
    assert {"numpy", "tokenizers", "onnxruntime", "mist_fairseq"} <= loaded


def test_generates_where_nothing_else_can_be_imported(exported, plain, tmp_path):
    assert_alone(generate_in(sys.executable, ALONE + GENERATE, exported, tmp_path), exported, plain)


def test_generates_in_an_environment_without_torch_and_fairseq(exported, plain, tmp_path):
    """A fresh one, with three packages of the versions in constraints.txt."""
    if not list(importlib.metadata.distributions(name="pip")):  # importing it would change distutils for all tests
        pytest.skip("needs pip")
    venv.create(tmp_path / "environment", symlinks=True)
    python = tmp_path / "environment" / "bin" / "python"
    install = ["-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-compile"]
    install += ["--retries", "1", "-c", str(ROOT / "constraints.txt"), "numpy", "tokenizers", "onnxruntime"]
    done = subprocess.run([sys.executable, *install], capture_output=True, text=True, timeout=300)
    if "No matching distribution found" in done.stderr:
        pytest.skip(f"no package index has what is needed: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    packages = subprocess.run(
        [sys.executable, "-m", "pip", "--python", str(python), "list", "--format=json"], capture_output=True, text=True
    )
    names = {package["name"].lower() for package in json.loads(packages.stdout)}
    assert names == {"numpy", "tokenizers", "onnxruntime"}
    assert_alone(generate_in(python, GENERATE, exported, tmp_path), exported, plain)
