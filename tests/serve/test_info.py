"""What a server says of itself, of real exports."""

import hashlib

import pytest

import mist_fairseq
from mist_fairseq.generate.decoding import DECODINGS
from mist_fairseq.hub.loading import load_generator
from mist_fairseq.release.folder import save_folder
from mist_fairseq.release.onnx_folder import save_onnx
from mist_fairseq.serve.info import describe, read_weights_info
from mist_fairseq.serve.limits import Limits
from mist_fairseq.text.wordpiece import wordpiece_tokenizer
from tests.helpers import tiny_released, tiny_vocab
from tests.serve.helpers import FakeGenerator, serving

KINDS = {
    "fp32": ("onnx", "model.bin", "onnxruntime"),
    "int8": ("onnx", "model.int8.bin", "onnxruntime"),
    "pytorch": ("pytorch", "model.safetensors", "none"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("untie_head", [False, True])
def test_the_file_of_weights_is_described(tmp_path, kind, untie_head):
    """Hash and size as of the file itself, parameters as PyTorch counts them, and the engine that runs."""
    form, file, accelerate = KINDS[kind]
    released = tiny_released(untie_head=untie_head)
    folder = tmp_path / "my-model"
    if form == "onnx":
        save_onnx(released, str(folder))
    else:
        save_folder(released, str(folder), "")
    precision = "fp32" if kind == "pytorch" else kind
    weights = read_weights_info(str(folder), precision)
    content = (folder / file).read_bytes()
    assert (weights.name, weights.format, weights.precision) == ("my-model", form, precision)
    assert weights.hash == hashlib.sha256(content).hexdigest() and weights.bytes == len(content)
    assert weights.parameters == sum(parameter.numel() for parameter in released.encoder.parameters())
    assert read_weights_info(str(folder), precision, "mine").name == "mine"
    generator = load_generator(str(folder), precision=precision, accelerate=accelerate, device="cpu")
    info = describe(generator, Limits(), weights)
    assert info.accelerate == accelerate and info.decodings == list(DECODINGS)
    assert (info.max_source_tokens, info.max_target_tokens) == (40, 20)


def test_a_model_with_paths_cannot_do_all_decodings(tmp_path):
    save_folder(tiny_released(head="dag"), str(tmp_path), "")
    info = describe(load_generator(str(tmp_path), accelerate="none", device="cpu"), Limits())
    assert (info.head, info.decodings) == ("dag", ["single-pass", "mist"])


def test_whether_case_is_read():
    generator = FakeGenerator()
    assert describe(generator, Limits()).lowercases
    generator.tokenizer = wordpiece_tokenizer([*tiny_vocab(), "T", "Q"], lowercase=False)
    assert not describe(generator, Limits()).lowercases


def test_info_over_http(running):
    status, info = running.get("/info")
    assert status == 200 and (info["name"], info["hash"], info["version"]) == ("model", None, mist_fairseq.__version__)
    assert info["head"] == "length" and info["decodings"] == list(DECODINGS) and info["examples"] == []
    assert info["defaults"]["decoding"] == "single-pass" and info["defaults"]["iterations"] is None
    assert info["limits"]["max_batch"] == 32 and info["limits"]["max_seconds"] == 30
    with serving(FakeGenerator(), max_batch=5) as small:
        assert small.get("/info")[1]["limits"]["max_batch"] == 5
        schema = small.get("/openapi.json")[1]["components"]["schemas"]["Info"]
        assert set(schema["properties"]) == set(info)
