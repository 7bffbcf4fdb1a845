"""Folders of pre-trained encoders, as Hugging Face's ``save_pretrained`` writes them, read without executing code."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mist_fairseq.files.exported import check_sums
from mist_fairseq.files.reading import read_json
from mist_fairseq.files.torch_files import load_torch_file
from mist_fairseq.mist.config import OPTION_NAMES, EncoderConfig
from mist_fairseq.mist.encoder import Encoder
from mist_fairseq.pretrained.albert import ALBERT
from mist_fairseq.pretrained.bert import BERT, UNILM
from mist_fairseq.pretrained.distilbert import DISTILBERT
from mist_fairseq.pretrained.electra import ELECTRA
from mist_fairseq.pretrained.modernbert import MODERNBERT
from mist_fairseq.pretrained.mpnet import MPNET
from mist_fairseq.pretrained.names import Family, convert, their_names
from mist_fairseq.pretrained.roberta import ROBERTA
from mist_fairseq.text.tokenizer import Tokenizer
from mist_fairseq.text.tokenizer_files import BESIDE, VOCABULARIES, find_vocabulary, load_tokenizer

logger = logging.getLogger(__name__)

# The first that fits is taken.
FAMILIES = (UNILM, BERT, ROBERTA, DISTILBERT, ELECTRA, ALBERT, MPNET, MODERNBERT)

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_DEFAULTS = {field.name: field.default for field in fields(EncoderConfig)}
_INDEX = ".index.json"  # behind a name of these: of which files the weights are
_ADVICE = "config.json beside it is that of another model"


def find_file(folder: str, names: Sequence[str]) -> Path:
    """The first of the files that a folder has; FileNotFoundError if it has none."""
    for name in names:
        if (Path(folder) / name).is_file():
            return Path(folder) / name
    raise FileNotFoundError(f"--pretrained {folder}: there is no {' and no '.join(names)} in it")


def find_weights(folder: str) -> Path:
    """The weights of a folder, or the index of the files that they are in; FileNotFoundError if it has neither."""
    return find_file(folder, weights_there(folder) or WEIGHTS)


def weights_there(folder: str | Path) -> list[str]:
    """Names of the weights that a folder has, one file or the index of several, the first to be taken."""
    names = [name + end for name in WEIGHTS for end in ("", _INDEX)]
    return [name for name in names if (Path(folder) / name).is_file()]


def weight_files(path: Path) -> list[str]:
    """The names of all files of weights: that of *path*, and those that it names if it is an index.

    Raises:
        FileNotFoundError: one of them is missing.
        ValueError: it is no index.
    """
    if not path.name.endswith(_INDEX):
        return [path.name]
    weights = read_json(path).get("weight_map")
    names = sorted(set(map(str, weights.values()))) if isinstance(weights, dict) else []
    if not names or any(Path(name).name != name for name in names):
        raise ValueError(f"{path}: weight_map does not say in which files beside it the weights are")
    if lacks := [name for name in names if not (path.parent / name).is_file()]:
        raise FileNotFoundError(f"{path} names {', '.join(lacks)}, not there: fetch all files of the weights")
    return [path.name, *names]


def read_config(folder: str) -> tuple[Path, dict[str, Any]]:
    """Where a folder's ``config.json`` is, and what it holds; errors as of ``read_sizes``."""
    path = find_file(folder, ["config.json"])
    return path, read_json(path)


def _find_family(path: Path, config: Mapping[str, Any], weights: Iterable[str] | None = None) -> Family:
    """The family that a ``config.json`` is of, BERT's where it does not say; *weights*, their names, can tell more."""
    kind = config.get("model_type") or "bert"
    for family in FAMILIES:
        if kind in family.model_types and (weights is None or any(family.mark in name for name in weights)):
            return family
    known = sorted({name for family in FAMILIES for name in family.model_types})
    reason = ": its disentangled attention is not implemented" if str(kind).startswith("deberta") else ""
    raise ValueError(f"{path}: model_type is {kind!r:.60}{reason}, expected one of {', '.join(known)}")


def read_sizes(folder: str) -> dict[str, Any]:
    """The numbers that a pre-trained folder's ``config.json`` gives for our options; errors name what is missing."""
    path, config = read_config(folder)
    return options_of(config, _find_family(path, config), path)


def options_of(config: Mapping[str, Any], family: Family, path: Path) -> dict[str, Any]:
    """As ``read_sizes``, of the content *config* of *path*."""
    try:
        config = family.settle(config)
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    for name, supported in family.settings.items():
        if config.get(name, supported) != supported:
            raise ValueError(f"{path}: {name} is {config[name]!r:.60}, and only {supported!r} is supported")
    sizes: dict[str, Any] = dict(family.options)
    for theirs, ours in {**family.sizes, **family.optional}.items():
        value = config.get(theirs)
        # None where the family has a default of its own is something else than nothing.
        if value is None and theirs in family.optional and not (theirs in config and ours in family.options):
            continue
        default = _DEFAULTS[OPTION_NAMES[ours]]
        if isinstance(default, str):
            fits, expected = isinstance(value, str), "a name"
        elif isinstance(default, float):
            fits, expected = isinstance(value, int | float) and value > 0, "a number above 0"
        else:
            least = 1 if theirs in family.sizes else 0
            fits, expected = type(value) is int and least <= value < 2**31, f"a whole number of at least {least}"
        if not fits:
            raise ValueError(f"{path}: {theirs} is {value!r:.60}, expected {expected}")
        sizes[ours] = value
    sizes["max_positions"] -= _first_position(family, config)
    if not family.has_types or sizes["token_types"] == 1:
        sizes |= {"token_types": 2, "source_type_id": 0, "target_type_id": 1}
    if config.get("tie_word_embeddings") is False:
        sizes["untie_head"] = True
    return family.adjust(sizes)


def _first_position(family: Family, config: Mapping[str, Any]) -> int:
    """The row of the first token in the table of positions."""
    if family.first_position is not None:
        return family.first_position
    padding = config.get("pad_token_id", 1)
    if type(padding) is not int or padding < 0:
        raise ValueError(f"config.json: pad_token_id is {padding!r:.60}, expected a whole number of at least 0")
    return padding + 1


def find_settings(folder: str | Path) -> list[str]:
    """Names of what is read of a folder beside its weights, as far as it is there."""
    return [name for name in ("config.json", *VOCABULARIES, *BESIDE) if (Path(folder) / name).is_file()]


def check_vocabulary(folder: str, tokenizer: Tokenizer, names: Sequence[str] = ()) -> Path:
    """The vocabulary file of a folder, or the first of *names*; a ValueError refuses data of another *tokenizer*."""
    path = find_file(folder, names) if names else find_vocabulary(Path(folder))
    expected = load_tokenizer(str(path))
    if expected.fingerprint() != tokenizer.fingerprint():
        raise other_vocabulary(path, len(expected.symbols), len(tokenizer.symbols))
    return path


def other_vocabulary(path: Path, expected: int, given: int, advice: str = "") -> ValueError:
    """The error for data of *given* entries, where *path* has *expected*."""
    return ValueError(
        f"the data was binarized with another vocabulary ({given} entries) than {path} ({expected} entries): run "
        f"fairseq-preprocess with --joined-dictionary --srcdict {advice or path}"
    )


def check_weights(folder: str, sizes: Mapping[str, int], vocab_size: int):
    """Refuse files unlike ``SHA256SUMS``, if it is there, and weights unlike ``config.json``, before memory is taken.

    Errors are as of ``find_file``, ``check_sums`` and ``convert``.
    """
    path = find_weights(folder)
    check_sums(Path(folder), [*find_settings(folder), *weight_files(path)], "fetch it again")
    family, shapes = read_family(folder, read_weights(path, shapes_only=True), vocab_size)
    own = empty_encoder(folder, sizes, vocab_size, family, shapes).state_dict()
    convert(shapes, own, family.names, str(path), _ADVICE, _may_lack(own))


def empty_encoder(
    folder: str, sizes: Mapping[str, Any], vocab_size: int, family: Family, weights: Mapping[str, Tensor]
) -> Encoder:
    """An encoder on the meta device, for its shapes; ValueError if *sizes* are of more layers than *weights* are."""
    config, layers = Path(folder) / "config.json", sizes["encoder_layers"]
    (last,) = their_names(family.names, f"layers.{layers - 1}.ffn_out.weight")
    if last not in weights:
        raise ValueError(f"{config} is of {layers} layers, but the weights lack {last}")
    try:
        with torch.device("meta"):
            return Encoder(EncoderConfig(vocab_size, **{OPTION_NAMES[name]: value for name, value in sizes.items()}))
    except (RuntimeError, ValueError) as error:  # the first where a size is too large for any tensor
        raise ValueError(f"{config}: {error}") from error


def load_pretrained(encoder: Encoder, folder: str, fresh_head: bool = False):
    """Load a folder's weights into an ``Encoder`` of the folder's sizes; errors as of ``check_weights``.

    The length classifier starts at random, as does, without a masked-LM head, its transform; with *fresh_head* in any
    case. Others are left aside.
    """
    path, own = find_weights(folder), encoder.state_dict()
    family, state = read_family(folder, read_weights(path), encoder.config.vocab_size)
    used = convert(state, own, family.names, str(path), _ADVICE, _may_lack(own))
    if fresh_head:
        used = {name: value for name, value in used.items() if not name.startswith("head.")}
    if "head.weight" in own:  # starts as a copy of the word embeddings
        used.setdefault("head.weight", used["word_embeddings.weight"])
    encoder.load_state_dict(used, strict=False)
    random = ", ".join(sorted(own.keys() - used.keys()))
    logger.info("loaded %d tensors from %s; at random: %s", len(used), folder, random or "none")


def _may_lack(own: Iterable[str]) -> set[str]:
    return {name for name in own if name.startswith(("head.", "length_head.", "copy_head.", "transition_head."))}


def read_family(folder: str, state: dict[str, Tensor], vocab_size: int) -> tuple[Family, dict[str, Tensor]]:
    """The family of weights by ``config.json`` and their names, and the weights by its table's names.

    Tables of words may be padded with rows that are no tokens: those from *vocab_size* on are cut off.
    """
    path, config = read_config(folder)
    family = _find_family(path, config, state)
    state = family.tidy({name.removeprefix(family.prefix): value for name, value in state.items()})

    def change(ours: str, changed: Callable[[Tensor], Tensor]) -> None:
        (theirs,) = their_names(family.names, ours)
        if theirs in state:
            state[theirs] = changed(state[theirs])

    change("position_embeddings.weight", lambda table: table[_first_position(family, config) :])
    (types,), (words,) = (their_names(family.names, f"{name}_embeddings.weight") for name in ("type", "word"))
    if not family.has_types and words in state:
        state.setdefault(types, torch.zeros_like(state[words][:1]))
    if not family.has_types or config.get("type_vocab_size") == 1:
        change("type_embeddings.weight", lambda table: table[:1].repeat(2, 1))
    rows = len(state.get(words, ()))
    if rows > vocab_size and not state[words].is_meta:
        logger.info("%s: the last %d rows of words are no tokens and cut", folder, rows - vocab_size)
    for ours in ("word_embeddings.weight", "head.weight", "head.bias"):
        change(ours, lambda table: table[:vocab_size])
    return family, state


def read_weights(path: Path, shapes_only: bool = False) -> dict[str, Tensor]:
    """The tensors of a ``.safetensors`` or ``torch.save`` file, in fp32; of a fairseq checkpoint those of the model.

    *path* may be the index of several such files. Nothing of a file is executed. With *shapes_only* the tensors are on
    the meta device and take no memory.
    """
    if path.name.endswith(_INDEX):
        parts = [read_weights(path.parent / name, shapes_only) for name in weight_files(path)[1:]]
        return {name: tensor for part in parts for name, tensor in part.items()}
    state: Any
    if path.suffix == ".safetensors":
        try:
            state = load_file(path)  # which stays on disk until it is used
        except (SafetensorError, TypeError, ValueError) as error:  # of sizes, too
            raise ValueError(f"{path} is damaged or is no file of plain tensors: {error}") from error
    else:
        state = load_torch_file(path, mmap=shapes_only)
    if isinstance(state, dict) and isinstance(state.get("model"), dict):
        state = state["model"]
    pairs = state.items() if isinstance(state, dict) else [(None, None)]
    if not all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in pairs):
        raise ValueError(f"{path} does not hold a dictionary of tensors")
    if shapes_only:
        return {name: tensor.to("meta") for name, tensor in state.items()}
    try:
        return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    except NotImplementedError as error:
        raise ValueError(f"{path} has tensors of a type that torch does not convert: {error}") from error
