"""AdamW with weight decay on matrices only, as BERT is fine-tuned."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, List

import torch
from fairseq.dataclass import FairseqDataclass
from fairseq.optim import FairseqOptimizer, register_optimizer
from omegaconf import II

from mist_fairseq.generate.decoding import option


@dataclass
class BertAdamWConfig(FairseqDataclass):
    """``--weight-decay`` 0.01 is the authors'."""

    adam_beta1: float = option(0.9, "decay of the gradient's mean")
    adam_beta2: float = option(0.999, "decay of the gradient's square")
    adam_eps: float = option(1e-8, "added to the denominator")
    weight_decay: float = option(0.01, "decoupled weight decay of matrices")
    lr: List[float] = II("optimization.lr")


@register_optimizer("bert_adamw", dataclass=BertAdamWConfig)
class BertAdamW(FairseqOptimizer):
    """Biases, LayerNorm weights and other vectors do not decay."""

    def __init__(self, cfg: BertAdamWConfig, params):
        super().__init__(cfg)
        params = list(params)
        matrices, vectors = [p for p in params if p.dim() >= 2], [p for p in params if p.dim() < 2]
        groups: list[dict[str, Any]] = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
        self._optimizer = torch.optim.AdamW(groups, fused=True, **self.optimizer_config)

    @property
    def optimizer_config(self):
        """What the command line sets, for every group that does not say otherwise."""
        lr = self.cfg.lr
        return {
            "lr": lr[0] if isinstance(lr, Sequence) else lr,
            "betas": (self.cfg.adam_beta1, self.cfg.adam_beta2),
            "eps": self.cfg.adam_eps,
            "weight_decay": self.cfg.weight_decay,
        }
