"""The encoder in Hugging Face's format, for ``transformers.BertModel`` and ``BertForMaskedLM``."""

import json

from safetensors.torch import save

from mist_fairseq.files.exported import write_folder
from mist_fairseq.mist.config import OPTION_NAMES
from mist_fairseq.mist.encoder import Encoder
from mist_fairseq.pretrained.bert import BERT
from mist_fairseq.pretrained.names import export
from mist_fairseq.release.folder import Released


def save_huggingface(released: Released, folder: str, overwrite: bool = False) -> list[str]:
    """Write encoder and masked-LM head as ``save_pretrained`` does: ``config.json``, ``model.safetensors``, vocabulary.

    The length classifier has no place there and is left out. A WordPiece vocabulary is written as ``vocab.txt`` with
    its ``tokenizer_config.json``, any other as our ``dict.txt``. Returns and errors are as of ``write_folder``.
    """
    encoder, tokenizer = released.encoder, released.tokenizer
    if not isinstance(encoder, Encoder):
        raise ValueError("only mist_* architectures are BERT encoders: export this model with --to folder")
    if encoder.relative_bias is not None:
        raise ValueError("transformers.BertModel has no relative position bias (UniLM): export with --to folder")
    sizes = encoder.config
    named = {**BERT.sizes, **{name: name for name in ("source_type_id", "target_type_id")}}  # BERT ignores these two
    config = {
        "model_type": "bert",
        "architectures": ["BertForMaskedLM"],
        "vocab_size": sizes.vocab_size,
        **{theirs: getattr(sizes, OPTION_NAMES[option]) for theirs, option in named.items()},
        "hidden_act": "gelu",
        "layer_norm_eps": sizes.layer_norm_eps,
        "hidden_dropout_prob": sizes.dropout,
        "attention_probs_dropout_prob": sizes.attention_dropout,
        "pad_token_id": tokenizer.special.pad,
        "tie_word_embeddings": encoder.head.weight is None,
    }
    own = {name: value for name, value in encoder.state_dict().items() if name != "length_head.weight"}
    exported = export(own, BERT.names).items()
    state = {name if name.startswith("cls.") else BERT.prefix + name: value for name, value in exported}
    if encoder.head.weight is not None:  # the decoder's bias is the head's; tied models have it tied, too
        state["cls.predictions.decoder.bias"] = state["cls.predictions.bias"].clone()
    files = {"model.safetensors": [save(state, {"format": "pt"})]}
    if tokenizer.settings["type"] == "wordpiece":
        settings = {
            "tokenizer_class": "BertTokenizer",
            "do_lower_case": tokenizer.settings["lowercase"],
            **{name: tokenizer.settings[name] for name in ("strip_accents", "tokenize_chinese_chars")},
            "model_max_length": sizes.max_positions,
        }
        files["tokenizer_config.json"] = [json.dumps(settings, indent=2).encode(), b"\n"]
        files["vocab.txt"] = [tokenizer.content.encode()]
    else:
        files["dict.txt"] = [tokenizer.saved()]
    return write_folder(folder, config, files, overwrite)
