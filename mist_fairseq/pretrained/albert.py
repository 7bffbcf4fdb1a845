"""ALBERT (Hugging Face's ``AlbertModel`` and ``AlbertForMaskedLM``): one layer that is run again and again."""

from dataclasses import replace

from mist_fairseq.pretrained.bert import BERT

_LAYER = "encoder.albert_layer_groups.0.albert_layers.0."
ALBERT = replace(
    BERT,
    model_types=("albert",),
    sizes={**BERT.sizes, "embedding_size": "embedding_size"},
    settings={**BERT.settings, "num_hidden_groups": 1, "inner_group_num": 1},
    names={
        **BERT.names,
        "embedding_projection": "encoder.embedding_hidden_mapping_in",
        "layers.{}.qkv": [f"{_LAYER}attention.{name}" for name in ("query", "key", "value")],
        "layers.{}.attention_output": _LAYER + "attention.dense",
        "layers.{}.attention_norm": _LAYER + "attention.LayerNorm",
        "layers.{}.ffn_in": _LAYER + "ffn",
        "layers.{}.ffn_out": _LAYER + "ffn_output",
        "layers.{}.ffn_norm": _LAYER + "full_layer_layer_norm",
        "head.transform": "predictions.dense",
        "head.norm": "predictions.LayerNorm",
        "head.bias": "predictions.bias",
        "head.weight": "predictions.decoder.weight",
    },
    prefix="albert.",
    options={"shared_layers": True},
)
