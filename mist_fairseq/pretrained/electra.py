"""ELECTRA (Hugging Face's ``ElectraModel`` and ``ElectraForMaskedLM``): BERT with embeddings of a size of their own.

The generator has a masked-LM head. The discriminator, which is the better encoder, has none, so its head starts at
random.
"""

from dataclasses import replace
from typing import Any

from mist_fairseq.pretrained.bert import BERT


def _adjust(sizes: dict[str, Any]) -> dict[str, Any]:
    """There is no projection where both sizes are one."""
    same = sizes["embedding_size"] == sizes["encoder_embed_dim"]
    return sizes | {"embedding_size": 0 if same else sizes["embedding_size"]}


ELECTRA = replace(
    BERT,
    model_types=("electra",),
    sizes={**BERT.sizes, "embedding_size": "embedding_size"},
    settings={**BERT.settings, "hidden_act": "gelu"},  # which the head has in any case
    names={
        **BERT.names,
        "embedding_projection": "embeddings_project",
        "head.transform": "generator_predictions.dense",
        "head.norm": "generator_predictions.LayerNorm",
        "head.bias": "generator_lm_head.bias",
        "head.weight": "generator_lm_head.weight",
    },
    prefix="electra.",
    adjust=_adjust,
)
