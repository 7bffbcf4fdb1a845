import pytest
import torch
from fairseq.dataclass.configs import FairseqConfig
from fairseq.distributed import utils as distributed_utils
from omegaconf import OmegaConf

import mist_fairseq.tasks  # noqa: F401


@pytest.mark.parametrize(("method", "refused"), [("tcp://h:1", True), (None, False)])
def test_fairseq_does_not_start_nobody(monkeypatch, method, refused):
    """Without a GPU it would train nothing and end with status 0."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    cfg = OmegaConf.structured(FairseqConfig)
    cfg.distributed_training.distributed_world_size = 2 if method else 1
    cfg.distributed_training.distributed_init_method = method
    called = []
    if refused:
        with pytest.raises(ValueError, match="there is no GPU: start each worker with --distributed-no-spawn"):
            distributed_utils.call_main(cfg, called.append)
    else:
        distributed_utils.call_main(cfg, called.append)
    assert called == ([] if refused else [cfg])
    cfg.distributed_training.distributed_init_method, cfg.checkpoint.write_checkpoints_asynchronously = None, True
    with pytest.raises(ValueError, match=r"^--save-async .*: leave it out"):
        distributed_utils.call_main(cfg, called.append)
