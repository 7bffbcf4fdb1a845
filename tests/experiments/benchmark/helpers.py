"""Systems small enough for tests."""

import torch
from omegaconf import OmegaConf

from mist_fairseq.experiments.benchmark.inputs import Entry
from mist_fairseq.experiments.benchmark.systems import load_system

SIZES = " ".join(
    f"--{side}-layers 1 --{side}-embed-dim 16 --{side}-ffn-embed-dim 32 --{side}-attention-heads 2"
    for side in ("encoder", "decoder")
)
LEV = f"--task mist_translation_lev --share-all-embeddings {SIZES} --arch"
TRANSFORMER = f"--task mist_translation --arch transformer --share-all-embeddings {SIZES}"
BART = f"--task mist_translation --arch bart_base {SIZES}"
MIST = (
    "--task mist --arch mist_tiny --encoder-layers 1 --encoder-embed-dim 16 --encoder-ffn-embed-dim 32 "
    "--encoder-attention-heads 2"
)


def entry(data, arguments, name="system", options=None, **keys) -> Entry:
    return Entry(name, arguments=arguments, data=data, options=options or {}, **keys)


def load(entry, forced=False, larger=1):
    """On the CPU, always with the same weights; *larger* ones make outputs that differ from each other."""
    torch.manual_seed(0)
    system = load_system(entry, forced, torch.device("cpu"))
    for parameter in system.model.parameters() if larger > 1 else ():
        parameter.data *= larger
    system.load_data("test")
    return system


def save_checkpoint(system, path):
    """As fairseq-train does."""
    cfg = OmegaConf.to_container(system.cfg, resolve=True, enum_to_str=True)
    state = {"args": None, "cfg": cfg, "model": system.model.state_dict(), "task_state": system.task.state_dict()}
    history = {"criterion_name": "", "optimizer_name": "", "lr_scheduler_state": {"best": None}, "num_updates": 0}
    torch.save(state | {"optimizer_history": [history], "extra_state": {}, "last_optimizer_state": None}, path)


def watch(monkeypatch, owner, method, note):
    """Call *note* with whatever a method gets, before each call."""
    usual = getattr(owner, method)
    monkeypatch.setattr(owner, method, lambda *given: (note(*given), usual(*given))[1])
