"""fairseq's moving average of the weights, ``--store-ema``."""

import logging

from fairseq import checkpoint_utils
from fairseq.models.ema.ema import EMA

from mist_fairseq.files.torch_files import plain_values
from mist_fairseq.patches import replaces

logger = logging.getLogger(__name__)


@replaces(EMA, "step")
def _step(step, self, new_model, updates=None):
    if updates is not None:  # fairseq counts anew where a training goes on
        self.update_freq_counter = (updates - 1) % self.config.ema_update_freq
    step(self, new_model, updates)


@replaces(EMA, "_step_internal")
def _step_internal(fairseqs, self, new_model, updates=None):
    """Move each weight once, under however many names it is; what has no mean is copied."""
    means = self.fp32_params if self.config.ema_fp32 else self.model.state_dict()
    moved = set()
    for name, new in new_model.state_dict().items():
        mean = means[name]
        if not mean.is_floating_point():
            mean.copy_(new)
        elif mean.data_ptr() not in moved:
            moved.add(mean.data_ptr())
            mean.mul_(self.decay).add_(new.to(mean.dtype), alpha=1 - self.decay)
    if self.config.ema_fp32:
        self.restore(means)


@replaces(EMA, "restore")
def _restore(restore, self, state_dict, build_fp32_params=False):
    if state_dict:
        restore(self, state_dict, build_fp32_params)
    else:
        logger.info("the checkpoint has no moving average: it begins with the checkpoint's weights")


@replaces(checkpoint_utils, "load_ema_from_checkpoint")
def _load_ema_from_checkpoint(load, path):
    with plain_values():
        return load(path)
