import json
import shutil
import subprocess

import pytest

from mist_fairseq.models.download import get_pretrained
from tests.helpers import bert_state, tiny_vocab, write_bert_folder


def test_a_downloaded_folder_is_checked(minilm, tmp_path):
    message = get_pretrained("minilm-l6", minilm)
    assert "6 layers of 384, 30,522 vocabulary entries" in message
    copy = tmp_path / "copy"
    shutil.copytree(minilm, copy)
    (copy / "vocab.txt").write_text("tampered\n")
    with pytest.raises(ValueError, match=r"vocab\.txt has SHA-256"):
        get_pretrained("minilm-l6", str(copy))


@pytest.mark.parametrize("name", ["bert-base", "minilm-l12", "unilm-base"])
def test_what_must_be_fetched_by_hand_is_said(name, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no config\.json\. Put config\.json, vocab\.txt and model"):
        get_pretrained(name, str(tmp_path))


def test_a_filled_folder_is_checked(tmp_path):
    folder = write_bert_folder(tmp_path / "a", bert_state(len(tiny_vocab())))
    with pytest.raises(ValueError, match="2 layers of 32, expected 12 of 768"):
        get_pretrained("bert-base", str(folder))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 12, "hidden_size": 768}))
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(b"short")
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        get_pretrained("bert-base", str(folder))
    assert not (folder / "SHA256SUMS").exists()
    (folder / "model.safetensors").write_bytes(whole)
    for _ in range(2):
        assert "weights in model.safetensors" in get_pretrained("bert-base", str(folder))
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=folder, check=True)
    (folder / "model.safetensors").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        get_pretrained("bert-base", str(folder))
