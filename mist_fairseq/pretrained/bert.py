"""BERT and MiniLM (Hugging Face's ``BertModel`` and ``BertForMaskedLM``), and UniLM.

UniLM is BERT's encoder with query, key and value in one matrix, no bias of the key, and relative position bias.
"""

import re
from dataclasses import replace

import torch
from torch import Tensor

from mist_fairseq.pretrained.names import Family, split


def _tidy(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Checkpoints converted from TensorFlow call a LayerNorm's weight and bias gamma and beta."""
    return {re.sub(r"gamma$", "weight", re.sub(r"beta$", "bias", name)): value for name, value in state.items()}


# Of most families; token types are not.
SIZES = {
    "hidden_size": "encoder_embed_dim",
    "num_hidden_layers": "encoder_layers",
    "num_attention_heads": "encoder_attention_heads",
    "intermediate_size": "encoder_ffn_embed_dim",
    "max_position_embeddings": "max_positions",
}
BERT = Family(
    model_types=("bert", "minilm"),
    sizes={**SIZES, "type_vocab_size": "token_types"},
    # The first four are UniLM's. BERT ignores the types, which a folder exported for Hugging Face has, too.
    optional={
        **{name: name for name in ("source_type_id", "target_type_id", "rel_pos_bins", "max_rel_pos")},
        "layer_norm_eps": "layer_norm_eps",
        "hidden_act": "activation_fn",
    },
    settings={"position_embedding_type": "absolute"},
    names={
        "word_embeddings": "embeddings.word_embeddings",
        "position_embeddings": "embeddings.position_embeddings",
        "type_embeddings": "embeddings.token_type_embeddings",
        "embedding_norm": "embeddings.LayerNorm",
        "layers.{}.qkv": [f"encoder.layer.{{}}.attention.self.{name}" for name in ("query", "key", "value")],
        "layers.{}.attention_output": "encoder.layer.{}.attention.output.dense",
        "layers.{}.attention_norm": "encoder.layer.{}.attention.output.LayerNorm",
        "layers.{}.ffn_in": "encoder.layer.{}.intermediate.dense",
        "layers.{}.ffn_out": "encoder.layer.{}.output.dense",
        "layers.{}.ffn_norm": "encoder.layer.{}.output.LayerNorm",
        "head.transform": "cls.predictions.transform.dense",
        "head.norm": "cls.predictions.transform.LayerNorm",
        "head.bias": "cls.predictions.bias",
        "head.weight": "cls.predictions.decoder.weight",
        "relative_bias": "encoder.rel_pos_bias",
    },
    prefix="bert.",
    tidy=_tidy,
)


def _tidy_unilm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    tidy = {}
    for name, tensor in split(_tidy(state), "qkv_linear.", ["query.", "key.", "value."]).items():
        if name.endswith("self.q_bias"):
            tidy[name.replace("q_bias", "query.bias")] = tensor.reshape(-1)
            tidy[name.replace("q_bias", "key.bias")] = torch.zeros_like(tensor).reshape(-1)
        elif name.endswith("self.v_bias"):
            tidy[name.replace("v_bias", "value.bias")] = tensor.reshape(-1)
        else:
            tidy["encoder." + name if name.startswith("rel_pos_bias.") else name] = tensor
    return tidy


UNILM = replace(BERT, model_types=("bert", "minilm", "unilm"), tidy=_tidy_unilm, mark="qkv_linear")
