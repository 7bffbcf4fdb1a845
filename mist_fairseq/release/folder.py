"""A released model: a folder that stands alone.

``config.json`` holds the architecture with its sizes and the position limits, ``model.safetensors`` the weights in fp32
under our names, ``dict.txt`` the tokenizer, ``README.md`` the model card, and ``SHA256SUMS`` what the files are checked
by. ``MistGenerator.from_pretrained`` generates with it and ``--pretrained`` trains on from it.
"""

import dataclasses
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from fairseq.models import MODEL_DATACLASS_REGISTRY, MODEL_REGISTRY
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from mist_fairseq.data.dictionary import TokenizerDictionary, load_dictionary
from mist_fairseq.files import folders as files
from mist_fairseq.files.folders import CONFIG, text, write_folder
from mist_fairseq.files.reading import read_json
from mist_fairseq.files.sizes import check_size

if TYPE_CHECKING:  # which imports this module
    from mist_fairseq.models.mist import MistModel

logger = logging.getLogger(__name__)

FORMAT, VERSION = "mist_fairseq", 1
WEIGHTS, DICTIONARY, CARD = "model.safetensors", "dict.txt", "README.md"

# What a model is trained or run with, rather than what it is.
_NOT_SIZES = {"_name", "pretrained", "precision", "dropout", "attention_dropout", "activation_dropout"}
_MAY_BE_ZERO = {"rel_pos_bins", "source_type_id", "target_type_id", "untie_head"}
_LIMITS = {"max_source_positions", "max_target_positions"}


def save_folder(model: "MistModel", cfg, folder: str, card: str, overwrite: bool = False) -> list[str]:
    """Write a model as a folder.

    Args:
        model: ``MistModel`` or ``NatMassModel``, in fp32.
        cfg: its configuration.
        folder: to write to; made if it is not there.
        card: the text of its README.md.
        overwrite: replace files that are there.

    Returns:
        The names of the files.

    Raises:
        FileExistsError: the folder has such files already.
    """
    (architecture,) = [name for name, kind in MODEL_REGISTRY.items() if kind is type(model)]
    sizes = {name: getattr(cfg, name) for name in _size_names(architecture)}
    limits = {"max_source_positions": model.limits.source, "max_target_positions": model.limits.target}
    config = {"format": FORMAT, "version": VERSION, "architecture": architecture, **limits, "model": sizes}
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    contents: dict[str, Callable[[Path], object]] = {
        WEIGHTS: lambda path: path.write_bytes(save(state, {"config": json.dumps(config, sort_keys=True)})),
        DICTIONARY: model.dictionary.save,
        CARD: text(card),
    }
    return write_folder(folder, config, contents, overwrite)


def is_released(folder: str) -> bool:
    """Whether a folder's config.json says that it is one of ours."""
    try:
        config = read_json(Path(folder) / CONFIG)
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("format") == FORMAT


def read_config(folder: str) -> dict:
    """The ``config.json`` of a released model.

    Raises:
        FileNotFoundError: the folder or one of its files is missing.
        ValueError: it is no released model, or another version's; says what was found.
    """
    otherwise = "An ONNX folder is read by OnnxGenerator; a pre-trained encoder must be trained first"
    config = files.read_config(folder, FORMAT, VERSION, [WEIGHTS, DICTIONARY], otherwise)
    path = Path(folder) / CONFIG
    architecture, sizes = config.get("architecture"), config.get("model")
    if architecture not in ("mist", "nat_mass"):
        raise ValueError(f"{path}: architecture is {architecture!r}, expected mist or nat_mass")
    names = _size_names(architecture)
    if not isinstance(sizes, dict) or sizes.keys() != set(names):
        raise ValueError(f"{path}: model is {sizes!r}, expected the values of {', '.join(names)}")
    options = dataclasses.fields(MODEL_DATACLASS_REGISTRY[architecture])
    defaults: dict[str, Any] = {one.name: one.default for one in options}
    for name, value in {**{key: config.get(key) for key in _LIMITS}, **sizes}.items():
        least = 0 if name in _MAY_BE_ZERO else 3 if name in _LIMITS else 1
        if type(value) is not type(defaults.get(name, 0)) or not least <= value < 2**31:
            kind = "true or false" if name == "untie_head" else f"a whole number of at least {least}"
            raise ValueError(f"{path}: {name} is {value!r:.60}, expected {kind}")
    check_size(sizes, (Path(folder) / WEIGHTS).stat().st_size // 4, str(path))
    return config


def _size_names(architecture: str) -> list[str]:
    return [
        one.name for one in dataclasses.fields(MODEL_DATACLASS_REGISTRY[architecture]) if one.name not in _NOT_SIZES
    ]


def load_folder(folder: str) -> "MistModel":
    """The model of a released folder, on the CPU and in evaluation mode.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged or does not fit the others; says which.
    """
    from mist_fairseq.models.mist import PositionLimits

    config = read_config(folder)
    dictionary = load_dictionary(str(Path(folder) / DICTIONARY))
    architecture = config["architecture"]
    cfg = MODEL_DATACLASS_REGISTRY[architecture](**config["model"], precision="fp32")
    limits = PositionLimits(config["max_source_positions"], config["max_target_positions"])
    try:
        model = MODEL_REGISTRY[architecture](cfg, dictionary, limits)
        model.check_limits()
    except ValueError as error:
        raise ValueError(f"{Path(folder) / CONFIG}: {error}") from error
    model.load_state_dict(_read_weights(model, folder, config))
    return model.eval()


def _read_weights(model: nn.Module, folder: str, config: dict) -> dict[str, Tensor]:
    """The ``model.safetensors`` for a model of its sizes and vocabulary, written with this *config*."""
    path = Path(folder) / WEIGHTS
    own = model.state_dict()
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            for name in sorted(own.keys() | shapes.keys()):
                needed = tuple(own[name].shape) if name in own else None
                if shapes.get(name) != needed:
                    raise ValueError(f"{path}: {name} has shape {shapes.get(name)}, {CONFIG} asks for {needed}")
            if (file.metadata() or {}).get("config") != json.dumps(config, sort_keys=True):
                raise ValueError(f"{Path(folder) / CONFIG} was changed since the export: export the model again")
            state = {name: file.get_tensor(name) for name in shapes}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    for name, tensor in state.items():
        if tensor.dtype != own[name].dtype:
            raise ValueError(f"{path}: {name} is of {tensor.dtype}, expected {own[name].dtype}")
    if not torch.equal(state["fingerprint"], own["fingerprint"]):
        raise ValueError(f"{path} was trained with another vocabulary than that of {DICTIONARY} beside it")
    return state


# -- as --pretrained ------------------------------------------------------------------------------------------


def released_sizes(folder: str, kind: type, dictionary: TokenizerDictionary) -> dict[str, int | bool]:
    """What ``--pretrained`` sets of a model's configuration where it names a released model.

    Args:
        folder: the released model.
        kind: class of the model that is to be trained.
        dictionary: of the data.

    Raises:
        ValueError: the model is of another architecture, or the data was binarized with another vocabulary.
    """
    config = read_config(folder)
    if MODEL_REGISTRY[config["architecture"]] is not kind:
        raise ValueError(f"--pretrained {folder} holds a {config['architecture']} model, --arch is another kind")
    path = Path(folder) / DICTIONARY
    if load_dictionary(str(path)) != dictionary:
        raise ValueError(
            f"the data was binarized with another vocabulary ({len(dictionary)} entries) than {path}: "
            f"run fairseq-preprocess with --joined-dictionary --srcdict {path}"
        )
    return config["model"]


def load_released(model: "MistModel", folder: str):
    """Load the encoder of ``--pretrained``, its length classifier and head, too."""
    state = _read_weights(model, folder, read_config(folder))
    model.encoder.load_state_dict(
        {name.removeprefix("encoder."): value for name, value in state.items() if name.startswith("encoder.")}
    )
    logger.info("loaded all weights of %s, the length classifier's, too", folder)
