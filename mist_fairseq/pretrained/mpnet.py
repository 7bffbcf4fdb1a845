"""MPNet (Hugging Face's ``MPNetModel`` and ``MPNetForMaskedLM``): RoBERTa with relative position bias."""

from dataclasses import replace

from torch import Tensor

from mist_fairseq.pretrained.bert import SIZES
from mist_fairseq.pretrained.roberta import ROBERTA


def _tidy(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The bias is a table of distances, ours a product."""
    name = "encoder.relative_attention_bias.weight"
    return {**state, name: state[name].t()} if name in state else state


MPNET = replace(
    ROBERTA,
    model_types=("mpnet",),
    sizes=SIZES,
    optional={"layer_norm_eps": "layer_norm_eps"},
    # The head has this activation in any case, and transformers counts 32 buckets whatever the table has.
    settings={"hidden_act": "gelu", "relative_attention_num_buckets": 32},
    options={"rel_pos_bins": 32},
    names={
        **ROBERTA.names,
        "layers.{}.qkv": [f"encoder.layer.{{}}.attention.attn.{name}" for name in "qkv"],
        "layers.{}.attention_output": "encoder.layer.{}.attention.attn.o",
        "layers.{}.attention_norm": "encoder.layer.{}.attention.LayerNorm",
        "relative_bias": "encoder.relative_attention_bias",
    },
    prefix="mpnet.",
    tidy=_tidy,
    first_position=2,
)
