"""What goes wrong in fairseq with several workers: none are started where there is no GPU, and none can resume."""

import functools

import torch
from fairseq.distributed import utils as distributed_utils
from fairseq.trainer import Trainer
from omegaconf import open_dict


def install():
    """Have fairseq refuse to start no worker, and have every worker read the checkpoint that it goes on from.

    fairseq starts one worker for each GPU, where there is none it ends as if all was well. And it has the first worker
    alone read the checkpoint and send it to the others, which torch since 2.6 refuses to unpack.
    """
    if hasattr(distributed_utils.call_main, "fairseqs"):
        return
    distributed_utils.call_main = _refusing_nobody(distributed_utils.call_main)
    Trainer.load_checkpoint = _reading_everywhere(Trainer.load_checkpoint)


def _refusing_nobody(call_main):
    @functools.wraps(call_main)
    def guarded_call_main(cfg, main, **kwargs):
        options = cfg.distributed_training
        starts = options.distributed_init_method is not None and not options.distributed_no_spawn
        if starts and torch.cuda.device_count() == 0:
            raise ValueError(
                "--distributed-init-method without --distributed-no-spawn starts one worker for each GPU, and there is "
                "no GPU: start each worker with --distributed-no-spawn and its --distributed-rank, or use "
                "scripts/train_cpu_workers.sh"
            )
        return call_main(cfg, main, **kwargs)

    guarded_call_main.fairseqs = call_main  # type: ignore[attr-defined]
    return guarded_call_main


def _reading_everywhere(load_checkpoint):
    @functools.wraps(load_checkpoint)
    def guarded_load_checkpoint(self, *args, **kwargs):
        with open_dict(self.cfg):
            self.cfg.checkpoint.load_checkpoint_on_all_dp_ranks = True
        return load_checkpoint(self, *args, **kwargs)

    return guarded_load_checkpoint
