"""The fairseq task: data, validation scores and the generator."""

import argparse
import logging
import re
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any, Optional

import sacrebleu
from fairseq import utils
from fairseq.data import ListDataset
from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from fairseq.models import ARCH_MODEL_REGISTRY
from fairseq.tasks import register_task
from omegaconf import II

from mist_fairseq.data.dataset import MistDataset, log_cut
from mist_fairseq.data.dictionary import TokenizerDictionary
from mist_fairseq.engines import engines
from mist_fairseq.generate.decoding import DECODINGS, Decoding, option
from mist_fairseq.mist.config import PositionLimits
from mist_fairseq.models.mist_model import PRECISIONS, MistModel
from mist_fairseq.models.nar_generator import NARGenerator
from mist_fairseq.pretrained.hub import local_folder
from mist_fairseq.release.folder import is_released, load_released, released_sizes
from mist_fairseq.scoring.rouge_l import rouge_l
from mist_fairseq.tasks.base import OUTPUT, TokenizerTask, bleu_counts

logger = logging.getLogger(__name__)

_SAME = {same.name: same.metadata["help"] for same in fields(Decoding)}  # the help texts of what is the same there
_WORD = re.compile(r"\w+|[^\w\s]")  # validation scores words and punctuation marks apart


@dataclass
class MistTaskConfig(FairseqDataclass):
    """Position limits are the paper's ("Experimental Setting")."""

    data: str = option("", "folder that fairseq-preprocess wrote; several joined by ':'")
    source_lang: Optional[str] = field(default=None, metadata={"help": "source suffix", "argparse_alias": "-s"})
    target_lang: Optional[str] = field(default=None, metadata={"help": "target suffix", "argparse_alias": "-t"})
    max_source_positions: int = option(464, "most source tokens, [CLS] and [SEP] counted; longer ones are cut")
    max_target_positions: int = option(48, "most target tokens, [SEP] counted; longer ones are cut for the loss")
    mixed_lengths: bool = option(
        False,
        "train on batches of sentences of any lengths, as the authors' code does, not of like ones, which is faster; "
        "with --curriculum N the same ones in the same order up to epoch N",
    )
    precision: PRECISIONS = option(
        "fp32",
        "of matrix products; in training by autocast, with weights and losses in fp32. int8 is for generation on a CPU",
    )
    accelerate: ChoiceEnum(["auto", *engines()]) = option(  # type: ignore[valid-type]
        "auto",
        "what runs the model in generation: none is PyTorch as it is; auto is on a CPU native in int8 where that can "
        "be used, or onnxruntime where it is installed and has the precision, else none",
    )
    eval_bleu: bool = option(False, "validate with sacrebleu on generated text")
    eval_rouge: bool = option(False, "validate with ROUGE-L on generated text")
    eval_bleu_print_samples: bool = option(False, "log one output of each validation batch")
    decoding: ChoiceEnum(list(DECODINGS)) = option("single-pass", _SAME["decoding"])  # type: ignore[valid-type]
    decoding_iterations: Optional[int] = option(None, _SAME["iterations"])
    length_beam: Optional[int] = option(None, _SAME["length_beam"])
    min_length: int = option(1, _SAME["min_length"])
    max_length: Optional[int] = option(None, _SAME["max_length"])
    keep_repeats: bool = option(False, _SAME["keep_repeats"])
    keep_duplicates: bool = option(False, "keep answers that differ from a better one in case and punctuation only")
    exclude_source: bool = option(False, _SAME["exclude_source"])
    min_score: Optional[float] = option(None, _SAME["min_score"])
    diversity_penalty: float = option(0.0, _SAME["diversity_penalty"])
    path_search: Optional[str] = option(None, _SAME["path_search"])
    path_length_penalty: float = option(1.0, _SAME["path_length_penalty"])
    banned: str = option("", f"{_SAME['banned']}, joined by commas")
    required: str = option("", f"{_SAME['required']}, joined by commas")
    output: Optional[str] = option(None, OUTPUT)
    length_guesses: int = option(0, argparse.SUPPRESS)  # of version 0.1
    train_subset: str = II("dataset.train_subset")
    dataset_impl: Optional[str] = II("dataset.dataset_impl")


@register_task("mist", dataclass=MistTaskConfig)
class MistTask(TokenizerTask):
    """Fine-tunes a BERT-like encoder for non-autoregressive generation, and generates with it."""

    def __init__(self, cfg: MistTaskConfig, dictionary: TokenizerDictionary, target: TokenizerDictionary | None = None):
        super().__init__(cfg)  # the target's dictionary is the same
        self.dictionary = dictionary
        self.model: Any = None
        for name in ("max_source_positions", "max_target_positions"):
            if cfg[name] < 3:
                raise ValueError(f"--{name.replace('_', '-')} is {cfg[name]}, expected at least 3")
        self.limits = PositionLimits(cfg.max_source_positions, cfg.max_target_positions)

    @classmethod
    def setup_task(cls, cfg, from_checkpoint=False, **kwargs):
        """As ``TokenizerTask.setup_task``; ValueError for an option that is gone, but where a checkpoint has it."""
        if cfg.length_guesses and not from_checkpoint:
            raise ValueError(
                "--length-guesses is gone since version 0.2: guessing saved time only in fp32 with one sentence at a "
                "time (results/speed); leave it out, the output is the same"
            )
        return super().setup_task(cfg, from_checkpoint, **kwargs)

    source_dictionary = target_dictionary = property(lambda self: self.dictionary)

    def load_dataset(self, split, epoch=1, combine=False, **kwargs):
        """Load one split. Errors as of ``load_pair``, and ValueError if the model cannot take the limits."""
        if split == self.cfg.train_subset and self.model is not None:
            if str(self.cfg.precision) == "int8":
                raise ValueError("--precision int8 is for generation: train with fp32 or bf16")
            self.model.check_limits()  # a resumed checkpoint has brought its own by now
        source, target = self.load_pair(split, epoch, combine)
        is_train = split == self.cfg.train_subset
        order = {"shuffle": is_train, "mixed_lengths": is_train and self.cfg.mixed_lengths}
        graph = None if self.model is None else getattr(self.model.encoder.config, "graph", None)
        dataset = MistDataset(source, target, self.dictionary, self.limits, graph=graph, **order)
        if is_train:
            dataset.check_vertices()
        sources, targets = dataset.truncated()
        if is_train or sources or targets:
            logger.info(
                "%s: %s of %s sources are cut to %d tokens, %s targets to %d (for the loss only)",
                *(split, f"{sources:,}", f"{len(dataset):,}", self.limits.source, f"{targets:,}", self.limits.target),
            )
        self.datasets[split] = dataset

    def build_dataset_for_inference(self, src_tokens, src_lengths, **_):
        """A data set of sources alone, for fairseq-interactive."""
        dataset = MistDataset(ListDataset(src_tokens, src_lengths), None, self.dictionary, self.limits)
        log_cut(dataset.truncated()[0], len(dataset), self.limits.source)
        return dataset

    def max_positions(self):
        """The limits of source and target."""
        return self.limits.source, self.limits.target

    def build_model(self, cfg, from_checkpoint=False):
        """Build the model; when training starts, with the sizes and weights of ``--pretrained``."""
        kind = ARCH_MODEL_REGISTRY.get(cfg._name)
        if kind is None or not issubclass(kind, MistModel):  # fairseq would build any, of any size
            raise ValueError(
                f"{cfg._name} is no model of --task mist but of another task: give --task mist_translation or "
                "mist_translation_lev, or another --arch such as mist_base"
            )
        start_from: str = "" if from_checkpoint else cfg.pretrained or ""
        if start_from:
            start_from = local_folder(start_from)
        released = start_from and is_released(start_from)
        if start_from:
            if released:
                sizes = released_sizes(start_from, kind.architecture, self.dictionary.tokenizer)
            else:
                sizes = kind.pretrained_sizes(start_from, self.dictionary)
            logger.info("sizes of %s: %s", start_from, sizes)
            cfg.update(sizes)  # in place: this is the configuration that checkpoints will store
        self.model = model = super().build_model(cfg, from_checkpoint)
        if released:
            load_released(model.encoder, start_from)
        elif start_from:
            model.load_pretrained(start_from)
        if self.cfg.eval_bleu or self.cfg.eval_rouge:
            self.generator = self.build_generator([model], None)
        return model

    def build_generator(self, models, args, prefix_allowed_tokens_fn=None, **_):
        """The generator of one model; *args* are fairseq's options, of which those that cannot work are refused."""
        if prefix_allowed_tokens_fn is not None:
            raise ValueError("prefix_allowed_tokens_fn needs an autoregressive model: tokens are predicted at once")
        options: dict[str, Any] = {name: self.cfg[name] for name in _SAME if name in self.cfg and name != "decoding"}
        for name in {"banned", "required"} & options.keys():
            options[name] = [word.strip() for word in options[name].split(",") if word.strip()]
        decoding = Decoding(
            **options,
            decoding=str(self.cfg.decoding),
            iterations=self.cfg.decoding_iterations,
            nbest=getattr(args, "nbest", 1),
            distinct=not self.cfg.keep_duplicates,
        )
        return NARGenerator(models, self.dictionary, decoding, args)

    def valid_step(self, sample, model, criterion):
        """Losses; with ``--eval-bleu`` the n-gram counts of generated text, with ``--eval-rouge`` its ROUGE-L."""
        loss, sample_size, logging_output = super().valid_step(sample, model, criterion)
        if self.cfg.eval_bleu or self.cfg.eval_rouge:
            hypotheses, references = self._generate_text(sample, model)
            if self.cfg.eval_bleu_print_samples:
                logger.info("example hypothesis: %s", hypotheses[0])
                logger.info("example reference: %s", references[0])
            if self.cfg.eval_bleu:
                logging_output |= bleu_counts(sacrebleu.corpus_bleu(hypotheses, [references]))
            if self.cfg.eval_rouge:
                pairs = zip(map(_WORD.findall, hypotheses), map(_WORD.findall, references))
                logging_output["_rouge_l_sum"] = sum(rouge_l(hypothesis, [target]) for hypothesis, target in pairs)
                logging_output["_rouge_l_count"] = len(hypotheses)
        return loss, sample_size, logging_output

    def _generate_text(self, sample, model) -> tuple[list[str], list[str]]:
        """Outputs and uncut references of a batch, as fairseq-generate would print them."""
        string = partial(self.dictionary.string, extra_symbols_to_ignore=self.generator.symbols_to_strip_from_output)
        outputs = [best["tokens"] for best, *_ in self.inference_step(self.generator, [model], sample)]
        references = [utils.strip_pad(row, self.dictionary.pad()) for row in sample["target"].cpu()]
        return list(map(string, outputs)), [string(row, escape_unk=True) for row in references]
