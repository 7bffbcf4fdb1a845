"""What fairseq-generate and -interactive call: fairseq's generators, and the one of ``generate.decoding``."""

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Collection

import torch

from mist_fairseq.data.dictionary import TokenizerDictionary
from mist_fairseq.engines.pytorch import PyTorchEngine
from mist_fairseq.generate.answers import Answer, answer, too_few
from mist_fairseq.generate.decoding import Decoding, check_head

logger = logging.getLogger(__name__)

# fairseq's generation options that mean nothing, or something else, without an autoregressive decoder:
# what to do instead -> the options with their defaults.
AUTOREGRESSIVE_OPTIONS: dict[str, dict[str, object]] = {
    "the output is the argmax of one parallel pass": {
        "sampling": False,
        "sampling_topk": -1,
        "sampling_topp": -1.0,
        "temperature": 1.0,
    },
    "tokens are predicted independently": {"constraints": None, "prefix_size": 0},
    "use fairseq-validate for the loss of the references": {"score_reference": False},
    "use --nbest with --diversity-penalty": {
        "diverse_beam_groups": -1,
        "diverse_beam_strength": 0.5,
        "diversity_rate": -1.0,
    },
    "the length is predicted; see --min-length and --max-length": {"match_source_len": False},
    "use --max-length": {"max_len_a": 0, "max_len_b": 200},
    "use --min-length": {"min_len": 1, "iter_decode_eos_penalty": 0.0},
    "use --length-beam": {"iter_decode_with_beam": 1},
    "use --decoding-iterations": {"iter_decode_max_iter": 10},
    "hypotheses are compared by the log-probability of their length and the mean of their tokens'": {
        "lenpen": 1,
        "unnormalized": False,
        "iter_decode_with_external_reranker": False,
    },
    "there is no search that could avoid [UNK]": {"unkpen": 0},
    "directly repeated words are collapsed; see --keep-repeats": {"no_repeat_ngram_size": 0},
    "there is no attention from target to source alone": {"print_alignment": None},
    "language-model fusion needs left-to-right decoding": {"lm_path": None, "lm_weight": 0.0},
    "a MIST fixed point cannot change any more": {"iter_decode_force_max_iter": False},
    "decoding is deterministic": {"retain_dropout": False, "retain_dropout_modules": None},
    "it is for other tasks": {
        "beam_mt": 0,
        "max_len_a_mt": 0,
        "max_len_b_mt": 200,
        "lenpen_mt": 1,
        "eos_token": None,
        "decoding_format": None,
    },
}


def refuse_options(options, user: str, known: Collection[str] = (), advice: str | None = None):
    """Raise ValueError if fairseq's *options* (or None) set one of ``AUTOREGRESSIVE_OPTIONS`` that is not *known*.

    *user* is what it does not work with, *advice* what to do in place of what stands there, for the message.
    """
    for instead, defaults in AUTOREGRESSIVE_OPTIONS.items():
        for name, default in defaults.items():
            value = getattr(options, name, default)
            if name not in known and value is not None and value != default:
                raise ValueError(f"--{name.replace('_', '-')} does not work with {user}: {advice or instead}")


class Generator(ABC):
    """What a task's ``build_generator`` returns: fairseq's commands call ``generate``."""

    def __init__(self, model, pad: int, eos: int):
        self.model, self.pad, self.eos = model, pad, eos
        self.symbols_to_strip_from_output = {eos, pad}

    @torch.no_grad()
    def generate(self, models, sample, prefix_tokens=None, constraints=None, **kwargs) -> list[list[dict]]:
        """The hypotheses of a batch, by the generator's own model. Refuses prefixes and constraints."""
        if prefix_tokens is not None or constraints is not None:
            raise ValueError(f"prefixes and constraints do not work with {type(self).__name__}")
        self.model.eval()
        return self.hypotheses(sample)

    @abstractmethod
    def hypotheses(self, sample: dict) -> list[list[dict]]:
        """For each sentence of a batch, with ``net_input`` of ``src_tokens`` (B, S), its hypotheses, best first.

        Each has ``tokens`` with a final ``eos``, ``score``, ``positional_scores``, ``alignment`` and ``attention``.
        """


class NARGenerator(Generator):
    """The decodings of ``generate.decoding``, with one ``MistModel`` whose engine, or else PyTorch, runs the passes."""

    def __init__(self, models, dictionary: TokenizerDictionary, decoding: Decoding, options=None):
        if len(models) != 1:
            raise ValueError(f"got {len(models)} models: ensembles are not supported; average the checkpoints instead")
        refuse_options(options, "a non-autoregressive model")
        super().__init__(models[0], dictionary.pad(), dictionary.eos())
        self.tokenizer = dictionary.tokenizer
        self.decoding = decoding
        graph = getattr(self.model.encoder.config, "graph", None)
        check_head(decoding, graph, self.model.limits, lengths_given=False)
        if graph is None and (warning := too_few(decoding, self.model.limits)):
            logger.warning("%s", warning)
        self.retain_history = bool(getattr(options, "retain_iter_history", False))
        self.stop_unchanged = True  # a benchmark may want all passes

    def hypotheses(self, sample: dict) -> list[list[dict]]:
        """Of a batch, which may have ``lengths`` (B), not 0, that outputs are to have, the final [SEP] counted.

        The hypotheses have ``steps``, too, and if asked for ``history``.
        """
        inputs, asked = sample["net_input"], sample.get("lengths")
        for what, lengths in (("a source has", inputs["src_lengths"]), ("an output is to have", asked)):
            if lengths is not None and not lengths.is_cuda and lengths.min() < 1:  # a GPU would wait
                raise ValueError(f"{what} {int(lengths.min())} tokens, expected at least 1")
        model = self.model
        engine = model.engine or PyTorchEngine(model.encoder, self.tokenizer.special, model.precision, convert=False)
        sources = engine.asarray(inputs["src_tokens"]), engine.asarray(inputs["src_lengths"])
        answered = answer(
            *(engine, *sources, self.decoding, self.tokenizer, model.limits),
            target_lengths=None if asked is None else engine.asarray(asked),
            stop_unchanged=self.stop_unchanged,
            history=self.retain_history,
        )
        return [list(map(self._printed, answers.best or [self._nothing()])) for answers in answered]

    def _nothing(self) -> Answer:
        """What stands for an answer where the options leave none."""
        return Answer([self.eos], [0.0], -math.inf, 0, [])

    def _printed(self, answer: Answer) -> dict:
        """As fairseq's commands print it, with a final eos: on empty ones fairseq's BLEU crashes."""
        made: dict = {"tokens": torch.tensor(answer.tokens), "positional_scores": torch.tensor(answer.token_scores)}
        made |= {"score": torch.tensor(answer.score, dtype=torch.float64), "attention": None, "alignment": None}
        made["steps"] = answer.steps
        if self.retain_history:
            made["history"] = [{"tokens": torch.tensor(ids)} for ids in answer.history]
        return made
