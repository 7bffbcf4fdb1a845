"""fairseq-train that tells what its worker did: ``python -m tests.end_to_end.telling FOLDER`` and fairseq's options.

FOLDER/RANK.pt gets its sentences, its glancing noise and the gradients it learnt from, of each update, then the last
parameters and how often it wrote a checkpoint; FOLDER/RANK.pid has its process. ``MISHAP="RANK UPDATE WHAT"`` lets
something happen to a worker before it takes part in an update: ``pause`` writes FOLDER/paused and waits for ever,
``nan`` makes its weights NaN, ``raise`` raises an exception. With ``SPAWN=1`` fairseq starts the workers by itself, as
it does for GPUs.
"""

import importlib
import os
import signal
import sys
from functools import partial
from pathlib import Path

import torch
from fairseq import checkpoint_utils
from fairseq.tasks import FairseqTask
from fairseq.trainer import Trainer
from torch import distributed

FOLDER = Path(sys.argv.pop(1))
sys.modules.pop("fairseq_cli.train", None)  # in a warm process, too, it sets logging up
train = importlib.import_module("fairseq_cli.train")
updates, trainers, saved = [], [], []

build, train_step, optimizer_step, main = Trainer.__init__, Trainer.train_step, FairseqTask.optimizer_step, train.main


def telling_build(self, *given):
    from mist_fairseq.mist import objective  # not before fairseq has imported the plugin

    def telling_noise(ids, size, seed):
        noise = draw(ids, size, seed)
        updates[-1]["noise"].update(zip(ids.tolist(), noise))
        return noise

    def telling_save(*given, **how):
        saved.append(0)
        return save(*given, **how)

    draw, objective.sentence_noise = objective.sentence_noise, telling_noise
    save, checkpoint_utils.torch_persistent_save = checkpoint_utils.torch_persistent_save, telling_save
    trainers.append(self)
    build(self, *given)


def telling_train_step(self, samples, *given):
    updates.append({"batches": [sample["id"].tolist() if sample.get("nsentences") else [] for sample in samples]})
    updates[-1]["noise"] = {}
    happen(self, *os.environ.get("MISHAP", "-1 -1 -").split())
    return train_step(self, samples, *given)


def happen(trainer, rank, update, what):
    if (int(rank), int(update)) != (trainer.data_parallel_rank, len(updates)):
        return
    if what == "nan":
        next(trainer.model.parameters()).data[:] = torch.nan
    elif what == "raise":
        raise ValueError("a mishap")
    else:
        (FOLDER / "paused").touch()
        signal.pause()


def telling_optimizer_step(self, optimizer, model, update_num):
    updates[-1]["gradients"] = [parameter.grad.clone() for parameter in model.parameters()]
    optimizer_step(self, optimizer, model, update_num)


def telling_main(cfg):
    rank = distributed.get_rank() if distributed.is_initialized() else 0
    (FOLDER / f"{rank}.pid").write_text(str(os.getpid()))
    main(cfg)
    told = {"updates": updates, "saved": len(saved), "model": trainers[0].get_model().state_dict()}
    torch.save(told, FOLDER / f"{rank}.pt")


Trainer.__init__, Trainer.train_step, train.main = telling_build, telling_train_step, telling_main
FairseqTask.optimizer_step = telling_optimizer_step
if "SPAWN" in os.environ:
    torch.cuda.device_count = lambda: 2  # fairseq starts no more than there are GPUs
    torch.multiprocessing.spawn = partial(torch.multiprocessing.start_processes, start_method="fork")  # keeps the above
train.cli_main()
