"""The encoder in Hugging Face's format, for ``transformers.AutoModel`` and ``AutoModelForMaskedLM``."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from mist_fairseq.files.exported import write_folder
from mist_fairseq.mist.config import OPTION_NAMES, EncoderConfig
from mist_fairseq.mist.encoder import Encoder
from mist_fairseq.pretrained.albert import ALBERT
from mist_fairseq.pretrained.bert import BERT
from mist_fairseq.pretrained.electra import ELECTRA
from mist_fairseq.pretrained.modernbert import MODERNBERT
from mist_fairseq.pretrained.mpnet import MPNET
from mist_fairseq.pretrained.names import Family, export, their_names
from mist_fairseq.pretrained.weights import options_of
from mist_fairseq.release.folder import Released
from mist_fairseq.text.tokenizer import Tokenizer


def save_huggingface(released: Released, folder: str, overwrite: bool = False) -> list[str]:
    """Write encoder and masked-LM head as ``save_pretrained`` does: ``config.json``, ``model.safetensors``, vocabulary.

    The format is that of the family in transformers that computes the same: BERT's for RoBERTa and DistilBERT, too,
    which then keeps the types of source and target. In MPNet's and ModernBERT's all tokens are the source's. The
    length classifier has no place there and is left out. BERT's WordPiece is written as ``vocab.txt``, what came from a
    ``tokenizer.json`` as that, each with its ``tokenizer_config.json``; any other tokenizer as our ``dict.txt``.

    Returns and errors are as of ``write_folder``, and a ValueError says what no such family has.
    """
    encoder, tokenizer = released.encoder, released.tokenizer
    if not isinstance(encoder, Encoder):
        raise ValueError("only mist_* architectures are encoders: export this model with --to folder")
    family, kind = _family(encoder.config)
    state = _state(encoder, family)
    config = _config(encoder.config, family) | {
        "model_type": family.model_types[0],
        "architectures": [f"{kind}ForMaskedLM"],
        "vocab_size": encoder.config.vocab_size,
        "pad_token_id": tokenizer.special.pad,
        "tie_word_embeddings": their_names(family.names, "head.weight")[0] not in state,
    }
    given = options_of(config, family, Path(folder) / "config.json")
    if other := _unlike(encoder.config, family, given):
        raise ValueError(f"transformers.{kind}Model has no such {', '.join(other)}: export this model with --to folder")
    files = {"model.safetensors": [save(state, {"format": "pt"})]}
    return write_folder(folder, config, files | _tokenizer_files(tokenizer, encoder.config.max_positions), overwrite)


def _tokenizer_files(tokenizer: Tokenizer, max_length: int) -> dict[str, list[bytes]]:
    """What ``transformers.AutoTokenizer`` reads, as far as there is such a file."""
    own: dict[str, Any] = dict(tokenizer.settings)
    if own["type"] == "wordpiece":
        name, settings = "vocab.txt", {"tokenizer_class": "BertTokenizer", "do_lower_case": own["lowercase"]}
        settings |= {name: own[name] for name in ("strip_accents", "tokenize_chinese_chars")}
    elif own["type"] == "tokenizer-json":
        name, settings = "tokenizer.json", {"tokenizer_class": "PreTrainedTokenizerFast", **own["config"]}
    else:
        return {"dict.txt": [tokenizer.saved()]}
    about = json.dumps(settings | {"model_max_length": max_length}, indent=2) + "\n"
    return {"tokenizer_config.json": [about.encode()], name: [tokenizer.content.encode()]}


def _family(config: EncoderConfig) -> tuple[Family, str]:
    """The family that computes what *config* says, and what transformers calls its classes."""
    if config.rotary_base:
        return MODERNBERT, "ModernBert"
    if config.rel_pos_bins:
        return MPNET, "MPNet"
    if config.shared_layers:
        return ALBERT, "Albert"
    return (ELECTRA, "Electra") if config.embedding_size else (BERT, "Bert")


def _config(config: EncoderConfig, family: Family) -> dict[str, Any]:
    """What the family's ``config.json`` says of the sizes."""
    named = {**family.sizes, **family.optional}
    given = {theirs: getattr(config, OPTION_NAMES[ours]) for theirs, ours in named.items()}
    given["max_position_embeddings"] += family.first_position or 0
    if "local_attention" in given:  # both sides together
        given["local_attention"] *= 2
    dropouts = {"hidden_dropout_prob": config.dropout, "attention_probs_dropout_prob": config.attention_dropout}
    return given | dropouts | dict(family.settings)


def _unlike(config: EncoderConfig, family: Family, given: dict[str, Any]) -> list[str]:
    """The options that a reader of *given* would set otherwise than they are."""
    free = {"dropout", "attention_dropout", "length_classes", "untie_head"}
    free |= set() if family.has_types else {"token_types", "source_type_id", "target_type_id"}
    default = EncoderConfig(config.vocab_size)
    return [
        option
        for option, name in OPTION_NAMES.items()
        if option not in free and given.get(option, getattr(default, name)) != getattr(config, name)
    ]


def _state(encoder: Encoder, family: Family) -> dict[str, Tensor]:
    """Weights under the family's names."""
    own = {name: value for name, value in encoder.state_dict().items() if name != "length_head.weight"}
    if not family.has_types:
        kind = own.pop("type_embeddings.weight")[encoder.config.source_type]
        table = "position_embeddings.weight"
        if table not in own and kind.any():
            table = "word_embeddings.weight"
            own.setdefault("head.weight", own[table])  # which stays as it is
        if table in own:
            own[table] = own[table] + kind
    if family.first_position:
        table = own["position_embeddings.weight"]
        own["position_embeddings.weight"] = torch.cat([table.new_zeros(family.first_position, table.shape[1]), table])
    if family is MPNET:
        own["relative_bias.weight"] = own["relative_bias.weight"].t()
    state = {
        theirs if name.startswith("head.") else family.prefix + theirs: value
        for name, tensor in own.items()
        for theirs, value in export({name: tensor}, family.names).items()
    }
    (weight,), (bias,) = (their_names(family.names, f"head.{part}") for part in ("weight", "bias"))
    if weight in state:  # the decoder's bias is the head's; tied models have it tied, too
        state.setdefault(weight.removesuffix("weight") + "bias", state[bias].clone())
    return state
