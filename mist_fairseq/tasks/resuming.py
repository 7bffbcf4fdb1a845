"""A training that was killed ends where one that was left alone ends."""

import sys

from fairseq.tasks import FairseqTask


class Resumes(FairseqTask):
    """Mixed into a task, before its class: what fairseq forgets of a training between two of its processes."""

    def get_batch_iterator(self, dataset, *args, **kwargs):
        """Batches of a data set. Args and result: as fairseq's."""
        iterator = super().get_batch_iterator(dataset, *args, **kwargs)
        # Kept from one epoch to the next, a data loader would go on as it began: after --curriculum, without shuffling.
        iterator.reuse_dataloader = False
        return iterator

    def get_checkpoint_dict(self) -> dict:
        """For fairseq to save: the best validation and how many have been no better since, for ``--patience``."""
        found = {name: getattr(_counter(), name, None) for name in ("best", "num_runs")}
        return {type(self).__name__: found}

    def set_checkpoint_dict(self, state: dict):
        """The same, which fairseq has loaded, where training goes on."""
        counter = _counter()
        if counter is not None:
            counter.best, counter.num_runs = state["best"], state["num_runs"]


def _counter():
    """The function that counts for ``--patience``, and keeps the count as its attributes."""
    # The first under python -m fairseq_cli.train, the second under fairseq-train.
    modules = map(sys.modules.get, ("__main__", "fairseq_cli.train"))
    return next(filter(None, (getattr(module, "should_stop_early", None) for module in modules)), None)
