"""fairseq starts one worker for each GPU. Where there is none it would start nobody, and end as if all was well."""

import functools

import torch
from fairseq.distributed import utils as distributed_utils


def guard_fairseq():
    """Have fairseq refuse to start no worker."""
    call_main = distributed_utils.call_main
    if hasattr(call_main, "unguarded"):
        return

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

    guarded_call_main.unguarded = call_main  # type: ignore[attr-defined]
    distributed_utils.call_main = guarded_call_main
