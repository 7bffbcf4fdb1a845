"""Which engine a command line gets, and which are refused."""

import importlib.util
import sys

import pytest
import torch

from mist_fairseq.engines import build_engine, choose
from mist_fairseq.engines.compiled import CompiledEncoder
from mist_fairseq.engines.onnx_runtime import OnnxRuntimeEncoder
from tests.engines.helpers import prepare
from tests.helpers import tiny_model
from tests.models.baselines.test_nat_mass import build as nat_mass


def build(model, accelerate, precision):
    with torch.no_grad():
        return build_engine(model.encoder, model.never_predicted, accelerate, precision)


@pytest.mark.parametrize(
    "accelerate, precision, message",
    [
        ("onnxruntime", "bf16", "onnxruntime has no --precision bf16: use --accelerate none or compile or cudagraph"),
        ("none", "int8", "--accelerate none has no --precision int8: use --accelerate onnxruntime"),
        ("compile", "int8", "--accelerate compile has no --precision int8: use --accelerate onnxruntime"),
        ("tensorrt", "fp32", "--accelerate is 'tensorrt', expected one of auto, none, compile, onnxruntime, cudagraph"),
        ("onnxruntime", "fp16", "--accelerate onnxruntime has no --precision fp16"),
        ("cudagraph", "fp32", "--accelerate cudagraph needs a GPU, the model is on the cpu"),
    ],
)
def test_what_cannot_work_is_refused(dictionary, accelerate, precision, message):
    with pytest.raises(ValueError, match=message):
        build(tiny_model(dictionary), accelerate, precision)


@pytest.mark.parametrize("accelerate", ["onnxruntime", "cudagraph"])
def test_an_encoder_decoder_is_refused(dictionary, accelerate):
    with pytest.raises(ValueError, match=f"{accelerate} is for mist_.* architectures: use --accelerate compile"):
        build(nat_mass(dictionary), accelerate, "fp32")


def test_none_is_the_encoder_itself(dictionary):
    for precision in ("fp32", "bf16"):
        assert build(tiny_model(dictionary), "none", precision) is None
        assert build(nat_mass(dictionary), "none", precision) is None


def test_compile_takes_an_encoder_decoder(dictionary):
    """Nothing is compiled before the first batch."""
    assert isinstance(build(nat_mass(dictionary), "compile", "bf16"), CompiledEncoder)


def test_auto_is_onnx_runtime_where_it_works(dictionary):
    for precision in ("fp32", "int8"):
        assert isinstance(build(tiny_model(dictionary), "auto", precision), OnnxRuntimeEncoder)
    assert choose(tiny_model(dictionary).encoder, "bf16") == "none"
    assert build(tiny_model(dictionary), "auto", "bf16") is None
    assert build(nat_mass(dictionary), "auto", "fp32") is None
    assert choose(tiny_model(dictionary).to("meta").encoder, "fp32") == "none"  # any device that is not a CPU
    assert choose(tiny_model(dictionary).half().encoder, "fp32") == "none"  # fairseq's own --fp16


@pytest.mark.parametrize("missing", ["onnx", "onnxruntime"])
def test_auto_is_none_where_a_package_is_missing(dictionary, monkeypatch, missing):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == missing else find(name, *more))
    monkeypatch.setitem(sys.modules, missing, None)
    assert build(tiny_model(dictionary), "auto", "fp32") is None
    with pytest.raises(ValueError, match="--precision int8: use --accelerate onnxruntime"):
        build(tiny_model(dictionary), "auto", "int8")


def test_auto_is_none_where_onnx_runtime_is_too_old(dictionary, monkeypatch):
    monkeypatch.setattr("onnxruntime.__version__", "1.23.2")
    assert build(tiny_model(dictionary), "auto", "fp32") is None
    with pytest.raises(ValueError, match="ONNX Runtime is 1.23.2, expected 1.24.1 or newer"):
        build(tiny_model(dictionary), "onnxruntime", "fp32")


@pytest.mark.parametrize("missing, message", [("onnx", "onnx is not"), ("onnxruntime", "ONNX Runtime is not")])
def test_a_missing_package_is_named(dictionary, monkeypatch, missing, message):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ValueError, match=rf"{message} installed: pip install -e \.\[onnxruntime\]"):
        build(tiny_model(dictionary), "onnxruntime", "fp32")


def test_another_device_than_the_cpu_is_refused(dictionary):
    with pytest.raises(ValueError, match="onnxruntime is for CPUs: add --cpu, or use --accelerate cudagraph"):
        OnnxRuntimeEncoder(tiny_model(dictionary).to("meta").encoder, torch.tensor([0]), int8=False)


def test_an_engine_does_not_stay_when_the_model_is_prepared_again(dictionary):
    model = prepare(tiny_model(dictionary), "onnxruntime")
    assert isinstance(model.engine, OnnxRuntimeEncoder)
    assert prepare(model, "none").engine is None
