"""``mist info``: what a model is, without running it.

mist info released-onnx
mist info org/name --json
mist info checkpoints/checkpoint_best.pt
"""

import argparse
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

from mist_fairseq.files.exported import CONFIG, SUMS, count_parameters, digest, read_sums
from mist_fairseq.files.reading import read_json
from mist_fairseq.hub.loading import fetch_model
from mist_fairseq.release import onnx_folder
from mist_fairseq.text.tokenizer_files import find_vocabulary, load_tokenizer

_LIMITS = {"source": "max_source_positions", "target": "max_target_positions"}


def main(arguments: list[str] | None = None) -> None:
    """Tell what the command line names is."""
    parser = argparse.ArgumentParser(
        prog="mist info", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="folder of a model or pre-trained encoder, its name on the hub, or a checkpoint")
    parser.add_argument("--json", action="store_true", help="as JSON")
    args = parser.parse_args(arguments)
    try:
        about = describe(args.model)
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(json.dumps(about, indent=2) if args.json else "\n".join(_lines(about)))


def describe(name: str) -> dict[str, Any]:
    """What a model is, as JSON has it. Names on the hub are fetched.

    Raises:
        FileNotFoundError: there is none, or it lacks a file.
        ValueError: a file is damaged or of no model that is known here.
    """
    if os.path.isfile(name):
        return {"name": name} | _of_checkpoint(Path(name))
    folder = Path(fetch_model(name))
    config = read_json(folder / CONFIG)
    if config.get("format") == onnx_folder.FORMAT:
        about = _of_onnx(folder, config)
    elif "format" in config:
        about = _of_released(folder, config)
    else:
        about = _of_encoder(folder)
    files = {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.is_file()}
    hashes = {name: value for name, value in read_sums(folder).items() if name.endswith((".bin", ".safetensors"))}
    return {"name": name} | about | {"files": files, "checksums": _checksums(folder), "hashes of weights": hashes}


def _of_onnx(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    there = [name for name, files in onnx_folder.FILES.items() if all((folder / file).is_file() for file in files)]
    if not there:
        raise FileNotFoundError(f"{folder} has no model.onnx: export the model again with mist export --to onnx")
    return {
        "kind": "ONNX model",
        "family": "mist",
        "parameters": count_parameters(folder / onnx_folder.FILES[there[0]][1], config),
        "vocabulary": config.get("vocabulary_size"),
        "limits": {side: config.get(option) for side, option in _LIMITS.items()},
        "precisions": there,
        "sizes": config.get("encoder"),
    }


def _of_released(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    return {
        "kind": "PyTorch model",
        "family": config.get("architecture"),
        "parameters": count_parameters(folder / "model.safetensors", config),
        "vocabulary": len(load_tokenizer(folder / "dict.txt").symbols),
        "limits": {side: config.get(option) for side, option in _LIMITS.items()},
        "precisions": ["fp32", "bf16", "int8"] if config.get("architecture") == "mist" else ["fp32", "bf16"],
        "sizes": config.get("model"),
    }


def _of_encoder(folder: Path) -> dict[str, Any]:
    from mist_fairseq.pretrained.weights import find_weights, read_sizes, read_weights

    sizes = read_sizes(str(folder))
    weights = read_weights(find_weights(str(folder)), shapes_only=True)
    return {
        "kind": "pre-trained encoder, to be trained with --pretrained",
        "family": read_json(folder / CONFIG).get("model_type", "bert"),
        "parameters": sum(math.prod(weight.shape) for weight in weights.values() if weight.is_floating_point()),
        "vocabulary": len(load_tokenizer(find_vocabulary(folder)).symbols),
        "sizes": sizes,
    }


def _of_checkpoint(path: Path) -> dict[str, Any]:
    from mist_fairseq.files.torch_files import load_torch_file

    state = load_torch_file(path, mmap=True)
    options = state.get("cfg") if isinstance(state, dict) else None
    if not isinstance(options, dict) or "model" not in state:
        raise ValueError(f"{path} is no checkpoint of fairseq-train")
    model, task = options["model"], options["task"]
    weights = [value for value in state["model"].values() if value.is_floating_point()]
    names = ("encoder", "position", "length", "head", "token_types", "embedding", "activation")
    return {
        "kind": "fairseq checkpoint, to be exported with mist export",
        "family": model.get("_name"),
        "task": task.get("_name"),
        "updates": (state.get("optimizer_history") or [{}])[-1].get("num_updates"),
        "parameters": sum(math.prod(value.shape) for value in weights),
        "limits": {side: task.get(option) for side, option in _LIMITS.items()},
        "sizes": {name: value for name, value in model.items() if any(part in name for part in names)},
        "files": {path.name: path.stat().st_size},
    }


def _checksums(folder: Path) -> str:
    """Whether the files are those that SHA256SUMS was written for."""
    if not (folder / SUMS).is_file():
        return f"no {SUMS}"
    sums = read_sums(folder)
    wrong = [name for name in sums if not (folder / name).is_file() or digest(folder / name) != sums[name]]
    return f"wrong or missing: {', '.join(wrong)}" if wrong else "right"


def _lines(about: dict[str, Any]) -> list[str]:
    """The description for people."""
    lines = []
    for name, value in about.items():
        if isinstance(value, dict):
            lines.append(f"{name}:")
            unit = " bytes" if name == "files" else ""
            lines += [f"  {key:24}{_shown(each)}{unit}" for key, each in value.items()]
        else:
            lines.append(f"{name + ':':14}{', '.join(value) if isinstance(value, list) else _shown(value)}")
    return lines


def _shown(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
