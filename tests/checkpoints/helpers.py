"""A checkpoint as fairseq-train writes it, of an untrained model."""

from pathlib import Path

import torch
from fairseq.dataclass.configs import FairseqConfig
from omegaconf import OmegaConf

from mist_fairseq.checkpoints.loading import untrained_state
from mist_fairseq.tasks.mist_task import MistTaskConfig
from tests.helpers import tiny_config, tiny_model


def write_checkpoint(folder: Path) -> dict:
    """Write ``checkpoint.pt`` and its dictionaries, and give back what is in the checkpoint."""
    model = tiny_model()
    for language in ("src", "tgt"):
        model.dictionary.save(str(folder / f"dict.{language}.txt"))
    task = MistTaskConfig(data=str(folder), source_lang="src", target_lang="tgt")
    task.max_source_positions, task.max_target_positions = model.limits.source, model.limits.target
    cfg = FairseqConfig(model=tiny_config(), task=task)
    cfg.model._name, cfg.task._name = "mist_tiny", "mist"
    options = OmegaConf.to_container(OmegaConf.structured(cfg), resolve=True, enum_to_str=True)
    state = {"args": None, "cfg": options, "model": model.state_dict(), **untrained_state()}
    torch.save(state, folder / "checkpoint.pt")
    return state
