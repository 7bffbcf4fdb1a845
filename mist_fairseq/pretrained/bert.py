"""Pre-trained BERT, MiniLM and UniLM folders -> our sizes and weights, without executing code.

A folder is what Hugging Face's ``save_pretrained`` writes: ``config.json``, ``vocab.txt`` and
``model.safetensors`` or ``pytorch_model.bin``.
"""

import logging
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from mist_fairseq.data.dictionary import TokenizerDictionary, load_dictionary
from mist_fairseq.files.checksums import check_sums
from mist_fairseq.files.reading import read_json
from mist_fairseq.files.sizes import check_size
from mist_fairseq.files.torch_files import load_torch_file
from mist_fairseq.mist.encoder import Encoder

logger = logging.getLogger(__name__)

# Hugging Face's name in config.json -> ours in the model configuration.
_SIZES = {
    "hidden_size": "encoder_embed_dim",
    "num_hidden_layers": "encoder_layers",
    "num_attention_heads": "encoder_attention_heads",
    "intermediate_size": "encoder_ffn_embed_dim",
    "max_position_embeddings": "max_positions",
    "type_vocab_size": "token_types",
}
_OPTIONAL = {
    "source_type_id": "source_type_id",
    "target_type_id": "target_type_id",
    "rel_pos_bins": "rel_pos_bins",
    "max_rel_pos": "max_rel_pos",
}

_EMBEDDINGS = {
    "embeddings.word_embeddings.weight": "word_embeddings.weight",
    "embeddings.position_embeddings.weight": "position_embeddings.weight",
    "embeddings.token_type_embeddings.weight": "type_embeddings.weight",
    "embeddings.LayerNorm": "embedding_norm",
}
_LAYER = {
    "attention.output.dense": "attention_output",
    "attention.output.LayerNorm": "attention_norm",
    "intermediate.dense": "ffn_in",
    "output.dense": "ffn_out",
    "output.LayerNorm": "ffn_norm",
}
_HEAD = {
    "cls.predictions.transform.dense": "head.transform",
    "cls.predictions.transform.LayerNorm": "head.norm",
    "cls.predictions.bias": "head.bias",
    "cls.predictions.decoder.weight": "head.weight",
}


def read_sizes(folder: str) -> dict[str, int]:
    """The model configuration that a pre-trained folder's ``config.json`` asks for.

    Raises:
        FileNotFoundError: the folder or its config.json is missing.
        ValueError: a size is missing or no positive number, or the architecture is not BERT's.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"--pretrained {folder}: there is no config.json in it")
    config = read_json(path)
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds {type(config).__name__}, expected the settings of a model by their names")
    if config.get("hidden_act", "gelu") != "gelu":
        raise ValueError(f"{path}: hidden_act is {config['hidden_act']!r}, and only 'gelu' (BERT's) is supported")
    if config.get("position_embedding_type", "absolute") != "absolute":
        raise ValueError(f"{path}: position_embedding_type is {config['position_embedding_type']!r}, not 'absolute'")
    sizes = {}
    for theirs, ours in _SIZES.items():
        sizes[ours] = _whole_number(config.get(theirs), theirs, path, 1)
    for theirs, ours in _OPTIONAL.items():
        if config.get(theirs) is not None:
            sizes[ours] = _whole_number(config[theirs], theirs, path, 0)
    return sizes


def _whole_number(value, name: str, path: Path, least: int) -> int:
    if type(value) is not int or not least <= value < 2**31:
        raise ValueError(f"{path}: {name} is {value!r:.60}, expected a whole number of at least {least}")
    return value


def find_settings(folder: str | Path) -> list[str]:
    """Names of what is read of a folder beside its weights, as far as it is there."""
    return [name for name in ("config.json", "vocab.txt", "tokenizer_config.json") if (Path(folder) / name).is_file()]


def check_weights(folder: str, sizes: dict[str, int], vocab_size: int):
    """Refuse damaged files, and a ``config.json`` of a far bigger model than the weights beside it.

    Before memory is taken for the model. What is damaged is seen where ``SHA256SUMS`` is in the folder, which
    ``scripts/get_pretrained.py`` writes.

    Args:
        folder: with the weights.
        sizes: of ``read_sizes``.
        vocab_size: V.

    Raises:
        FileNotFoundError: there is no weights file.
        ValueError: a file is damaged, or the model is bigger than its file even if each number takes but two bytes.
    """
    weights = find_weights(folder)
    check_sums(folder, [*find_settings(folder), weights.name], "fetch it again")
    check_size(sizes, weights.stat().st_size // 2, str(Path(folder) / "config.json"), vocab_size)


def check_dictionary(folder: str, dictionary: TokenizerDictionary):
    """Refuse data that was binarized with another vocabulary than the folder's."""
    path = Path(folder) / "vocab.txt"
    if not path.is_file():
        raise FileNotFoundError(f"--pretrained {folder}: there is no vocab.txt in it")
    expected = load_dictionary(str(path))
    if expected != dictionary:
        raise ValueError(
            f"the data was binarized with another vocabulary ({len(dictionary)} entries) than {path} "
            f"({len(expected)} entries): run fairseq-preprocess with --joined-dictionary --srcdict {path}"
        )


def load_pretrained(encoder: Encoder, folder: str):
    """Load a folder's weights into an ``Encoder`` of the folder's sizes.

    Keys may carry the prefix ``bert.`` or not; the masked-LM head (``cls.predictions.*``) may be there or not, and
    without it only the head's own transform starts at random. Poolers and other heads are left aside.

    Raises:
        FileNotFoundError: there is no weights file.
        ValueError: it cannot be read, lacks a key, or a shape does not fit (names the key and both shapes).
    """
    source = f"--pretrained {folder}"
    state, _ = convert_state(read_weights(find_weights(folder)), len(encoder.layers), source)
    own = encoder.state_dict().keys()
    if encoder.head.weight is not None and "head.weight" not in state and "word_embeddings.weight" in state:
        state["head.weight"] = state["word_embeddings.weight"]
    used = {name: tensor for name, tensor in state.items() if name in own}
    random = sorted(own - used.keys())
    optional = {name for name in own if name.startswith("head.")} | {"length_head.weight"}
    load_state(encoder, used, source, optional)
    logger.info("loaded %d tensors from %s; at random: %s", len(used), folder, ", ".join(random) or "none")


def load_state(encoder: nn.Module, state: dict[str, Tensor], source: str, optional: frozenset | set = frozenset()):
    """Load converted weights into an ``Encoder``.

    Args:
        encoder: of the sizes that the weights have.
        state: by our names.
        source: where the weights come from, for messages.
        optional: names that may be missing.

    Raises:
        ValueError: a weight is missing or a shape does not fit (names the weight here and there).
    """
    own = encoder.state_dict()
    for name in sorted(state.keys() & own.keys()):
        if state[name].shape != own[name].shape:
            raise ValueError(
                f"{source}: {bert_name(name)} -> {name} has shape {tuple(state[name].shape)}, "
                f"the model needs {tuple(own[name].shape)}"
            )
    missing = sorted(own.keys() - state.keys() - optional)
    if missing:
        theirs = ", ".join(map(bert_name, missing[:3]))
        raise ValueError(
            f"{source}: the weights lack {', '.join(missing[:3])} ({len(missing)} in all), in BERT's names {theirs}"
        )
    encoder.load_state_dict(state, strict=False)


def bert_name(name: str) -> str:
    """BERT's name for one of our weights; ``{query,key,value}`` stands for the three that ours joins."""
    if name == "length_head.weight":
        return "embed_length.weight"
    prefix, layer = "", re.match(r"layers\.(\d+)\.", name)
    if layer:
        prefix, name = f"encoder.layer.{layer.group(1)}.", name[layer.end() :]
    known = {"qkv": "attention.self.{query,key,value}", "relative_bias": "rel_pos_bias"}
    known |= {ours: theirs for theirs, ours in {**_EMBEDDINGS, **_HEAD, **_LAYER}.items()}
    module, _, kind = name.rpartition(".")
    return prefix + (known.get(name) or f"{known[module]}.{kind}")


def find_weights(folder: str) -> Path:
    """The ``model.safetensors`` of a folder, or its ``pytorch_model.bin``; FileNotFoundError without either."""
    safe, plain = Path(folder) / "model.safetensors", Path(folder) / "pytorch_model.bin"
    path = safe if safe.is_file() else plain
    if not path.is_file():
        raise FileNotFoundError(f"--pretrained {folder}: there is no model.safetensors and no pytorch_model.bin in it")
    return path


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a ``.safetensors`` or ``torch.save`` file, in fp32, without executing code.

    Of a fairseq checkpoint those of the model.

    Raises:
        ValueError: it is damaged or holds something else than a dictionary of tensors.
    """
    state: Any
    if path.suffix == ".safetensors":
        try:
            state = load_file(path)
        except (SafetensorError, TypeError, ValueError) as error:  # of sizes, too
            raise ValueError(f"{path} is damaged or is no file of plain tensors: {error}") from error
    else:
        state = load_torch_file(path)
    if isinstance(state, dict) and isinstance(state.get("model"), dict):
        state = state["model"]
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in state.items()
    ):
        raise ValueError(f"{path} does not hold a dictionary of tensors")
    try:
        return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    except NotImplementedError as error:
        raise ValueError(f"{path} has tensors of a type that torch does not convert: {error}") from error


def convert_state(state: dict[str, Tensor], layers: int, source: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Our names for BERT's and UniLM's.

    Args:
        state: weights by their names, with or without the prefix ``bert.``.
        layers: number of layers to convert.
        source: where the weights come from, for messages.

    Returns:
        The converted weights, and what is left over under its own name.
    """
    # Checkpoints converted from TensorFlow call a LayerNorm's weight and bias gamma and beta.
    state = {re.sub(r"gamma$", "weight", re.sub(r"beta$", "bias", name)): value for name, value in state.items()}
    state = {name.removeprefix("bert."): value for name, value in state.items()}
    converted: dict[str, Tensor] = {}
    for theirs, ours in {**_EMBEDDINGS, **_HEAD}.items():
        _rename(state, theirs, converted, ours)
    for i in range(layers):
        old, new = f"encoder.layer.{i}.", f"layers.{i}."
        for theirs, ours in _LAYER.items():
            _rename(state, old + theirs, converted, new + ours)
        _convert_qkv(state, old + "attention.self.", converted, new + "qkv.", source)
    for name in ("rel_pos_bias.weight", "encoder.rel_pos_bias.weight"):
        _rename(state, name, converted, "relative_bias.weight")
    return converted, state


def _rename(state: dict[str, Tensor], theirs: str, converted: dict[str, Tensor], ours: str):
    for end in ("", ".weight", ".bias"):
        if theirs + end in state:
            converted[ours + end] = state.pop(theirs + end)


def _convert_qkv(state: dict[str, Tensor], old: str, converted: dict[str, Tensor], new: str, source: str):
    """Query, key and value as one matrix; UniLM has them fused already, without a bias for the key."""
    if old + "qkv_linear.weight" in state:
        converted[new + "weight"] = state.pop(old + "qkv_linear.weight")
        if old + "q_bias" not in state or old + "v_bias" not in state:
            raise ValueError(f"{source}: {old}qkv_linear.weight comes without {old}q_bias and v_bias")
        query, value = state.pop(old + "q_bias").reshape(-1), state.pop(old + "v_bias").reshape(-1)
        converted[new + "bias"] = torch.cat([query, torch.zeros_like(query), value])
        return
    for kind in ("weight", "bias"):
        names = [f"{old}{name}.{kind}" for name in ("query", "key", "value")]
        if all(name in state for name in names):
            converted[new + kind] = torch.cat([state.pop(name) for name in names])
