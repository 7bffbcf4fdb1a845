"""A training that was killed and goes on ends like one that was left alone."""

import sys
from typing import Any

from fairseq.tasks import FairseqTask
from omegaconf import DictConfig


class Resumes(FairseqTask):
    """Mixed into a task, before its class: keeps what fairseq forgets of a training when its process ends."""

    def __init__(self, cfg, *args, **kwargs):
        super().__init__(cfg, *args, **kwargs)
        whole: Any = cfg._get_parent() if isinstance(cfg, DictConfig) else None  # fairseq's configuration, task and all
        if whole is not None and "checkpoint" in whole:
            # By default the first worker reads the checkpoint and sends it to the others, and torch since 2.6 refuses
            # to unpack what they get.
            whole.checkpoint.load_checkpoint_on_all_dp_ranks = True

    def get_batch_iterator(self, dataset, *args, **kwargs):
        """Batches of a data set. Args and result: as fairseq's."""
        iterator = super().get_batch_iterator(dataset, *args, **kwargs)
        # A data loader kept for the next epoch would go on as it began: after --curriculum, without shuffling.
        iterator.reuse_dataloader = False
        return iterator

    def get_checkpoint_dict(self) -> dict:
        """What fairseq saves: the best validation, and the number of validations since then, for ``--patience``."""
        counter = _patience_counter()
        return {type(self).__name__: {name: getattr(counter, name, None) for name in ("best", "num_runs")}}

    def set_checkpoint_dict(self, state: dict):
        """Take over what ``get_checkpoint_dict`` gave, where training goes on."""
        counter = _patience_counter()
        if counter is not None:
            counter.best, counter.num_runs = state["best"], state["num_runs"]


def _patience_counter():
    """fairseq's function that counts for ``--patience``, with the count in its attributes; None in other programs."""
    # python -m fairseq_cli.train is the first module, fairseq-train the second.
    modules = map(sys.modules.get, ("__main__", "fairseq_cli.train"))
    return next(filter(None, (getattr(module, "should_stop_early", None) for module in modules)), None)
