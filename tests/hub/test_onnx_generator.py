"""Generation by ONNX Runtime against PyTorch's, and in an environment without it."""

import copy
import importlib.util
import json
import os
import pickle
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from mist_fairseq import MistGenerator, OnnxGenerator
from mist_fairseq.engines.onnx_runtime import start_session
from mist_fairseq.release.onnx_folder import save_onnx
from tests.engines.test_native import attention, needs_native
from tests.engines.test_onnx_encoder import VARIANTS, released_of
from tests.generate.plain import DECODINGS
from tests.helpers import WORDS, tiny_generator, tiny_released

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


@pytest.fixture(scope="module", params=VARIANTS.values(), ids=VARIANTS)
def both(request, dictionary, tmp_path_factory):
    """A model in ONNX and in PyTorch."""
    released, folder = released_of(dictionary, request.param), str(tmp_path_factory.mktemp("both"))
    save_onnx(released, folder)
    return OnnxGenerator.from_pretrained(folder, threads=1), tiny_generator(released)


@pytest.fixture(scope="module")
def plain(dictionary) -> MistGenerator:
    return tiny_generator(tiny_released(dictionary))


@pytest.fixture(scope="module")
def wide(dictionary, tmp_path_factory) -> Path:
    """A folder for the native engine, whose heads have 16 values."""
    folder = tmp_path_factory.mktemp("wide") / "onnx"
    save_onnx(tiny_released(dictionary, heads=2), str(folder))
    return folder


@pytest.fixture(scope="module")
def exported(dictionary, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "onnx"
    save_onnx(tiny_released(dictionary), str(folder))
    return folder


def assert_same(found, expected):
    """Lists of Outputs, or of lists of them, with all but the same scores."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected):
        if isinstance(one, list):
            assert_same(one, other)
            continue
        for name in ("text", "tokens", "steps", "history", "cut"):
            assert getattr(one, name) == getattr(other, name), name
        assert one.score == pytest.approx(other.score, abs=1e-5)
        assert one.token_scores == pytest.approx(other.token_scores, abs=1e-5)
        assert one.length_scores == pytest.approx(other.length_scores, abs=1e-5)
        assert list(one.length_scores)[:3] == list(other.length_scores)[:3]


@pytest.mark.parametrize("decoding, iterations", DECODINGS)
@pytest.mark.parametrize(
    "options",
    [{}, {"nbest": 3}, {"lengths": [3, None, 4, 19, None, 1, 2, 5, 5, 5]}, {"min_length": 6, "max_length": 8}],
    ids=["one", "nbest", "lengths", "bounds"],
)
def test_generates_as_pytorch(both, decoding, iterations, options):
    given = dict(decoding=decoding, iterations=iterations, return_scores=True, batch_size=4, **options)
    found, expected = (each.generate(TEXTS, **given) for each in both)
    assert_same(found, expected)
    if not options:
        assert found[6].cut and not found[2].tokens and len({output.text for output in found}) > 3
        steps = {output.steps for output in found if output.tokens}
        assert steps == {1} if iterations == 1 else max(steps) == 3


LIKE = {"RoBERTa": "absolute positions", "MPNet": "relative positions", "ModernBERT": "ModernBERT"}


@pytest.mark.parametrize("both", [VARIANTS[name] for name in LIKE.values()], ids=LIKE, indirect=True)
def test_five_hundred_sentences(both):
    rng = random.Random(0)
    texts = [" ".join(rng.choices(WORDS, k=rng.randint(1, 30))) for _ in range(500)]
    given = dict(decoding="mist", iterations=2, return_scores=True, batch_size=50)
    found, expected = (each.generate(texts, **given) for each in both)
    assert_same(found, expected)
    assert len({round(output.score, 4) for output in found}) > 400


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


@needs_native
@pytest.mark.parametrize("decoding, iterations", DECODINGS)
def test_the_native_engine_generates_as_onnx_runtime(wide, decoding, iterations):
    given = dict(decoding=decoding, iterations=iterations, batch_size=4, nbest=2)
    with attention(half=False):
        found, expected = (
            OnnxGenerator.from_pretrained(str(wide), "int8", threads=2, accelerate=accelerate).generate(TEXTS, **given)
            for accelerate in ("native", "onnxruntime")
        )
    assert found == expected


@needs_native
def test_auto_is_native_where_it_can_be_used(wide, exported, monkeypatch):
    def engine(folder, **options):
        return type(OnnxGenerator.from_pretrained(str(folder), **options).engine).__name__

    assert engine(wide, precision="int8") == "NativeEngine"
    assert engine(wide) == engine(exported, precision="int8") == "OnnxEngine"
    with pytest.raises(ValueError, match="accelerate native cannot be used: sizes .* multiples of 16. Use onnxruntime"):
        engine(exported, precision="int8", accelerate="native")
    with pytest.raises(ValueError, match="accelerate native is for precision int8, not fp32: use onnxruntime"):
        engine(wide, accelerate="native")
    with pytest.raises(ValueError, match="accelerate is 'none', expected auto, native or onnxruntime"):
        engine(wide, accelerate="none")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert engine(wide, precision="int8") == "OnnxEngine"


def test_many_threads_may_generate_at_once(both):
    ours, _ = both
    given = [(text, DECODINGS[i % len(DECODINGS)]) for i, text in enumerate(TEXTS * 6)]

    def one(item):
        text, (decoding, iterations) = item
        return ours.generate([text], decoding=decoding, iterations=iterations, return_scores=True)[0]

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(one, given))
    assert_same(found, [one(item) for item in given])


def test_a_copy_is_loaded_anew(exported):
    given = OnnxGenerator.from_pretrained(str(exported), "int8", threads=1)
    for other in (copy.deepcopy(given), pickle.loads(pickle.dumps(given))):
        assert other.engine is not given.engine
        assert other.generate(["how can i learn it"]) == given.generate(["how can i learn it"])


def test_device(exported, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "mist_fairseq.release.onnx_folder.start_session",
        lambda *given, device: asked.append(device) or start_session(*given),
    )
    for options in ({}, {"device": "auto"}, {"device": "cuda:1"}, {"precision": "int8", "device": "auto"}):
        loaded = OnnxGenerator.from_pretrained(str(exported), threads=1, **options)
        copy.copy(loaded)
    assert asked == ["cpu", "cpu", "auto", "auto", "cuda:1", "cuda:1", "cpu", "cpu"]
    with pytest.raises(ValueError, match="precision int8 is for CPUs, device is 'cuda': use fp32, or device cpu"):
        OnnxGenerator.from_pretrained(str(exported), "int8", device="cuda")


def test_a_name_on_the_hub(exported, hub_server):
    """Only the files of the precision are fetched; a copy takes them from the cache."""
    hub_server.add("org/tiny", {path.name: path.read_bytes() for path in exported.iterdir()})
    given = OnnxGenerator.from_pretrained("org/tiny", "int8", threads=1)
    fetched = {line.rpartition("/")[2] for line in hub_server.requests if "/resolve/" in line}
    assert fetched == {"config.json", "SHA256SUMS", "dict.txt", "model.int8.onnx", "model.int8.bin"}
    expected = OnnxGenerator.from_pretrained(str(exported), "int8", threads=1).generate(TEXTS)
    hub_server.requests.clear()
    for other in (given, pickle.loads(pickle.dumps(given))):
        assert other.generate(TEXTS) == expected
    assert not hub_server.requests
    with pytest.raises(FileNotFoundError, match=r"^there is no folder org/none, and no such model on http"):
        OnnxGenerator.from_pretrained("org/none")


# -- without torch and fairseq ----------------------------------------------------------------------------------

GENERATE = """
import json, sys
from mist_fairseq.hub.onnx_generator import OnnxGenerator
found = {}
for folder in sys.argv[2:]:
    for precision in ("fp32", "int8"):
        generator = OnnxGenerator.from_pretrained(folder, precision, threads=1)
        for decoding in ("single-pass", "mist", "mask-predict", "mask-repeats"):
            found[f"{folder} {precision} {decoding}"] = generator.generate(json.loads(sys.argv[1]), decoding=decoding)
json.dump({"found": found, "modules": sorted(sys.modules)}, sys.stdout)
"""

PACKAGES = {"mist_fairseq", "array_api_compat", "numpy", "tokenizers", "onnxruntime", "safetensors"}

# Whatever is not among PACKAGES, which stands before it, is not there for what comes after.
ALONE = """
import sys

class Alone:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        known = top in PACKAGES | sys.stdlib_module_names or top.startswith("_sysconfigdata")
        return self.finder.find_spec(name, path, target) if known else None

sys.meta_path[:] = map(Alone, sys.meta_path)
"""


def test_generates_where_nothing_else_can_be_imported(exported, wide, plain, tmp_path):
    """What is generated here, and nothing heavy is loaded."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    script = f"PACKAGES = {PACKAGES}{ALONE}{GENERATE}"
    command = [sys.executable, "-c", script, json.dumps(TEXTS), str(exported), str(wide)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    for decoding, _ in DECODINGS:
        assert result["found"][f"{exported} fp32 {decoding}"] == plain.generate(TEXTS, decoding=decoding)
        for folder in (exported, wide):
            rounded = OnnxGenerator.from_pretrained(str(folder), "int8", threads=1)
            assert result["found"][f"{folder} int8 {decoding}"] == rounded.generate(TEXTS, decoding=decoding)
    loaded = {name.partition(".")[0] for name in result["modules"]}
    assert not loaded & {"torch", "fairseq", "onnx", "sentencepiece", "omegaconf", "hydra", "sacrebleu", "transformers"}
    assert {"numpy", "tokenizers", "onnxruntime", "mist_fairseq"} <= loaded
