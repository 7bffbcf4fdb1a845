"""DistilBERT (Hugging Face's ``DistilBertModel`` and ``DistilBertForMaskedLM``): BERT without token types."""

from dataclasses import replace

from mist_fairseq.pretrained.bert import BERT

_LAYER = "transformer.layer.{}."
DISTILBERT = replace(
    BERT,
    model_types=("distilbert",),
    sizes={
        "dim": "encoder_embed_dim",
        "n_layers": "encoder_layers",
        "n_heads": "encoder_attention_heads",
        "hidden_dim": "encoder_ffn_embed_dim",
        "max_position_embeddings": "max_positions",
    },
    optional={"activation": "activation_fn"},
    names={
        **BERT.names,
        "layers.{}.qkv": [f"{_LAYER}attention.{name}_lin" for name in "qkv"],
        "layers.{}.attention_output": _LAYER + "attention.out_lin",
        "layers.{}.attention_norm": _LAYER + "sa_layer_norm",
        "layers.{}.ffn_in": _LAYER + "ffn.lin1",
        "layers.{}.ffn_out": _LAYER + "ffn.lin2",
        "layers.{}.ffn_norm": _LAYER + "output_layer_norm",
        "head.transform": "vocab_transform",
        "head.norm": "vocab_layer_norm",
        "head.bias": "vocab_projector.bias",
        "head.weight": "vocab_projector.weight",
    },
    prefix="distilbert.",
    has_types=False,
)
