"""Training with several workers counts every sentence, also where one worker has fewer batches than the others."""

from functools import partial

import torch
from fairseq.tasks import FairseqTask


class CountsAllBatches(FairseqTask):
    """Mixed into a task, before its class.

    Where the batches of an epoch cannot be dealt out evenly, fairseq gives the last workers an empty one. A worker
    whose update (``--update-freq``) ends with it then reports a sample size of zero for the whole update, while the
    gradients of its other batches count: the update is too large. So here no training batch is empty; in place of an
    empty one stands a sentence that does not count.
    """

    def get_batch_iterator(self, dataset, *args, **kwargs):
        """Batches of a data set. Args and result: as fairseq's."""
        iterator = super().get_batch_iterator(dataset, *args, **kwargs)
        if dataset is self.datasets.get(self.cfg.train_subset):
            iterator.collate_fn = partial(_collate, dataset)
        return iterator

    def train_step(self, sample, model, criterion, optimizer, update_num, ignore_grad=False, **kwargs):
        """Forward and backward of a batch; nothing comes of one without sentences. Args and result: as fairseq's."""
        is_empty = sample["nsentences"] == 0
        result = super().train_step(sample, model, criterion, optimizer, update_num, ignore_grad or is_empty, **kwargs)
        if not is_empty:
            return result
        loss, _, logging_output = result
        return loss, 0, {key: _zero(value) for key, value in logging_output.items()}


def _collate(dataset, samples: list) -> dict:
    return dataset.collater(samples) if samples else {**dataset.collater([dataset[0]]), "nsentences": 0}


def _zero(value):
    return torch.zeros_like(value) if torch.is_tensor(value) else 0
