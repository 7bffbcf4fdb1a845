"""A released model: a folder that stands alone.

``config.json`` holds the architecture with its sizes and the position limits, ``model.safetensors`` the weights in fp32
under our names, ``dict.txt`` the tokenizer, ``README.md`` the model card, and ``SHA256SUMS`` what the files are checked
by. ``MistGenerator.from_pretrained`` generates with it and ``--pretrained`` trains on from it.
"""

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from mist_fairseq.files import exported
from mist_fairseq.files.exported import CONFIG, text, write_folder
from mist_fairseq.files.reading import read_json
from mist_fairseq.mist.config import (
    ENCODER_DECODER_OPTION_NAMES,
    OPTION_NAMES,
    EncoderConfig,
    EncoderDecoderConfig,
    PositionLimits,
)
from mist_fairseq.mist.encoder import Encoder
from mist_fairseq.mist.encoder_decoder import EncoderDecoder
from mist_fairseq.text.files import load_tokenizer
from mist_fairseq.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

FORMAT, VERSION = "mist_fairseq", 1
WEIGHTS, DICTIONARY, CARD = "model.safetensors", "dict.txt", "README.md"

# What a model is trained with, rather than what it is.
_NOT_SIZES = {"dropout", "attention_dropout", "activation_dropout"}
_MAY_BE_ZERO = {"rel_pos_bins", "source_type_id", "target_type_id"}
_LIMITS = ("max_source_positions", "max_target_positions")


@dataclass
class Released:
    """A trained model with what it needs to read and write text.

    Attributes:
        encoder: the weights, an ``Encoder`` or an ``EncoderDecoder``.
        tokenizer: of source and target.
        limits: the most tokens of a source and of a target.
    """

    encoder: Any
    tokenizer: Tokenizer
    limits: PositionLimits

    @property
    def architecture(self) -> str:
        """What ``config.json`` calls this kind of model."""
        return next(name for name, kind in _ARCHITECTURES.items() if kind.model is type(self.encoder))

    def state(self) -> dict[str, Tensor]:
        """All that is saved of it, under the names that fairseq's checkpoints have, too."""
        state = {f"encoder.{name}": value for name, value in self.encoder.state_dict().items()}
        state["trained_limits"] = torch.tensor([self.limits.source, self.limits.target])
        state["fingerprint"] = torch.tensor(list(bytes.fromhex(self.tokenizer.fingerprint())))
        return state


@dataclass(frozen=True)
class _Architecture:
    """One kind of model: its class, that of its sizes, and what options call them."""

    model: Callable[[Any], nn.Module]
    config: Callable[..., Any]
    option_names: Mapping[str, str]

    @property
    def sizes(self) -> dict[str, str]:
        """Names of the sizes in ``config.json`` -> in the configuration."""
        return {option: name for option, name in self.option_names.items() if option not in _NOT_SIZES}


_ARCHITECTURES = {
    "mist": _Architecture(Encoder, EncoderConfig, OPTION_NAMES),
    "nat_mass": _Architecture(EncoderDecoder, EncoderDecoderConfig, ENCODER_DECODER_OPTION_NAMES),
}


def save_folder(released: Released, folder: str, card: str, overwrite: bool = False) -> list[str]:
    """Write a model, in fp32, as a folder.

    Args:
        released: the model.
        folder: to write to; made if it is not there.
        card: the text of its README.md.
        overwrite: replace files that are there.

    Returns:
        The names of the files.

    Raises:
        FileExistsError: the folder has such files already.
    """
    sizes = _ARCHITECTURES[released.architecture].sizes
    config = {"format": FORMAT, "version": VERSION, "architecture": released.architecture}
    config |= dict(zip(_LIMITS, (released.limits.source, released.limits.target)))
    config["model"] = {option: getattr(released.encoder.config, name) for option, name in sizes.items()}
    state = {name: value.contiguous() for name, value in released.state().items()}
    contents: dict[str, Callable[[Path], object]] = {
        WEIGHTS: lambda path: path.write_bytes(save(state, {"config": json.dumps(config, sort_keys=True)})),
        DICTIONARY: released.tokenizer.save,
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


def load_folder(folder: str) -> Released:
    """The model of a released folder, on the CPU and in evaluation mode.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged or does not fit the others; says which.
    """
    config = _read_config(folder)
    tokenizer = load_tokenizer(str(Path(folder) / DICTIONARY))
    architecture = _ARCHITECTURES[config["architecture"]]
    limits = PositionLimits(*(config[name] for name in _LIMITS))
    sizes = {name: config["model"][option] for option, name in architecture.sizes.items()}
    try:
        built = architecture.config(len(tokenizer.symbols), **sizes)
        built.check_limits(limits)
        state = _read_weights(folder, config, tokenizer, lambda: architecture.model(built))
    except ValueError as error:
        if str(error).startswith(str(folder)):
            raise
        raise ValueError(f"{Path(folder) / CONFIG}: {error}") from error
    encoder = architecture.model(built)
    encoder.load_state_dict(state)
    return Released(encoder.eval(), tokenizer, limits)


def _read_config(folder: str) -> dict[str, Any]:
    """The ``config.json`` of a released model; errors as of ``load_folder``."""
    otherwise = "An ONNX folder is read by OnnxGenerator; a pre-trained encoder must be trained first"
    config = exported.read_config(folder, FORMAT, VERSION, [WEIGHTS, DICTIONARY], otherwise)
    path = Path(folder) / CONFIG
    architecture, sizes = config.get("architecture"), config.get("model")
    if architecture not in _ARCHITECTURES:
        raise ValueError(f"{path}: architecture is {architecture!r}, expected {' or '.join(_ARCHITECTURES)}")
    names = _ARCHITECTURES[architecture].sizes
    if not isinstance(sizes, dict) or sizes.keys() != names.keys():
        raise ValueError(f"{path}: model is {sizes!r:.60}, expected the values of {', '.join(names)}")
    for name, value in {**{key: config.get(key) for key in _LIMITS}, **sizes}.items():
        if name == "untie_head":
            valid, kind = isinstance(value, bool), "true or false"
        else:
            least = 0 if name in _MAY_BE_ZERO else 3 if name in _LIMITS else 1
            valid, kind = type(value) is int and least <= value < 2**31, f"a whole number of at least {least}"
        if not valid:
            raise ValueError(f"{path}: {name} is {value!r:.60}, expected {kind}")
    return config


def _read_weights(
    folder: str, config: dict[str, Any], tokenizer: Tokenizer, build: Callable[[], nn.Module]
) -> dict[str, Tensor]:
    """The encoder's weights, once their shapes are those of the model that *build* makes on the meta device."""
    path = Path(folder) / WEIGHTS
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            if max(size for option, size in config["model"].items() if option.endswith("_layers")) > len(shapes):
                raise ValueError(f"{path} has {len(shapes)} tensors, fewer than {CONFIG} says layers")
            with torch.device("meta"):
                own = Released(build(), tokenizer, PositionLimits(0, 0)).state()
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
    if bytes(state["fingerprint"].tolist()).hex() != tokenizer.fingerprint():
        raise ValueError(f"{path} was trained with another vocabulary than that of {DICTIONARY} beside it")
    return {name.removeprefix("encoder."): value for name, value in state.items() if name.startswith("encoder.")}


# -- as --pretrained ------------------------------------------------------------------------------------------


def released_sizes(folder: str, architecture: str, tokenizer: Tokenizer) -> dict[str, int | bool]:
    """What ``--pretrained`` sets of a model's configuration where it names a released model.

    Args:
        folder: the released model.
        architecture: of the model that is to be trained, ``mist`` or ``nat_mass``.
        tokenizer: of the data.

    Raises:
        ValueError: the model is of another architecture, or the data was binarized with another vocabulary.
    """
    config = _read_config(folder)
    if config["architecture"] != architecture:
        raise ValueError(f"--pretrained {folder} holds a {config['architecture']} model, --arch is another kind")
    path = Path(folder) / DICTIONARY
    if load_tokenizer(str(path)).fingerprint() != tokenizer.fingerprint():
        raise ValueError(
            f"the data was binarized with another vocabulary ({len(tokenizer.symbols)} entries) than {path}: "
            f"run fairseq-preprocess with --joined-dictionary --srcdict {path}"
        )
    sizes: dict[str, int | bool] = config["model"]
    return sizes


def load_released(encoder: nn.Module, folder: str) -> None:
    """Load the weights of ``--pretrained`` into a model of its sizes, its length classifier and head, too."""
    encoder.load_state_dict(load_folder(folder).encoder.state_dict())
    logger.info("loaded all weights of %s, the length classifier's, too", folder)
