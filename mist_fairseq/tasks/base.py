"""What all tasks of mist_fairseq have in common."""

import logging
import math
import os
import sys
from functools import partial
from typing import Any

import sacrebleu
import torch
from fairseq import utils
from fairseq.data import data_utils
from fairseq.logging import metrics
from fairseq.tasks import FairseqTask
from omegaconf import DictConfig
from sacrebleu.metrics.bleu import BLEUScore
from torch import distributed

from mist_fairseq.data.dataset import load_pair
from mist_fairseq.data.dictionary import load_dictionary
from mist_fairseq.patches.text_input import install_interactive
from mist_fairseq.tasks import before_work
from mist_fairseq.tasks.options import check_options, check_preprocessing, needs_targets, running
from mist_fairseq.tasks.output import OutputFile

logger = logging.getLogger(__name__)

_KINDS, _ORDERS = ("counts", "totals"), range(4)  # of n-grams

OUTPUT = "write the best output of each sentence there, one a line, in the order of the input, in generation"

_PREPROCESS = (
    "the dictionary is a tokenizer and is not built from data: run fairseq-preprocess --task mist with "
    "--joined-dictionary --srcdict FILE: a pre-trained encoder's folder, its name on the hub, or a tokenizer's file"
)


class TokenizerTask(FairseqTask):
    """Stands before fairseq's class among the bases of a task. Arguments and results of methods are fairseq's.

    - The dictionary is a tokenizer, the same for source and target.
    - Training and validation stop at a NaN or infinite loss or gradient, and name the sentences; fairseq stops at
      gradients only. Losses are read where fairseq has just waited for the gradients' norm: a GPU waits once.
    - No batch of the training is empty. fairseq gives one to workers for whom an epoch has no more, and one whose
      update (``--update-freq``) ends with it reports a sample size of zero for all of the update, whose gradients
      count: it is too large. Here a sentence that does not count stands in its place.
    - A training that is killed and goes on ends like one that was left alone: what fairseq forgets is kept.
    """

    def __init__(self, cfg, *args, **kwargs):
        super().__init__(cfg, *args, **kwargs)
        self._collated: Any = None  # sentences' numbers of the batch that fairseq-interactive made last
        self._batches = []  # sentences' ids and loss of each batch since the last update
        self._max_update = 0
        install_interactive()
        self._criterion = None
        if (whole := _whole(cfg)) is not None:
            # By default the first worker sends it to the others, and torch since 2.6 refuses to unpack what they get.
            whole.checkpoint.load_checkpoint_on_all_dp_ranks = True
            if getattr(whole.optimizer, "_name", None) == "bert_adamw":  # --fp16 would make one vector of all matrices
                whole.common.fp16_no_flatten_grads = True
            self._max_update = whole.optimization.max_update
        path = getattr(cfg, "output", None)
        self.output = OutputFile(path, streams=running() == "interactive") if path else None

    @classmethod
    def setup_task(cls, cfg, from_checkpoint=False, **kwargs):
        """The task, with the dictionary that fairseq-preprocess left beside the data; ValueError if it is not there."""
        if (whole := _whole(cfg)) is not None:
            check_options(whole, cfg)
            if not from_checkpoint:
                before_work.check(whole)
        folder = utils.split_paths(cfg.data)[0] if cfg.data else ""
        if not os.path.isdir(folder):
            raise ValueError(f"no data folder {folder!r}: run fairseq-preprocess --task mist first")
        pair = data_utils.infer_language_pair(folder)
        if cfg.source_lang == pair[1] or cfg.target_lang == pair[0]:  # the other way round
            pair = pair[::-1]
        cfg.source_lang, cfg.target_lang = cfg.source_lang or pair[0], cfg.target_lang or pair[1]
        if cfg.source_lang is None or cfg.target_lang is None:
            raise ValueError(f"cannot tell source from target in {folder}: give --source-lang and --target-lang")
        names = [f"dict.{lang}.txt" for lang in (cfg.source_lang, cfg.target_lang)]
        # fairseq-preprocess --only-source writes one.
        there = [name for name in names if os.path.exists(os.path.join(folder, name))] or names
        source, target = (load_dictionary(os.path.join(folder, name)) for name in (there[0], there[-1]))
        if source != target:
            raise ValueError(f"{' and '.join(names)} of {cfg.data} differ. One is damaged, or {_PREPROCESS}")
        logger.info("dictionary: %s types", f"{len(source):,}")
        return cls(cfg, source, target)

    @classmethod
    def load_dictionary(cls, filename):
        """The dictionary for fairseq-preprocess; errors as of ``load_dictionary``, and options that are refused."""
        if running() == "preprocess":
            check_preprocessing()
        return load_dictionary(filename)

    @classmethod
    def build_dictionary(cls, filenames, workers=1, threshold=-1, nwords=-1, padding_factor=8):
        """Refuse to count a vocabulary from data."""
        raise ValueError(_PREPROCESS)

    def load_pair(self, split: str, epoch: int, combine: bool):
        """As of ``data.dataset``; ValueError if there are no targets and what runs needs them."""
        source, target = load_pair(self.cfg, self.source_dictionary, split, epoch, combine)
        if target is None and (user := needs_targets(self.cfg)):
            raise ValueError(
                f"the split {split} of {self.cfg.data} has no targets, which {user} needs: run fairseq-preprocess "
                "without --only-source"
            )
        return source, target

    def build_criterion(self, *args, **kwargs):
        """As fairseq does."""
        self._criterion = super().build_criterion(*args, **kwargs)
        return self._criterion

    def begin_epoch(self, epoch, model):
        """ValueError before the first update if validation will not give ``--best-checkpoint-metric``."""
        super().begin_epoch(epoch, model)
        if self._criterion is not None and (whole := _whole(self.cfg)):
            before_work.check_metric(self, model, self._criterion, whole)
            self._criterion = None

    def get_batch_iterator(self, dataset, *args, **kwargs):
        """Batches of a data set; none of the training is empty."""
        iterator = super().get_batch_iterator(dataset, *args, **kwargs)
        # A data loader kept for the next epoch would go on as it began: after --curriculum, without shuffling.
        iterator.reuse_dataloader = False
        if dataset is self.datasets.get(self.cfg.train_subset):
            iterator.collate_fn = partial(_collate, dataset)
        if self.output is not None:
            self.output.expect(len(dataset), sum(map(len, iterator.frozen_batches)))
            if running() == "interactive":
                iterator.collate_fn = partial(self._remember, dataset)
        return iterator

    def inference_step(self, generator, models, sample, *args, **kwargs):
        """The hypotheses of a batch; the best go into ``--output``."""
        hypotheses = super().inference_step(generator, models, sample, *args, **kwargs)
        if self.output is not None:
            ignored = getattr(generator, "symbols_to_strip_from_output", {generator.eos})
            string = partial(self.target_dictionary.string, extra_symbols_to_ignore=ignored)
            texts = (string(ranked[0]["tokens"].int().cpu()) for ranked in hypotheses)
            self.output.add(dict(zip(sample.get("id", self._collated).tolist(), texts)))
        return hypotheses

    def _remember(self, dataset, samples: list) -> dict:
        """Make a batch, and keep its sentences' numbers, which fairseq-interactive does not hand on."""
        batch = dataset.collater(samples)
        self._collated = batch["id"]
        return batch

    def train_step(self, sample, model, criterion, optimizer, update_num, ignore_grad=False, **kwargs):
        """Forward and backward of a batch; nothing comes of one without sentences."""
        if 0 < self._max_update <= update_num:  # fairseq would find out after one more update, and save it
            logger.info("the training ended before, at %d updates: to go on give a higher --max-update", update_num)
            if running() == "train":
                # Python's own end aborts, with status 134, where a thread of fairseq's is at work on a batch.
                for stream in (sys.stdout, sys.stderr):
                    stream.flush()
                os._exit(0)
            sys.exit(0)
        failure = sys.exception()
        # While fairseq handles this error it runs the batches again, to log the first module with a NaN.
        runs_again = isinstance(failure, FloatingPointError)
        if isinstance(failure, FloatingPointError) and self._batches:
            failure.args = (self._explain(failure, update_num),)
            logger.error(failure)
            self._batches.clear()
        is_empty = sample["nsentences"] == 0
        loss, sample_size, logging_output = super().train_step(
            sample, model, criterion, optimizer, update_num, ignore_grad or is_empty, **kwargs
        )
        if not runs_again:
            self._batches.append((sample["id"], loss.detach()))
        if is_empty:
            sample_size, logging_output = 0, {key: 0 * value for key, value in logging_output.items()}
        return loss, sample_size, logging_output

    def optimizer_step(self, optimizer, model, update_num):
        """Learn from the gradients; FloatingPointError, as fairseq's of gradients, where a loss is NaN or infinite."""
        losses = [loss for _, loss in self._batches]  # none where this worker ran out of memory and others did not
        if losses and not torch.stack(losses).isfinite().all():
            raise FloatingPointError("the loss is not finite")
        self._batches.clear()
        super().optimizer_step(optimizer, model, update_num)

    def _explain(self, failure: FloatingPointError, update_num: int) -> str:
        """The message of *failure*, with the sentences of the update."""
        worker = f", worker {distributed.get_rank()}" if distributed.is_initialized() else ""
        losses = [(sorted(ids.tolist()), float(loss)) for ids, loss in self._batches]
        wrong = [loss for loss in losses if not math.isfinite(loss[1])]
        cause = "; ".join(f"the loss is {loss} in the batch of the sentences {ids}" for ids, loss in wrong)
        if not wrong:
            cause = f"the losses are finite, of the sentences {[number for ids, _ in losses for number in ids]}"
            cause += "; another worker's may not be" if worker else ""
        return (
            f"{failure} at update {update_num + 1}{worker}: {cause} (lines of the training data, counted from 0). "
            "Nothing of this update was learnt: look at the sentences, or lower --lr, and go on from checkpoint_last.pt"
        )

    def valid_step(self, sample, model, criterion):
        """Loss of a batch; FloatingPointError if it is not finite: fairseq could not tell which checkpoint is best."""
        result = super().valid_step(sample, model, criterion)
        loss = float(result[0])
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the loss is {loss} in the batch of the sentences {sorted(sample['id'].tolist())} (lines of the "
                "validation data, counted from 0): look at them, or go on from a checkpoint before with a lower --lr"
            )
        return result

    def reduce_metrics(self, logging_outputs, criterion):
        """Log the criterion's figures, and BLEU and ROUGE-L over all batches of a validation that have their counts."""
        FairseqTask.reduce_metrics(self, logging_outputs, criterion)
        names = {name for log in logging_outputs for name in log if name.startswith(("_bleu_", "_rouge_l_"))}
        for name in sorted(names):
            # Plain numbers: a checkpoint with numpy arrays among its metrics would not load safely.
            metrics.log_scalar_sum(name, sum(float(log.get(name, 0)) for log in logging_outputs))
        if "_bleu_sys_len" in names:
            metrics.log_derived("bleu", _bleu)
        if "_rouge_l_sum" in names:
            metrics.log_derived("rouge_l", _rouge_l)

    def get_checkpoint_dict(self) -> dict:
        """What fairseq saves: the best validation, and the number of validations since then, for ``--patience``."""
        counter = _patience_counter()
        return {type(self).__name__: {name: getattr(counter, name, None) for name in ("best", "num_runs")}}

    def set_checkpoint_dict(self, state: dict):
        """Take over what ``get_checkpoint_dict`` gave, where training goes on."""
        if (counter := _patience_counter()) is not None:
            counter.best, counter.num_runs = state["best"], state["num_runs"]


def bleu_counts(bleu: BLEUScore) -> dict[str, int]:
    """What ``reduce_metrics`` adds up of a batch: n-gram counts and lengths, under fairseq's names."""
    counts = {f"_bleu_{kind}_{n}": getattr(bleu, kind)[n] for kind in _KINDS for n in _ORDERS}
    return {**counts, "_bleu_sys_len": bleu.sys_len, "_bleu_ref_len": bleu.ref_len}


def _bleu(meters) -> float:
    """Corpus BLEU from summed n-gram counts."""
    counts, totals = ([int(meters[f"_bleu_{kind}_{n}"].sum) for n in _ORDERS] for kind in _KINDS)
    outputs, references = (int(meters[f"_bleu_{side}_len"].sum) for side in ("sys", "ref"))
    bleu = sacrebleu.BLEU.compute_bleu(counts, totals, outputs, references, smooth_method="exp")
    return round(float(bleu.score), 2)


def _rouge_l(meters) -> float:
    """Mean ROUGE-L of the sentences, in percent."""
    return round(100 * meters["_rouge_l_sum"].sum / meters["_rouge_l_count"].sum, 2)


def _whole(cfg) -> Any:
    """fairseq's configuration that a task's is a part of; None where it is none."""
    whole: Any = cfg._get_parent() if isinstance(cfg, DictConfig) else None
    return whole if whole is not None and "checkpoint" in whole else None


def _collate(dataset, samples: list) -> dict:
    return dataset.collater(samples) if samples else {**dataset.collater([dataset[0]]), "nsentences": 0}


def _patience_counter():
    """fairseq's function that counts for ``--patience``, with the count in its attributes; None in other programs."""
    # python -m fairseq_cli.train is the first module, fairseq-train the second.
    modules = map(sys.modules.get, ("__main__", "fairseq_cli.train"))
    return next(filter(None, (getattr(module, "should_stop_early", None) for module in modules)), None)
