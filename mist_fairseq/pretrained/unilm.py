"""UniLM: BERT's encoder with query, key and value in one matrix, no bias of the key, and relative position bias."""

from dataclasses import replace

import torch
from torch import Tensor

from mist_fairseq.pretrained.bert import BERT
from mist_fairseq.pretrained.names import split


def _tidy(state: dict[str, Tensor]) -> dict[str, Tensor]:
    tidy = {}
    for name, tensor in split(BERT.tidy(state), "qkv_linear.", ["query.", "key.", "value."]).items():
        if name.endswith("self.q_bias"):
            tidy[name.replace("q_bias", "query.bias")] = tensor.reshape(-1)
            tidy[name.replace("q_bias", "key.bias")] = torch.zeros_like(tensor).reshape(-1)
        elif name.endswith("self.v_bias"):
            tidy[name.replace("v_bias", "value.bias")] = tensor.reshape(-1)
        else:
            tidy["encoder." + name if name.startswith("rel_pos_bias.") else name] = tensor
    return tidy


UNILM = replace(BERT, model_types=("bert", "minilm", "unilm"), tidy=_tidy, mark="qkv_linear")
