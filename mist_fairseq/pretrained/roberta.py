"""RoBERTa, XLM-R and CamemBERT (Hugging Face's ``RobertaModel`` and ``RobertaForMaskedLM``).

BERT's encoder, whose positions are counted from that of padding on and whose tokens are all of one type.
"""

from dataclasses import replace

from mist_fairseq.pretrained.bert import BERT

ROBERTA = replace(
    BERT,
    model_types=("roberta", "xlm-roberta", "camembert"),
    settings={**BERT.settings, "hidden_act": "gelu"},  # which the head has in any case
    names={
        **BERT.names,
        "head.transform": "lm_head.dense",
        "head.norm": "lm_head.layer_norm",
        "head.bias": "lm_head.bias",
        "head.weight": "lm_head.decoder.weight",
    },
    prefix="roberta.",
    first_position=None,
    has_types=False,
)
