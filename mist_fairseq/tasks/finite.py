"""Training stops at a NaN or infinite loss or gradient, before it is learnt or saved, and names the sentences."""

import logging
import math
import sys

import torch
from fairseq.tasks import FairseqTask
from torch import distributed

logger = logging.getLogger(__name__)


class StopsAtNaN(FairseqTask):
    """Mixed into a task, before its class.

    fairseq by itself stops at gradients that are not finite without saying where they come from, and learns from a loss
    that is not finite if its gradients are. The losses are read where fairseq has just waited for the gradients' norm,
    so a GPU does not wait a second time.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._batches = []  # sentences' ids and loss of each batch since the last update

    def train_step(self, sample, model, criterion, optimizer, update_num, ignore_grad=False, **kwargs):
        """Forward and backward of a batch. Args and result: as fairseq's."""
        failure = sys.exception()
        # While fairseq handles this error it runs the batches again, to log the first module with a NaN.
        runs_again = isinstance(failure, FloatingPointError)
        if isinstance(failure, FloatingPointError) and self._batches:
            failure.args = (self._explain(failure, update_num),)
            logger.error(failure)
            self._batches.clear()
        result = super().train_step(sample, model, criterion, optimizer, update_num, ignore_grad, **kwargs)
        if not runs_again:
            self._batches.append((sample["id"], result[0].detach()))
        return result

    def valid_step(self, sample, model, criterion):
        """Loss of a batch of the validation. Args and result: as fairseq's.

        Raises:
            FloatingPointError: the loss is NaN or infinite; fairseq could not tell which checkpoint is the best.
        """
        result = super().valid_step(sample, model, criterion)
        loss = float(result[0])
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the loss is {loss} in the batch of the sentences {sorted(sample['id'].tolist())} (lines of the "
                "validation data, counted from 0): look at them, or go on from a checkpoint before with a lower --lr"
            )
        return result

    def optimizer_step(self, optimizer, model, update_num):
        """Learn from the gradients.

        Raises:
            FloatingPointError: a loss is NaN or infinite; fairseq treats it like a NaN gradient.
        """
        # There are none where this worker ran out of memory and others did not.
        losses = [loss for _, loss in self._batches]
        if losses and not torch.stack(losses).isfinite().all():
            raise FloatingPointError("the loss is not finite")
        self._batches.clear()
        super().optimizer_step(optimizer, model, update_num)

    def _explain(self, failure: FloatingPointError, update_num: int) -> str:
        """The message of *failure*, with the sentences of the update."""
        worker = f", worker {distributed.get_rank()}" if distributed.is_initialized() else ""
        losses = [(sorted(ids.tolist()), float(loss)) for ids, loss in self._batches]
        wrong = [(ids, loss) for ids, loss in losses if not math.isfinite(loss)]
        if wrong:
            cause = "; ".join(f"the loss is {loss} in the batch of the sentences {ids}" for ids, loss in wrong)
        else:
            cause = f"the losses are finite, of the sentences {[number for ids, _ in losses for number in ids]}"
            cause += "; another worker's may not be" if worker else ""
        return (
            f"{failure} at update {update_num + 1}{worker}: {cause} (lines of the training data, counted from 0). "
            "Nothing of this update was learnt: look at the sentences, or lower --lr, and go on from checkpoint_last.pt"
        )
