"""ModernBERT (Hugging Face's ``ModernBertModel`` and ``ModernBertForMaskedLM``; Warner et al. 2024)."""

from collections.abc import Mapping
from typing import Any

from mist_fairseq.pretrained.bert import SIZES
from mist_fairseq.pretrained.names import Family


def _adjust(sizes: dict[str, Any]) -> dict[str, Any]:
    """Their window is both sides together."""
    return sizes | {"local_window": sizes["local_window"] // 2}


def _settle(config: Mapping[str, Any]) -> dict[str, Any]:
    """transformers 5 lists the kinds of the layers, and has a table of rotary positions for each kind."""
    settled = dict(config)
    if kinds := config.get("layer_types"):
        every = next((i for i, kind in enumerate(kinds) if i and kind == "full_attention"), len(kinds))
        if kinds != ["sliding_attention" if i % every else "full_attention" for i in range(len(kinds))]:
            raise ValueError(f"layer_types are {kinds!r:.100}, expected full_attention first and every so many layers")
        settled["global_attn_every_n_layers"] = every
    tables = config.get("rope_parameters") or {}
    for kind, name in (("full_attention", "global_rope_theta"), ("sliding_attention", "local_rope_theta")):
        table = tables.get(kind) or {}
        if table.get("rope_type", "default") != "default":
            raise ValueError(f"rope_parameters of {kind} are {table!r:.100}, and only the default type is supported")
        settled |= {name: table["rope_theta"]} if "rope_theta" in table else {}
    return settled


MODERNBERT = Family(
    model_types=("modernbert",),
    sizes={
        **SIZES,
        "local_attention": "local_window",
        "global_attn_every_n_layers": "global_every",
    },
    optional={
        "norm_eps": "layer_norm_eps",
        "global_rope_theta": "rotary_base",
        "local_rope_theta": "local_rotary_base",
    },
    settings={
        **dict.fromkeys(("attention_bias", "mlp_bias", "norm_bias", "classifier_bias"), False),
        "decoder_bias": True,
        "hidden_activation": "gelu",
        "classifier_activation": "gelu",
        "rope_scaling": None,
    },
    names={
        "word_embeddings": "embeddings.tok_embeddings",
        "type_embeddings": "embeddings.token_type_embeddings",  # of ours only
        "embedding_norm": "embeddings.norm",
        "layers.{}.qkv": "layers.{}.attn.Wqkv",
        "layers.{}.attention_output": "layers.{}.attn.Wo",
        "layers.{}.attention_norm": "layers.{}.attn_norm",
        "layers.{}.ffn_in": "layers.{}.mlp.Wi",
        "layers.{}.ffn_out": "layers.{}.mlp.Wo",
        "layers.{}.ffn_norm": "layers.{}.mlp_norm",
        "head.transform": "head.dense",
        "head.bias": "decoder.bias",
        "head.weight": "decoder.weight",
    },
    prefix="model.",
    tidy=dict,
    settle=_settle,
    options={
        "pre_norm": True,
        "gated_ffn": True,
        "without_biases": True,
        "layer_norm_eps": 1e-5,
        "rotary_base": 160000.0,
        "local_rotary_base": 10000.0,
    },
    adjust=_adjust,
    has_types=False,
)
