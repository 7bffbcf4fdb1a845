"""A released model: a folder that stands alone.

``config.json`` holds the architecture with its sizes and the position limits, ``model.safetensors`` the weights in fp32
under our names, ``dict.txt`` the tokenizer, ``README.md`` the model card, and ``SHA256SUMS`` what the files are checked
by. ``MistGenerator.from_pretrained`` generates with it and ``--pretrained`` trains on from it.
"""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from mist_fairseq.files.exported import CONFIG, SUMS, read_config, write_folder
from mist_fairseq.files.reading import read_json
from mist_fairseq.files.torch_files import check_shapes
from mist_fairseq.mist.config import (
    ENCODER_DECODER_OPTION_NAMES,
    OPTION_NAMES,
    EncoderConfig,
    EncoderDecoderConfig,
    PositionLimits,
)
from mist_fairseq.mist.encoder import Encoder
from mist_fairseq.mist.encoder_decoder import EncoderDecoder
from mist_fairseq.pretrained.weights import check_vocabulary, read_weights
from mist_fairseq.text.tokenizer import Tokenizer
from mist_fairseq.text.tokenizer_files import load_tokenizer

logger = logging.getLogger(__name__)

FORMAT, VERSION = "mist_fairseq", 1
WEIGHTS, DICTIONARY, CARD = "model.safetensors", "dict.txt", "README.md"
FILES = (CONFIG, WEIGHTS, DICTIONARY, SUMS)  # what is read

# The architecture in config.json -> class of the model, class of its sizes, and what options call these.
_ARCHITECTURES: dict[str, tuple[Any, Any, dict[str, str]]] = {
    "mist": (Encoder, EncoderConfig, OPTION_NAMES),
    "nat_mass": (EncoderDecoder, EncoderDecoderConfig, ENCODER_DECODER_OPTION_NAMES),
}
_LIMITS = ("max_source_positions", "max_target_positions")


@dataclass
class Released:
    """A trained model with what it needs to read and write text."""

    encoder: Any  # the weights, an Encoder or an EncoderDecoder
    tokenizer: Tokenizer  # of source and target
    limits: PositionLimits  # the most tokens of a source and of a target

    @property
    def architecture(self) -> str:
        """What ``config.json`` calls this kind of model."""
        return next(name for name, (model, *_) in _ARCHITECTURES.items() if model is type(self.encoder))

    def sizes(self) -> dict[str, int | bool]:
        """The model's sizes by the names of options, without dropout, which is of the training."""
        names = _size_names(self.architecture)
        return {option: getattr(self.encoder.config, name) for option, name in names.items()}

    def state(self) -> dict[str, Tensor]:
        """All that is saved of it, under the names that fairseq's checkpoints have, too."""
        state = {f"encoder.{name}": value for name, value in self.encoder.state_dict().items()}
        state["trained_limits"] = torch.tensor([self.limits.source, self.limits.target])
        state["fingerprint"] = torch.tensor(list(bytes.fromhex(self.tokenizer.fingerprint())))
        return state


def _size_names(architecture: str) -> dict[str, str]:
    names = _ARCHITECTURES[architecture][2]
    return {option: name for option, name in names.items() if "dropout" not in option}


def save_folder(released: Released, folder: str, card: str, overwrite: bool = False) -> list[str]:
    """Write a model, in fp32, as a folder with *card* as its README.md; returns and errors as of ``write_folder``."""
    config = {"format": FORMAT, "version": VERSION, "architecture": released.architecture}
    config |= zip(_LIMITS, (released.limits.source, released.limits.target))
    config["model"] = released.sizes()
    whole = {name: value.float() if value.is_floating_point() else value for name, value in released.state().items()}
    state = {name: value.contiguous() for name, value in whole.items()}
    contents = {
        WEIGHTS: [save(state, {"config": json.dumps(config, sort_keys=True)})],
        DICTIONARY: [released.tokenizer.saved()],
        CARD: [card.encode("utf-8")],
    }
    return write_folder(folder, config, contents, overwrite)


def is_released(folder: str) -> bool:
    """Whether a folder's config.json says that it is one of ours."""
    try:
        return read_json(Path(folder) / CONFIG).get("format") == FORMAT
    except (OSError, ValueError):
        return False


def load_folder(folder: str) -> Released:
    """The model of a released folder, on the CPU, for evaluation; errors name the file that is missing or damaged."""
    otherwise = "An ONNX folder is read by OnnxGenerator; a pre-trained encoder must be trained first"
    config = read_config(folder, FORMAT, VERSION, [WEIGHTS, DICTIONARY], otherwise)
    path, weights = Path(folder) / CONFIG, Path(folder) / WEIGHTS
    tokenizer, state = load_tokenizer(Path(folder) / DICTIONARY), read_weights(weights)
    with safe_open(weights, "pt") as file:
        if (file.metadata() or {}).get("config") != json.dumps(config, sort_keys=True):
            raise ValueError(f"{path} was changed since the export: export the model again")
    try:
        model, sizes, _ = _ARCHITECTURES[config["architecture"]]
        limits = PositionLimits(*(config[name] for name in _LIMITS))
        names = _size_names(config["architecture"])
        given = config["model"]  # without the options that came later, which then have their defaults
        named = {name: given[option] for option, name in names.items() if option in given}
        built = sizes(len(tokenizer.symbols), **named)
        built.check_limits(limits)
        layers = sum(size for option, size in config["model"].items() if option.endswith("_layers"))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} makes no model of {' or '.join(_ARCHITECTURES)}: {error!r}") from error
    fingerprint, _ = state.pop("fingerprint", torch.empty(0)), state.pop("trained_limits", None)
    state = {name.removeprefix("encoder."): value for name, value in state.items()}
    check_shapes(lambda: model(built), layers, state, str(weights))
    if fingerprint.tolist() != list(bytes.fromhex(tokenizer.fingerprint())):
        raise ValueError(f"{weights} was trained with another vocabulary than that of {DICTIONARY} beside it")
    encoder = model(built)
    encoder.load_state_dict(state)
    return Released(encoder.eval(), tokenizer, limits)


def released_sizes(folder: str, architecture: str, tokenizer: Tokenizer) -> dict[str, int | bool]:
    """What ``--pretrained`` sets of a configuration where it names a released model; ValueError: it is another kind.

    A model without a copy head may get one, and one of a fixed length paths.
    """
    released = load_folder(folder)
    if released.architecture != architecture:
        raise ValueError(f"--pretrained {folder} holds a {released.architecture} model, --arch is another kind")
    check_vocabulary(folder, tokenizer, [DICTIONARY])
    sizes = released.sizes()
    left = set() if sizes.get("copy_head") else {"copy_head"}
    left |= {"head", "upsample", "least_vertices"} if sizes.get("head") == "length" else set()
    return {option: size for option, size in sizes.items() if option not in left}


def load_released(encoder: nn.Module, folder: str) -> None:
    """Load the weights of ``--pretrained`` into a model of its sizes, its length classifier and head, too."""
    state = load_folder(folder).encoder.state_dict()
    own = encoder.state_dict()
    encoder.load_state_dict(own | state)
    random = ", ".join(sorted(own.keys() - state.keys()))  # of a new head
    logger.info("loaded all weights of %s, the length classifier's, too; at random: %s", folder, random or "none")
