"""Sessions: what starts them, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mist_fairseq.engines import onnx_runtime
from mist_fairseq.engines.onnx_runtime import OnnxEngine, is_supported, start_session
from tests.helpers import tiny_released


def engine_of(released, **changes):
    return OnnxEngine(released.encoder, released.tokenizer.special, "fp32", **changes)


def test_later_changes_of_the_weights_go_unnoticed(dictionary):
    """And what was the memory of the graph's weights may hold anything."""
    released = tiny_released(dictionary)
    engine = engine_of(released)
    given = np.array([[3, 50, 60, 4]]), np.array([4])
    before = engine.encode(*given).length_scores
    for parameter in released.encoder.parameters():
        parameter.data.fill_(7)
    others = [np.full(10**5, 7, np.uint8) for _ in range(50)]
    assert (engine.encode(*given).length_scores == before).all() and len(others) == 50


def test_as_many_threads_as_torch_has(dictionary, monkeypatch):
    given = []
    monkeypatch.setattr(
        onnx_runtime, "start_session", lambda model, threads, weights: given.append(threads) or Stopped()
    )
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    engine_of(tiny_released(dictionary))
    assert given == [3]


class Stopped:
    """A session that does nothing."""

    def get_inputs(self):
        return [None] * 3 + [
            type("Value", (), {"name": "past_key0", "shape": ["B", 4, "P", 8], "type": "tensor(float)"})
        ]

    def get_overridable_initializers(self):
        return []

    def run(self):
        pass


@pytest.mark.parametrize("version", ["1.23.2", "1.24.0", "0.9"])
def test_old_versions_are_refused(monkeypatch, version):
    monkeypatch.setattr("onnxruntime.__version__", version)
    assert not is_supported()
    with pytest.raises(ValueError, match=f"ONNX Runtime is {version}, expected {onnx_runtime.OLDEST} or newer"):
        start_session(b"")


def test_the_oldest_version_is_that_of_setup(monkeypatch):
    setup = (Path(__file__).parents[2] / "setup.py").read_text(encoding="utf-8")
    assert f'"onnxruntime>={onnx_runtime.OLDEST}"' in setup
    for version in (onnx_runtime.OLDEST, "1.100.0", "2.0.0rc1"):
        monkeypatch.setattr("onnxruntime.__version__", version)
        assert is_supported()


@pytest.fixture
def sessions(monkeypatch):
    """The providers of the sessions that were begun, where ONNX Runtime is one for GPUs."""
    begun = []

    class Session:
        def __init__(self, model, options, providers):
            begun.append(providers)

        def get_providers(self):
            return [name if isinstance(name, str) else name[0] for name in begun[-1]]

    monkeypatch.setattr("onnxruntime.InferenceSession", Session)
    available = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: available)
    return begun


def test_providers(sessions, monkeypatch):
    def cuda(number):
        return [("CUDAExecutionProvider", {"device_id": number, "use_tf32": 0}), "CPUExecutionProvider"]

    cpu = ["CPUExecutionProvider"]
    for device in ("cpu", "cuda", "cuda:1", torch.device("cuda:2"), "auto"):
        start_session("model.onnx", device=device)
    start_session("model.onnx")
    assert sessions == [cpu, cuda(0), cuda(1), cuda(2), cuda(0), cpu]
    with pytest.raises(ValueError, match="device is 'gpu', expected auto, cpu, cuda or cuda:N"):
        start_session("model.onnx", device="gpu")
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["AzureExecutionProvider", *cpu])
    start_session("model.onnx", device="auto")
    assert sessions[-1] == cpu
    with pytest.raises(
        ValueError, match="'cuda:1', but this ONNX Runtime runs on Azure.*, CPU.* install onnxruntime-gpu"
    ):
        start_session("model.onnx", device="cuda:1")


def test_a_gpu_that_cannot_be_used(sessions, monkeypatch):
    """ONNX Runtime prints why, and goes on with the CPU: without its CUDA, for instance."""
    monkeypatch.setattr("onnxruntime.InferenceSession.get_providers", lambda _: ["CPUExecutionProvider"])
    start_session("model.onnx", device="auto")
    with pytest.raises(
        ValueError, match="cannot use device 'cuda', .* install the CUDA and cuDNN .* or use device cpu"
    ):
        start_session("model.onnx", device="cuda")
