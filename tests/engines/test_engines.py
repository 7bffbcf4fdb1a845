"""Which engine a command line gets, and which are refused."""

import importlib.util
import sys

import pytest
import torch

from mist_fairseq.engines import build_engine, choose, choose_device, gpu_number
from mist_fairseq.engines.compiled import CompiledEngine
from mist_fairseq.engines.onnx_runtime import OnnxEngine
from mist_fairseq.engines.pytorch import PyTorchEngine
from tests.helpers import see_gpus, tiny_encoder_decoder, tiny_released


def build(model, accelerate, precision):
    return build_engine(model.encoder, model.tokenizer.special, accelerate, precision)


@pytest.mark.parametrize(
    "accelerate, precision, message",
    [
        ("onnxruntime", "bf16", "onnxruntime has no --precision bf16: use --accelerate compile or cudagraph or none"),
        ("none", "int8", "--accelerate none has no --precision int8: use --accelerate native or onnxruntime"),
        ("compile", "int8", "--accelerate compile has no --precision int8: use --accelerate native or onnxruntime"),
        (
            "tensorrt",
            "fp32",
            "--accelerate is 'tensorrt', expected one of auto, compile, .*native, none, onnxruntime",
        ),
        ("onnxruntime", "fp16", "precision is 'fp16', expected one of fp32, bf16, int8"),
        ("cudagraph", "fp32", "--accelerate cudagraph is for GPUs, the model is on cpu: use --accelerate none there"),
    ],
)
def test_what_cannot_work_is_refused(dictionary, accelerate, precision, message):
    with pytest.raises(ValueError, match=message):
        build(tiny_released(dictionary), accelerate, precision)


def test_of_an_encoder_decoder(dictionary):
    """Nothing is compiled before the first batch."""
    model = tiny_encoder_decoder(dictionary)
    for accelerate in ("onnxruntime", "cudagraph"):
        with pytest.raises(ValueError, match=f"{accelerate} is for mist_.* architectures: use --accelerate compile"):
            build(model, accelerate, "fp32")
    with pytest.raises(ValueError, match=r"--precision int8 is for mist_\* architectures: use fp32 or bf16"):
        build(model, "auto", "int8")
    assert type(build(model, "auto", "fp32")) is type(build(model, "none", "bf16")) is PyTorchEngine
    assert type(build(model, "compile", "bf16")) is CompiledEngine


def test_auto_is_onnx_runtime_where_it_works(dictionary):
    for precision in ("fp32", "int8"):
        assert type(build(tiny_released(dictionary), "auto", precision)) is OnnxEngine
    assert type(build(tiny_released(dictionary), "auto", "bf16")) is PyTorchEngine
    assert choose(tiny_released(dictionary).encoder.to("meta"), "fp32") == "none"  # any device that is not a CPU
    assert choose(tiny_released(dictionary).encoder.half(), "fp32") == "none"  # fairseq's own --fp16


@pytest.mark.parametrize("missing", ["onnx", "onnxruntime"])
def test_auto_is_none_where_a_package_is_missing(dictionary, monkeypatch, missing):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == missing else find(name, *more))
    monkeypatch.setitem(sys.modules, missing, None)
    assert type(build(tiny_released(dictionary), "auto", "fp32")) is PyTorchEngine
    with pytest.raises(ValueError, match="--precision int8: use --accelerate native or onnxruntime"):
        build(tiny_released(dictionary), "auto", "int8")
    name, extra = {"onnx": ("onnx", "onnxruntime"), "onnxruntime": ("ONNX Runtime", "runtime")}[missing]
    with pytest.raises(ValueError, match=rf"{name} is not installed: pip install 'mist-fairseq\[{extra}\]'"):
        build(tiny_released(dictionary), "onnxruntime", "fp32")


def test_auto_is_none_where_onnx_runtime_is_too_old(dictionary, monkeypatch):
    monkeypatch.setattr("onnxruntime.__version__", "1.23.2")
    assert type(build(tiny_released(dictionary), "auto", "fp32")) is PyTorchEngine
    with pytest.raises(ValueError, match="ONNX Runtime is 1.23.2, expected 1.24.1 or newer"):
        build(tiny_released(dictionary), "onnxruntime", "fp32")


def test_onnx_runtime_takes_weights_in_fp32_on_the_cpu(dictionary):
    model = tiny_released(dictionary)
    with pytest.raises(ValueError, match="needs weights in fp32: leave out --fp16"):
        OnnxEngine(model.encoder.half(), model.tokenizer.special, "fp32")
    model.encoder.to("meta")
    with pytest.raises(ValueError, match=r"onnxruntime is for CPUs \(--cpu, in Python device='cpu'\), .* on meta"):
        build(model, "onnxruntime", "fp32")


# -- devices -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device, number", [("cpu", None), ("cuda", 0), ("cuda:11", 11), (torch.device("cuda:1"), 1)])
def test_the_number_of_a_gpu(device, number):
    assert gpu_number(device) == number


@pytest.mark.parametrize(
    "device", ["gpu", "cuda:", "cuda:-1", "cuda:x", "cuda:1 ", "mps", "cpu:0", "", 0, None, "auto"]
)
def test_what_is_no_device(device):
    with pytest.raises(ValueError, match=f"device is '{device}', expected auto, cpu, cuda or cuda:N"):
        gpu_number(device)


@pytest.mark.parametrize(
    "gpus, accelerate, precision, device",
    [
        (0, "auto", "fp32", "cpu"),
        (2, "auto", "fp32", "cuda"),
        (2, "auto", "bf16", "cuda"),
        (2, "auto", "int8", "cpu"),  # which no engine does on a GPU
        (2, "compile", "bf16", "cuda"),
        (2, "cudagraph", "fp32", "cuda"),
        (0, "cudagraph", "fp32", "cpu"),
        (2, "onnxruntime", "fp32", "cpu"),
    ],
)
def test_what_auto_stands_for(monkeypatch, gpus, accelerate, precision, device):
    see_gpus(monkeypatch, gpus)
    assert choose_device("auto", accelerate, precision) == device


def test_a_device_that_is_not_there(monkeypatch):
    see_gpus(monkeypatch, 2)
    for device in ("cpu", "cuda", "cuda:1", torch.device("cuda", 1)):
        assert choose_device(device, "auto", "fp32") == str(device)
    with pytest.raises(ValueError, match="device is 'cuda:2', but torch .* sees 2 GPUs, numbered from 0"):
        choose_device("cuda:2", "auto", "fp32")
    see_gpus(monkeypatch, 0)
    with pytest.raises(ValueError, match="device is 'cuda', but torch .* sees no GPU: use cpu, or install PyTorch"):
        choose_device("cuda", "auto", "fp32")


def test_int8_on_a_gpu_is_refused(dictionary, monkeypatch):
    model = tiny_released(dictionary)
    monkeypatch.setattr(torch.nn.Parameter, "is_cuda", True)
    for accelerate in ("auto", "onnxruntime"):
        with pytest.raises(
            ValueError, match=r"int8 is for CPUs: use fp32 or bf16, or a CPU \(--cpu, in Python device="
        ):
            build(model, accelerate, "int8")
