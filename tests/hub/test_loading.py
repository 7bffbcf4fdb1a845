"""Which generator runs a folder."""

import json
import os
import sys
from types import SimpleNamespace

import pytest

from mist_fairseq.hub.loading import load_generator
from tests.serve.helpers import FakeGenerator


@pytest.mark.parametrize("kind", ["onnx", "pytorch"])
def test_the_folder_says_which_model_it_is(tmp_path, monkeypatch, hub_server, kind):
    """Options that are not given are left to the model."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    loaded = []

    class Generator(FakeGenerator):
        @classmethod
        def from_pretrained(cls, *arguments, **options):
            loaded.append((arguments, options))
            return cls()

    name, options = {
        "onnx": ("OnnxGenerator", {"precision": "int8", "accelerate": "native", "threads": 1, "device": "cuda:1"}),
        "pytorch": ("MistGenerator", {"precision": "bf16", "accelerate": "none", "device": "auto", "threads": 3}),
    }[kind]
    path = "mist_fairseq.hub." + {"onnx": "onnx_generator", "pytorch": "mist_generator"}[kind]
    monkeypatch.setitem(sys.modules, path, SimpleNamespace(**{name: Generator}))
    (tmp_path / "config.json").write_text(json.dumps({"format": kind}))
    assert isinstance(load_generator(str(tmp_path)), Generator)
    assert isinstance(load_generator(str(tmp_path), **options), Generator)
    if kind == "pytorch":  # which reads the number from the environment when it is loaded
        assert os.environ["OMP_NUM_THREADS"] == str(options.pop("threads"))
    assert loaded == [((str(tmp_path),), {}), ((str(tmp_path),), options)]
    hub_server.add("org/tiny", {"config.json": (tmp_path / "config.json").read_bytes(), "dict.txt": b""})
    load_generator("org/tiny")
    assert loaded[2:] == [(("org/tiny",), {})] and hub_server.fetched() == ["config.json"]


def test_where_torch_is_missing_the_way_without_it_is_named(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.delitem(sys.modules, "mist_fairseq.hub.mist_generator", raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    expected = r"is no ONNX folder \(.*\), and MistGenerator needs torch: pip install 'mist-fairseq\[train\]'"
    with pytest.raises(ImportError, match=expected):
        load_generator(str(tmp_path))
