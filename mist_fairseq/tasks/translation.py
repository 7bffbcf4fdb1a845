"""fairseq's translation tasks over our dictionaries: the baselines read the data that ``--task mist`` reads."""

import logging
from dataclasses import dataclass
from typing import Optional

import numpy as np
from fairseq import utils
from fairseq.data import LanguagePairDataset, ListDataset, PrependTokenDataset, TruncateDataset
from fairseq.iterative_refinement_generator import IterativeRefinementGenerator
from fairseq.models import ARCH_MODEL_REGISTRY
from fairseq.models.nat import CMLMNATransformerModel, FairseqNATModel, NATransformerModel
from fairseq.tasks import register_task
from fairseq.tasks.translation import TranslationConfig, TranslationTask
from fairseq.tasks.translation_lev import TranslationLevenshteinConfig, TranslationLevenshteinTask

from mist_fairseq.data.dataset import AllBatches, cut, log_cut, random_order
from mist_fairseq.data.dictionary import TokenizerDictionary
from mist_fairseq.generate.decoding import option
from mist_fairseq.models.mist_model import MistModel
from mist_fairseq.models.nar_generator import refuse_options
from mist_fairseq.tasks.base import OUTPUT, TokenizerTask, bleu_counts

logger = logging.getLogger(__name__)

# What fairseq's iterative refinement has of its generation options.
_REFINEMENT = {
    *("iter_decode_eos_penalty", "iter_decode_with_beam", "iter_decode_max_iter", "iter_decode_force_max_iter"),
    *("iter_decode_with_external_reranker", "decoding_format", "print_alignment", "retain_dropout"),
    "retain_dropout_modules",
}


class PairDataset(AllBatches, LanguagePairDataset):
    """fairseq's pairs; no sentence is left out of the batches."""

    def ordered_indices(self):
        """By source length, then target length; sentences of equal lengths in the same random order in each process."""
        order = random_order(len(self), self.shuffle)
        order = order if self.tgt_sizes is None else order[np.argsort(self.tgt_sizes[order], kind="stable")]
        return order[np.argsort(self.src_sizes[order], kind="stable")]


class _Cut(TruncateDataset):
    """Sentences of at most so many tokens; one that is longer keeps its [SEP]."""

    def __getitem__(self, index):
        return cut(self.dataset[index], self.truncation_length)


class _Translates(TokenizerTask):
    """What both tasks change in fairseq's: the dictionary, the cut of long sources, BLEU on readable text."""

    def __init__(self, cfg, src_dict: TokenizerDictionary, tgt_dict: TokenizerDictionary):
        super().__init__(cfg, src_dict, tgt_dict)
        self.state.merge_state_dict({"dictionary": src_dict.tokenizer.fingerprint()})  # goes into each checkpoint

    def load_state_dict(self, state_dict):
        """Refuse a checkpoint with another vocabulary than the data's."""
        if state_dict.get("dictionary", self.state.dictionary) != self.state.dictionary:
            other = f"the data in {self.cfg.data} was binarized with another vocabulary than the checkpoint's"
            raise ValueError(f"{other}: run fairseq-preprocess with --srcdict and the dict.*.txt of the training data")
        super().load_state_dict(state_dict)

    def load_dataset(self, split, epoch=1, combine=False, **kwargs):
        """Load one split; sources are cut, as the mist task's are. Errors as of ``load_pair``."""
        source, target = self.load_pair(split, epoch, combine)
        self.datasets[split] = self._pairs(source, target, shuffle=split == self.cfg.train_subset)

    def build_dataset_for_inference(self, src_tokens, src_lengths, constraints=None):
        """A data set of sources alone, for fairseq-interactive; they are cut, too. Args: as fairseq's."""
        super().build_dataset_for_inference(src_tokens, src_lengths, constraints)  # refuses constraints it cannot do
        return self._pairs(ListDataset(src_tokens, src_lengths), None, constraints=constraints)

    def _pairs(self, source, target, **options) -> PairDataset:
        starts_with_bos = isinstance(self, TranslationLevenshteinTask)
        limit = self.cfg.max_source_positions - starts_with_bos
        log_cut(int((np.asarray(source.sizes) > limit).sum()), len(source), self.cfg.max_source_positions)
        source = _Cut(source, limit)
        if starts_with_bos:
            source = PrependTokenDataset(source, self.src_dict.bos())
            target = target and PrependTokenDataset(target, self.tgt_dict.bos())
        return PairDataset(
            *(source, source.sizes, self.src_dict),
            *(target, None if target is None else target.sizes, self.tgt_dict),
            left_pad_source=self.cfg.left_pad_source,
            left_pad_target=self.cfg.left_pad_target,
            **options,
        )

    def build_model(self, cfg, from_checkpoint=False):
        """Build the model; when training starts, with the weights of ``--pretrained`` if it leaves them to the task."""
        kind, refines = ARCH_MODEL_REGISTRY.get(cfg._name, object), isinstance(self, TranslationLevenshteinTask)
        if issubclass(kind, MistModel):
            raise ValueError(f"{cfg._name} is a model of --task mist: give that, or another --arch or checkpoint")
        if issubclass(kind, FairseqNATModel) != refines and kind.__module__.startswith("fairseq."):
            other = "mist_translation" if refines else "mist_translation_lev"
            raise ValueError(f"{cfg._name} is a model of --task {other}: give that, or another --arch or checkpoint")
        model = super().build_model(cfg, from_checkpoint)
        if hasattr(model, "load_pretrained") and cfg.pretrained and not from_checkpoint:
            model.load_pretrained(cfg.pretrained, self.src_dict)
        # What generates is not told the limit that a checkpoint was trained with.
        self.cfg.max_source_positions = utils.resolve_max_positions(self.max_positions(), model.max_positions())[0]
        return model

    def build_generator(self, models, args, *others, **options):
        """The generator of the model if it has one, otherwise fairseq's. Args: as fairseq's."""
        own = getattr(models[0], "build_generator", None)
        if own is not None:
            return own(self.target_dictionary, args)
        generator = super().build_generator(models, args, *others, **options)
        for model in models:
            if self.cfg.eval_bleu and hasattr(model, "set_beam_size"):
                # Undo what fairseq told BART's attention, to keep one of every --beam sources, also in training.
                model.set_beam_size(1)
                model.encoder.__dict__.pop("reorder_encoder_out", None)
        return generator


@dataclass
class MistTranslationConfig(TranslationConfig):
    """fairseq's, with the paper's limit."""

    max_source_positions: int = option(464, "most source tokens, special ones counted; longer ones are cut")
    output: Optional[str] = option(None, OUTPUT)


@register_task("mist_translation", dataclass=MistTranslationConfig)
class MistTranslationTask(_Translates, TranslationTask):
    """``translation`` over our dictionaries: the autoregressive baselines. Args: as fairseq's."""


@dataclass
class MistTranslationLevenshteinConfig(MistTranslationConfig, TranslationLevenshteinConfig):
    """fairseq's, with the same limit."""


@register_task("mist_translation_lev", dataclass=MistTranslationLevenshteinConfig)
class MistTranslationLevenshteinTask(_Translates, TranslationLevenshteinTask):
    """``translation_lev`` over our dictionaries: fairseq's NAR and semi-NAR baselines. Args: as fairseq's."""

    def build_model(self, cfg, from_checkpoint=False):
        """As of the other task; a model that takes no deletions gets its paper's noise in the place of the default."""
        model = super().build_model(cfg, from_checkpoint)
        if self.cfg.noise == "random_delete" and isinstance(model, NATransformerModel):
            self.cfg.noise = "random_mask" if isinstance(model, CMLMNATransformerModel) else "full_mask"
            logger.info("%s cannot learn from --noise random_delete: it gets %s", cfg._name, self.cfg.noise)
        return model

    def build_generator(self, models, args, *others, **options):
        """As of the other task; ValueError for an option that iterative refinement lacks."""
        generator = super().build_generator(models, args, *others, **options)
        if isinstance(generator, IterativeRefinementGenerator):
            refuse_options(args, "iterative refinement", _REFINEMENT, "see the --iter-decode options")
        return generator

    def valid_step(self, sample, model, criterion):
        """Losses, and with ``--eval-bleu``, which fairseq's task ignores, the n-gram counts of generated text."""
        loss, sample_size, logging_output = super().valid_step(sample, model, criterion)
        if self.cfg.eval_bleu:
            logging_output |= bleu_counts(self._inference_with_bleu(self.sequence_generator, sample, model))
        return loss, sample_size, logging_output
