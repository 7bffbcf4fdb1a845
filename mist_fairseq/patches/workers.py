"""fairseq's start of workers, one for each GPU that there is."""

import torch
from fairseq.distributed import utils as distributed_utils

from mist_fairseq.patches import replaces


@replaces(distributed_utils, "call_main")
def _call_main(call_main, cfg, main, **kwargs):
    options = cfg.distributed_training
    starts = options.distributed_init_method is not None and not options.distributed_no_spawn
    if starts and torch.cuda.device_count() == 0:
        raise ValueError(
            "--distributed-init-method without --distributed-no-spawn starts one worker for each GPU, and there is no "
            "GPU: start each worker with --distributed-no-spawn and its --distributed-rank, or use "
            "scripts/train_cpu_workers.sh"
        )
    if cfg.checkpoint.write_checkpoints_asynchronously:  # fairseq would end before its task could say so, with status 0
        name = "--save-async (--write-checkpoints-asynchronously)"
        raise ValueError(f"{name} leaves no checkpoint_best.pt beside checkpoint_last.pt: leave it out")
    return call_main(cfg, main, **kwargs)
