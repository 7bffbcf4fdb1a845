"""Checkpoints of the MIST authors' released code (github.com/kongds/MIST) -> fairseq checkpoints of ours.

Theirs are state dicts of ``bert.*`` (Hugging Face's or UniLM's names), ``cls.*`` (the masked-LM head) and
``embed_length.weight`` (length classes × hidden size), each under DataParallel's prefix ``module.`` or not. Their
length classes mean what ours do: the number of target tokens, the final [SEP] counted.
"""

import os
from pathlib import Path
from typing import Any

import torch
from fairseq.dataclass.configs import FairseqConfig
from omegaconf import OmegaConf
from torch import Tensor

from mist_fairseq.checkpoints.loading import untrained_state
from mist_fairseq.data.dictionary import load_dictionary
from mist_fairseq.files.whole import whole_file
from mist_fairseq.mist.config import PositionLimits
from mist_fairseq.models.mist_model import MistConfig, MistModel
from mist_fairseq.pretrained.names import convert
from mist_fairseq.pretrained.weights import empty_encoder, read_family, read_sizes, read_weights
from mist_fairseq.tasks.mist_task import MistTaskConfig

# Whatever config.json says: their code has the token types as constants, and a decoder that starts as a copy of the
# word embeddings and is trained apart from them.
_AS_RELEASED = {"source_type_id": 0, "target_type_id": 1, "untie_head": True}

# Buffers, and BERT's pooler, which their model has but never uses.
_UNUSED = {"embeddings.position_ids", "pooler.dense.weight", "pooler.dense.bias", "crit_mask_lm_smoothed.one_hot"}


def convert_checkpoint(
    checkpoint: str, config: str, out: str, max_source: int = 464, max_target: int = 48, overwrite: bool = False
) -> str:
    """Write a checkpoint for fairseq-generate and fairseq-train, and say in a line what it is.

    Args:
        checkpoint: the authors' ``ckpt-N/model_state_dict.bin`` or the like.
        config: folder with ``config.json`` and ``vocab.txt`` of the encoder that their training started from.
        out: file to write; FileExistsError if it is there, which only *overwrite* replaces.
        max_source, max_target: most tokens of a source and of a target in their training, special ones counted.
    """
    if os.path.exists(out) and not overwrite:
        raise FileExistsError(f"{out} is there already: choose another file or give --overwrite")
    for path in (Path(checkpoint), Path(config) / "config.json", Path(config) / "vocab.txt"):
        if not path.is_file():
            raise FileNotFoundError(f"{path} is not there or no file")
    dictionary = load_dictionary(str(Path(config) / "vocab.txt"))
    sizes: dict[str, Any] = {**read_sizes(config), **_AS_RELEASED}
    weights = _read(checkpoint, config, sizes, len(dictionary))
    task = MistTaskConfig(max_source_positions=max_source, max_target_positions=max_target)
    structured = FairseqConfig(model=MistConfig(**sizes), task=task)
    structured.model._name = structured.task._name = "mist"
    cfg = OmegaConf.structured(structured)
    model = MistModel(cfg.model, dictionary, PositionLimits(max_source, max_target))
    model.check_limits()
    model.encoder.load_state_dict(weights)
    stored = OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)
    with whole_file(out) as partial:
        torch.save({"args": None, "cfg": stored, "model": model.state_dict(), **untrained_state()}, partial)
    return (
        f"{out}: {sizes['encoder_layers']} layers of {sizes['encoder_embed_dim']}, {len(dictionary):,} vocabulary "
        f"entries, at most {max_source} source and {max_target} target tokens"
    )


def _read(checkpoint: str, config: str, sizes: dict[str, Any], vocab_size: int) -> dict[str, Tensor]:
    """The encoder's weights from their state dict; every key must have its place, and every place its key.

    Their BERT has no relative position bias, even where the encoder that it starts from has: *sizes* then say so.
    """
    state = {name.removeprefix("module."): value for name, value in read_weights(Path(checkpoint)).items()}
    if not any("rel_pos_bias." in name for name in state):
        sizes["rel_pos_bins"] = 0
    bias = state.pop("cls.predictions.decoder.bias", None)
    if bias is not None and not torch.equal(bias, state.get("cls.predictions.bias", bias)):
        raise ValueError(f"{checkpoint}: cls.predictions.decoder.bias differs from cls.predictions.bias")
    family, state = read_family(config, state, vocab_size)
    own = empty_encoder(config, sizes, vocab_size, family, state).state_dict()
    advice = f"is {config}/config.json that of the encoder which the training started from?"
    return convert(state, own, {**family.names, "length_head": "embed_length"}, checkpoint, advice, ignored=_UNUSED)
