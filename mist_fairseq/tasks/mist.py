"""The fairseq task: data, validation scores and the generator."""

import argparse
import logging
import os
import re
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any, Optional

import sacrebleu
from fairseq import utils
from fairseq.data import data_utils
from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from fairseq.models import ARCH_MODEL_REGISTRY
from fairseq.tasks import register_task
from omegaconf import II, open_dict

from mist_fairseq.data.dataset import MistDataset, load_pair
from mist_fairseq.data.dictionary import TokenizerDictionary, load_dictionary
from mist_fairseq.engines import engines
from mist_fairseq.generate.decoding import DECODINGS, Decoding
from mist_fairseq.mist.config import PositionLimits
from mist_fairseq.models.generator import NARGenerator
from mist_fairseq.models.mist import PRECISIONS, MistModel
from mist_fairseq.release.folder import is_released, load_released, released_sizes
from mist_fairseq.scoring.rouge_l import rouge_l
from mist_fairseq.tasks.base import TokenizerTask, check_same
from mist_fairseq.tasks.validation import bleu_counts

logger = logging.getLogger(__name__)

_SAME = {option.name: option.metadata for option in fields(Decoding)}  # the help texts of what is the same there
_WORD = re.compile(r"\w+|[^\w\s]")  # validation scores words and punctuation marks apart


@dataclass
class MistTaskConfig(FairseqDataclass):
    """Position limits are the paper's ("Experimental Setting")."""

    data: str = field(default="", metadata={"help": "folder that fairseq-preprocess wrote; several joined by ':'"})
    source_lang: Optional[str] = field(default=None, metadata={"help": "source suffix", "argparse_alias": "-s"})
    target_lang: Optional[str] = field(default=None, metadata={"help": "target suffix", "argparse_alias": "-t"})
    max_source_positions: int = field(
        default=464, metadata={"help": "most source tokens, [CLS] and [SEP] counted; longer ones are cut"}
    )
    max_target_positions: int = field(
        default=48, metadata={"help": "most target tokens, [SEP] counted; longer ones are cut for the loss"}
    )
    precision: PRECISIONS = field(
        default="fp32",
        metadata={
            "help": "of matrix products; in training by autocast, with weights and losses in fp32. int8 is for "
            "generation with ONNX Runtime"
        },
    )
    accelerate: ChoiceEnum(["auto", *engines()]) = field(  # type: ignore[valid-type]
        default="auto",
        metadata={
            "help": "what runs the model in generation: none is PyTorch as it is; auto is onnxruntime on a CPU where "
            "it is installed and has the precision, else none"
        },
    )
    length_guesses: int = field(default=0, metadata={"help": argparse.SUPPRESS})  # of version 0.1
    eval_bleu: bool = field(default=False, metadata={"help": "validate with sacrebleu on generated text"})
    eval_rouge: bool = field(default=False, metadata={"help": "validate with ROUGE-L on generated text"})
    eval_bleu_print_samples: bool = field(default=False, metadata={"help": "log one output of each validation batch"})
    decoding: ChoiceEnum(list(DECODINGS)) = field(  # type: ignore[valid-type]
        default="single-pass", metadata=_SAME["decoding"]
    )
    decoding_iterations: Optional[int] = field(default=None, metadata=_SAME["iterations"])
    length_beam: int = field(default=1, metadata={"help": "decode this many of the likeliest lengths, keep the best"})
    min_length: int = field(default=1, metadata=_SAME["min_length"])
    max_length: Optional[int] = field(default=None, metadata=_SAME["max_length"])
    keep_repeats: bool = field(default=False, metadata=_SAME["keep_repeats"])
    train_subset: str = II("dataset.train_subset")
    dataset_impl: Optional[str] = II("dataset.dataset_impl")


@register_task("mist", dataclass=MistTaskConfig)
class MistTask(TokenizerTask):
    """Fine-tunes a BERT-like encoder for non-autoregressive generation, and generates with it."""

    def __init__(self, cfg: MistTaskConfig, dictionary: TokenizerDictionary):
        super().__init__(cfg)
        self.dictionary = dictionary
        self.model: Any = None
        for name in ("max_source_positions", "max_target_positions"):
            if cfg[name] < 3:
                raise ValueError(f"--{name.replace('_', '-')} is {cfg[name]}, expected at least 3")
        self.limits = PositionLimits(cfg.max_source_positions, cfg.max_target_positions)

    @classmethod
    def setup_task(cls, cfg: MistTaskConfig, **kwargs):
        """Load the dictionary that fairseq-preprocess left beside the data.

        Raises:
            ValueError: there is no data folder, source and target have different dictionaries, or an option is gone.
        """
        if cfg.length_guesses and not kwargs.get("from_checkpoint"):
            raise ValueError(
                "--length-guesses is gone since version 0.2: guessing saved time only in fp32 with one sentence at a "
                "time (results/speed); leave it out, the output is the same"
            )
        folder = utils.split_paths(cfg.data)[0] if cfg.data else ""
        if not os.path.isdir(folder):
            raise ValueError(f"no data folder {folder!r}: run fairseq-preprocess --task mist first")
        if cfg.source_lang is None or cfg.target_lang is None:
            inferred = data_utils.infer_language_pair(folder)
            with open_dict(cfg):
                cfg.source_lang = cfg.source_lang or inferred[0]
                cfg.target_lang = cfg.target_lang or inferred[1]
        if cfg.source_lang is None or cfg.target_lang is None:
            raise ValueError(f"cannot tell source from target in {folder}: give --source-lang and --target-lang")
        source, target = (
            load_dictionary(os.path.join(folder, f"dict.{lang}.txt")) for lang in (cfg.source_lang, cfg.target_lang)
        )
        check_same(source, target, cfg)
        logger.info("dictionary: %s types", f"{len(source):,}")
        return cls(cfg, source)

    # Of source and of target: the tokenizer.
    source_dictionary = target_dictionary = property(lambda self: self.dictionary)

    def load_dataset(self, split, epoch=1, combine=False, **kwargs):
        """Load one split, for instance ``train``.

        Raises:
            FileNotFoundError: the split is not there.
            ValueError: source and target have different numbers of lines, or the model cannot take the limits.
        """
        if split == self.cfg.train_subset and self.model is not None:
            if str(self.cfg.precision) == "int8":
                raise ValueError("--precision int8 is for generation: train with fp32 or bf16")
            self.model.check_limits()  # a resumed checkpoint has brought its own by now
        source, target = load_pair(self.cfg, self.dictionary, split, epoch, combine)
        is_train = split == self.cfg.train_subset
        sizes = None if target is None else target.sizes
        dataset = MistDataset(source, source.sizes, target, sizes, self.dictionary, self.limits, shuffle=is_train)
        sources, targets = dataset.truncated()
        if is_train or sources or targets:
            logger.info(
                "%s: %s of %s sources are cut to %d tokens, %s targets to %d (for the loss only)",
                *(split, f"{sources:,}", f"{len(dataset):,}", self.limits.source, f"{targets:,}", self.limits.target),
            )
        self.datasets[split] = dataset

    def build_dataset_for_inference(self, src_tokens, src_lengths, constraints=None, **kwargs):
        """A data set of sources alone, for fairseq-interactive."""
        if constraints is not None:
            raise ValueError("--constraints does not work: a non-autoregressive model cannot be constrained")
        return MistDataset(src_tokens, src_lengths, None, None, self.dictionary, self.limits)

    def max_positions(self):
        """The limits of source and target."""
        return self.limits.source, self.limits.target

    def build_model(self, cfg, from_checkpoint=False):
        """Build the model; when training starts, with the sizes and weights of ``--pretrained``."""
        kind = ARCH_MODEL_REGISTRY.get(cfg._name)
        if kind is None or not issubclass(kind, MistModel):  # fairseq would build any, of any size
            raise ValueError(
                f"{cfg._name} is no architecture of --task mist: take another --arch, or the model's own --task"
            )
        start_from: str = "" if from_checkpoint else cfg.pretrained or ""
        released = bool(start_from) and is_released(start_from)
        if start_from:
            if released:
                sizes = released_sizes(start_from, kind.architecture, self.dictionary.tokenizer)
            else:
                sizes = kind.pretrained_sizes(start_from, self.dictionary)
            logger.info("sizes of %s: %s", start_from, sizes)
            with open_dict(cfg):
                cfg.update(sizes)  # in place: this is the configuration that checkpoints will store
        self.model = model = super().build_model(cfg, from_checkpoint)
        if released:
            load_released(model.encoder, start_from)
        elif start_from:
            model.load_pretrained(start_from)
        if self.cfg.eval_bleu or self.cfg.eval_rouge:
            self.generator = self.build_generator([model], None)
        return model

    def build_generator(self, models, args, seq_gen_cls=None, extra_gen_cls_kwargs=None, prefix_allowed_tokens_fn=None):
        """The generator of one model; *args* are fairseq's generation options, or None for their defaults.

        Raises:
            ValueError: an option cannot work for a non-autoregressive model; names it.
        """
        if prefix_allowed_tokens_fn is not None or (extra_gen_cls_kwargs or {}).get("lm_model") is not None:
            raise ValueError("constrained decoding and language-model fusion need an autoregressive model")
        names = ("length_beam", "min_length", "max_length", "keep_repeats")
        decoding = Decoding(
            decoding=str(self.cfg.decoding),
            iterations=self.cfg.decoding_iterations,
            nbest=getattr(args, "nbest", 1),
            **{name: getattr(self.cfg, name) for name in names},
        )
        return NARGenerator(models, self.dictionary, decoding, args)

    def valid_step(self, sample, model, criterion):
        """Losses; with ``--eval-bleu`` the n-gram counts of generated text, with ``--eval-rouge`` its ROUGE-L."""
        loss, sample_size, logging_output = super().valid_step(sample, model, criterion)
        if not (self.cfg.eval_bleu or self.cfg.eval_rouge):
            return loss, sample_size, logging_output
        hypotheses, references = self._generate_text(sample, model)
        if self.cfg.eval_bleu_print_samples:
            logger.info("example hypothesis: %s", hypotheses[0])
            logger.info("example reference: %s", references[0])
        if self.cfg.eval_bleu:
            logging_output.update(bleu_counts(sacrebleu.corpus_bleu(hypotheses, [references])))
        if self.cfg.eval_rouge:
            pairs = zip(map(_WORD.findall, hypotheses), map(_WORD.findall, references))
            logging_output["_rouge_l_sum"] = sum(rouge_l(hypothesis, [reference]) for hypothesis, reference in pairs)
            logging_output["_rouge_l_count"] = len(hypotheses)
        return loss, sample_size, logging_output

    def _generate_text(self, sample, model) -> tuple[list[str], list[str]]:
        """Outputs and uncut references of a batch, as fairseq-generate would print them."""
        string = partial(self.dictionary.string, extra_symbols_to_ignore=self.generator.symbols_to_strip_from_output)
        outputs = [best["tokens"] for best, *_ in self.inference_step(self.generator, [model], sample)]
        references = [utils.strip_pad(row, self.dictionary.pad()) for row in sample["target"].cpu()]
        return list(map(string, outputs)), [string(row, escape_unk=True) for row in references]
