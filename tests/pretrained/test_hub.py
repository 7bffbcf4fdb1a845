"""Names on the hub, by the real huggingface_hub, from a server on the loopback."""

import hashlib
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mist_fairseq.mist.config import EncoderConfig
from mist_fairseq.mist.encoder import Encoder
from mist_fairseq.pretrained.hub import local_folder, may_be_name, push_folder
from mist_fairseq.pretrained.weights import check_weights, load_pretrained, read_sizes
from tests.conftest import fresh_library
from tests.helpers import bert_state, tiny_vocab, write_bert_folder

ROOT = Path(__file__).parents[2]
OTHERS = ("README.md", "tf_model.h5", "onnx/model.onnx", "1_Pooling/config.json", "model.fp16.safetensors")


@pytest.fixture
def files(tmp_path) -> dict[str, bytes]:
    """Of an encoder on the hub, with much that is not needed."""
    folder = write_bert_folder(tmp_path / "tiny", bert_state(len(tiny_vocab())))
    return {path.name: path.read_bytes() for path in folder.iterdir()} | dict.fromkeys(OTHERS, b"not needed")


@pytest.fixture
def pytorch_files(tmp_path) -> dict[str, bytes]:
    folder = write_bert_folder(tmp_path / "bin", bert_state(len(tiny_vocab())), safetensors=False)
    return {path.name: path.read_bytes() for path in folder.iterdir()} | dict.fromkeys(OTHERS, b"not needed")


def content(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def test_a_folder_is_taken_as_it_is(tmp_path, monkeypatch, hub_server):
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for folder in (str(tmp_path), "org/name", "org", ".", "./org/name"):
        assert local_folder(folder) == folder
    assert not hub_server.requests


@pytest.mark.parametrize("name", ["./none", "../none", "/none", "~/none", "~none", "a/b/c", "a/b/c@main"])
def test_a_path_that_is_not_there_is_not_looked_up(tmp_path, monkeypatch, hub_server, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=rf"^there is no folder {name}: give an existing one, or a name on .*$"):
        local_folder(name)
    assert not hub_server.requests and not may_be_name(name)


def test_a_file_is_no_folder(tmp_path, monkeypatch, hub_server):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(FileNotFoundError, match="^file is a file: give its folder$"):
        local_folder("file")
    assert not hub_server.requests


def test_only_what_is_needed_is_fetched_and_only_once(hub_server, files, caplog):
    caplog.set_level(logging.INFO)
    commit = hub_server.add("org/tiny", files | {"pytorch_model.bin": b"the same weights", "tokenizer.json": b"{}"})
    folder = local_folder("org/tiny")
    needed = {"config.json", "vocab.txt", "model.safetensors", "tokenizer.json"}
    assert set(content(folder)) == needed and commit in caplog.text
    large = f"/lfs/{hashlib.sha256(files['model.safetensors']).hexdigest()}"
    assert sorted(hub_server.fetched()) == [large, "config.json", "tokenizer.json", "vocab.txt"]
    assert content(folder)["model.safetensors"] == files["model.safetensors"]
    assert local_folder("org/tiny") == folder and not hub_server.fetched()
    sizes = dict(hidden_size=32, layers=2, heads=4, ffn_size=64, max_positions=64)
    check_weights(folder, read_sizes(folder), len(tiny_vocab()))
    load_pretrained(Encoder(EncoderConfig(len(tiny_vocab()), **sizes)), folder)


def test_pytorchs_file_where_there_are_no_safetensors(hub_server, pytorch_files):
    hub_server.add("org/tiny", pytorch_files)
    assert set(content(local_folder("org/tiny"))) == {"config.json", "vocab.txt", "pytorch_model.bin"}


def test_weights_in_several_files(hub_server):
    shards = {f"model-0000{i}-of-00002.safetensors": b"" for i in (1, 2)}
    index = "model.safetensors.index.json"
    hub_server.add("org/tiny", {"config.json": b"{}", index: b"{}", "pytorch_model.bin": b"", **shards})
    assert set(content(local_folder("org/tiny"))) == {"config.json", index, *shards}


def test_a_branch_a_tag_and_a_commit(hub_server, files):
    first = hub_server.add("org/tiny", files)
    hub_server.repositories["org/tiny"].refs["v1"] = first
    second = hub_server.add("org/tiny", {"vocab.txt": b"new"})
    hub_server.add("org/tiny", files | {"vocab.txt": b"proposed"}, "refs/pr/1")
    expected = {"": b"new", "@main": b"new", f"@{second}": b"new", "@refs/pr/1": b"proposed"}
    for revision, vocabulary in {**expected, "@v1": files["vocab.txt"], f"@{first}": files["vocab.txt"]}.items():
        assert content(local_folder("org/tiny" + revision))["vocab.txt"] == vocabulary


def test_names_without_an_owner(hub_server, files):
    hub_server.add("org/tiny", files)
    hub_server.moved["tiny"] = "org/tiny"
    assert content(local_folder("tiny"))["model.safetensors"] == files["model.safetensors"]


def test_files_that_are_asked_for(hub_server, files):
    hub_server.add("org/tiny", files)
    assert set(content(local_folder("org/tiny", ["config.json", "dict.txt"]))) == {"config.json"}
    with pytest.raises(FileNotFoundError, match=r"^org/tiny on http\S+ has no dict\.txt and no SHA256SUMS: .*$"):
        local_folder("org/tiny", ["dict.txt", "SHA256SUMS"])


def test_without_a_network_the_cache_serves(monkeypatch, hub_server, files):
    hub_server.add("org/tiny", files)
    folder = local_folder("org/tiny")
    with fresh_library(monkeypatch, HF_HUB_OFFLINE="1"):
        hub_server.requests.clear()
        assert local_folder("org/tiny") == folder and not hub_server.requests
        with pytest.raises(
            FileNotFoundError, match=r"^there is no folder org/other, and it .* HF_HUB_OFFLINE is set.*$"
        ):
            local_folder("org/other")
    hub_server.down = True
    assert local_folder("org/tiny") == folder
    with pytest.raises(FileNotFoundError, match=r"^there is no folder org/other, and it cannot be fetched .*503.*$"):
        local_folder("org/other")
    with fresh_library(monkeypatch, HF_ENDPOINT="http://127.0.0.1:9"):
        assert local_folder("org/tiny") == folder
        with pytest.raises(FileNotFoundError, match=r"^there is no folder org/other, .*127.0.0.1:9: .*refused.*$"):
            local_folder("org/other")


def test_what_was_half_fetched_is_not_taken(monkeypatch, hub_server, files):
    hub_server.add("org/tiny", files)
    local_folder("org/tiny", ["config.json"])
    with (
        fresh_library(monkeypatch, HF_HUB_OFFLINE="1"),
        pytest.raises(
            FileNotFoundError,
            match=r"^(org/tiny on \S+ has no model\.safetensors|there is no folder .* not in the cache$)",
        ),
    ):
        local_folder("org/tiny")


@pytest.mark.parametrize("about", [{"gated": True}, {"private": True}])
def test_tokens(monkeypatch, hub_server, files, about):
    hub_server.add("org/tiny", files, **about)
    with pytest.raises(FileNotFoundError) as raised:
        local_folder("org/tiny")
    gated = f"org/tiny is gated: accept its terms on {hub_server.url}/org/tiny, and give a token of that account (HF_T"
    private = f"there is no folder org/tiny, and no such model on {hub_server.url}: check the name; a private one needs"
    assert str(raised.value).startswith(gated if "gated" in about else private) and "\n" not in str(raised.value)
    with (
        fresh_library(monkeypatch, HF_TOKEN="hf_wrong"),
        pytest.raises(FileNotFoundError, match=r"^.* it cannot be fetched .* token .* Invalid credentials.*$"),
    ):
        local_folder("org/tiny")
    with fresh_library(monkeypatch, HF_TOKEN=hub_server.token):
        assert content(local_folder("org/tiny"))["vocab.txt"] == files["vocab.txt"]


@pytest.mark.parametrize(
    "name, kind, message",
    [
        ("org/none", FileNotFoundError, r"there is no folder org/none, and no such model on http\S+: check the"),
        ("none", FileNotFoundError, r"there is no folder none, and no such model on http\S+: check the name"),
        ("org/tiny@none", FileNotFoundError, r"org/tiny@none: org/tiny on http\S+ has no such revision: give a branch"),
        (
            "org/empty",
            FileNotFoundError,
            r"org/empty on http\S+ has no model\.safetensors and no .*: give another name",
        ),
        ("a name", ValueError, "'a name' is no folder and no name on the Hugging Face hub: org/name or org/name@"),
        ("", ValueError, "'' is no folder and no name"),
    ],
)
def test_names_that_cannot_be_had_are_told_in_a_line(hub_server, files, name, kind, message):
    hub_server.add("org/tiny", files)
    hub_server.add("org/empty", {"config.json": b"{}", "README.md": b""})
    with pytest.raises(kind, match=rf"^{message}.*$") as raised:
        local_folder(name)
    assert "\n" not in str(raised.value)


# -- pushing ------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path) -> str:
    folder = tmp_path / "released"
    folder.mkdir()
    for name in ("config.json", "README.md", "model.safetensors", "notes.txt"):
        (folder / name).write_text(f"---\n{name}\n")
    return str(folder)


def test_files_of_a_folder_are_pushed(monkeypatch, hub_server, folder):
    names = ["config.json", "README.md", "model.safetensors"]
    with fresh_library(monkeypatch, HF_TOKEN=hub_server.token):
        assert push_folder(folder, "org/new", names, private=True) == f"{hub_server.url}/org/new"
        repository = hub_server.repositories["org/new"]
        assert repository.private and len(repository.commits) == 2  # of which the first made it
        (Path(folder) / "config.json").write_text("{}")
        push_folder(folder, "org/new", names)
        assert repository.private and len(repository.commits) == 3
        fetched = content(local_folder("org/new", ["*"]))
        repository.private = False
        with pytest.raises(
            FileExistsError, match=r"^org/new is there and not private: make it so on http.*/org/new, or"
        ):
            push_folder(folder, "org/new", ["notes.txt"], private=True)
        assert len(repository.commits) == 3
    assert fetched == {".gitattributes": b""} | {name: (Path(folder) / name).read_bytes() for name in names}


@pytest.mark.parametrize(
    "token, name, message",
    [
        ("", "org/new", r"released cannot be pushed to http\S+: .* token \(HF_TOKEN, .*Invalid username"),
        ("hf_right", "others/new", r"released cannot be pushed .*403 Forbidden: You don't have the rights"),
        ("hf_right", "a name", "'a name' is no folder and no name on the Hugging Face hub"),
    ],
)
def test_what_cannot_be_pushed_is_told_in_a_line(monkeypatch, hub_server, folder, token, name, message):
    settings = {"HF_TOKEN": token} if token else {}
    with (
        fresh_library(monkeypatch, **settings),
        pytest.raises((OSError, ValueError), match=f"^.*{message}.*$") as raised,
    ):
        push_folder(folder, name, ["config.json"])
    assert "\n" not in str(raised.value)


# -- without the package, and without torch ------------------------------------------------------------------------

SCRIPT = """
import sys, json
if sys.argv[1] == "without":
    sys.modules["huggingface_hub"] = None
from mist_fairseq.pretrained.hub import local_folder, push_folder
messages = []
for call in (lambda: local_folder("org/tiny"), lambda: push_folder(".", "org/new", ["config.json"])):
    try:
        messages.append(call())
    except (ImportError, OSError) as error:
        messages.append(str(error))
print(json.dumps([messages, [name for name in ("torch", "fairseq", "transformers") if name in sys.modules]]))
"""


@pytest.mark.parametrize("installed", ["with", "without"])
def test_in_a_process_of_its_own(hub_server, files, installed, tmp_path):
    hub_server.add("org/tiny", files)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_TOKEN": hub_server.token}
    command = [sys.executable, "-c", SCRIPT, installed]
    (tmp_path / "config.json").write_text("{}")
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (folder, address), loaded = json.loads(done.stdout)
    assert not loaded
    if installed == "with":
        assert content(folder)["vocab.txt"] == files["vocab.txt"] and address == f"{hub_server.url}/org/new"
        assert "Fetching 3 files: 100%" in done.stderr
    else:
        line = "on the Hugging Face hub: pip install 'mist-fairseq[hub]'"
        assert folder == f"there is no folder org/tiny; to look for it {line}"
        assert address == line.replace("on", "to push to", 1)
