"""fairseq's generator: the decodings of ``generate.decoding`` behind fairseq-generate and -interactive."""

from collections.abc import Mapping

import torch

from mist_fairseq.data.dictionary import TokenizerDictionary
from mist_fairseq.engines.pytorch import PyTorchEngine
from mist_fairseq.generate.decoding import Candidates, Decoding, decode

# fairseq's generation options that mean nothing, or something else, without an autoregressive decoder:
# name -> (its default, what to do instead).
AUTOREGRESSIVE_OPTIONS = {
    "sampling": (False, "the output is the argmax of one parallel pass"),
    "constraints": (None, "tokens are predicted independently"),
    "prefix_size": (0, "tokens are predicted independently"),
    "score_reference": (False, "use fairseq-validate for the loss of the references"),
    "diverse_beam_groups": (-1, "use --length-beam with --nbest"),
    "diversity_rate": (-1.0, "use --length-beam with --nbest"),
    "match_source_len": (False, "the length is predicted; see --min-length and --max-length"),
    "max_len_a": (0, "use --max-length"),
    "max_len_b": (200, "use --max-length"),
    "min_len": (1, "use --min-length"),
    "lenpen": (1, "hypotheses are compared by their mean log-probability"),
    "unnormalized": (False, "hypotheses are compared by their mean log-probability"),
    "unkpen": (0, "there is no search that could avoid [UNK]"),
    "temperature": (1.0, "the output is the argmax of one parallel pass"),
    "no_repeat_ngram_size": (0, "directly repeated words are collapsed; see --keep-repeats"),
    "print_alignment": (None, "there is no attention from target to source alone"),
    "replace_unk": (None, "there is no attention from target to source alone"),
    "lm_path": (None, "language-model fusion needs left-to-right decoding"),
    "iter_decode_max_iter": (10, "use --decoding-iterations"),
    "iter_decode_with_beam": (1, "use --length-beam"),
    "iter_decode_with_external_reranker": (False, "hypotheses are compared by their mean log-probability"),
    "iter_decode_eos_penalty": (0.0, "use --min-length"),
    "iter_decode_force_max_iter": (False, "a MIST fixed point cannot change any more"),
    "retain_dropout": (False, "decoding is deterministic"),
}


def refuse_options(options, refused: Mapping[str, tuple[object, str]], user: str):
    """Raise ValueError if an option of fairseq has another value than its default.

    Args:
        options: fairseq's generation options, or None.
        refused: name -> (its default, what to do instead).
        user: what the option does not work with, for the message.
    """
    for name, (default, instead) in refused.items():
        value = getattr(options, name, default)
        if value is not None and value != default:
            raise ValueError(f"--{name.replace('_', '-')} does not work with {user}: {instead}")


class NARGenerator:
    """What ``task.build_generator`` returns; fairseq calls ``generate``.

    Args:
        models: one ``MistModel``. Its engine runs the passes, or PyTorch if it has none.
        dictionary: has the tokenizer.
        decoding: how to generate.
        options: fairseq's generation options, None for their defaults.

    Raises:
        ValueError: there are several models, or an option that cannot work; names it.
    """

    def __init__(self, models, dictionary: TokenizerDictionary, decoding: Decoding, options=None):
        if len(models) != 1:
            raise ValueError(
                f"got {len(models)} models: ensembles are not supported; average the checkpoints into one instead"
            )
        refuse_options(options, AUTOREGRESSIVE_OPTIONS, "a non-autoregressive model")
        self.model = models[0]
        self.tokenizer = dictionary.tokenizer
        self.decoding = decoding
        self.retain_history = bool(getattr(options, "retain_iter_history", False))
        self.stop_unchanged = True  # a benchmark may want all passes
        self.eos = dictionary.eos()
        self.symbols_to_strip_from_output = {dictionary.eos(), dictionary.pad()}

    @torch.no_grad()
    def generate(self, models, sample, prefix_tokens=None, constraints=None, **kwargs) -> list[list[dict]]:
        """Generate for a batch.

        Args:
            models: unused; the generator has its model.
            sample: a batch with ``net_input`` of ``src_tokens`` and ``src_lengths``, and perhaps ``lengths`` that the
                outputs are to have, the final [SEP] counted, *Shape:* (B).

        Returns:
            For each sentence its hypotheses, best first: dictionaries with ``tokens``, ``score``,
            ``positional_scores``, ``steps``, ``alignment``, ``attention`` and, if asked for, ``history``.

        Raises:
            ValueError: a source or an output is to have no tokens; or there are prefixes or constraints.
        """
        if prefix_tokens is not None or constraints is not None:
            raise ValueError("prefixes and constraints need an autoregressive model")
        inputs, asked = sample["net_input"], sample.get("lengths")
        for what, lengths in (("a source has", inputs["src_lengths"]), ("an output is to have", asked)):
            if lengths is not None and not lengths.is_cuda and lengths.min() < 1:  # a GPU would wait
                raise ValueError(f"{what} {int(lengths.min())} tokens, expected at least 1")
        self.model.eval()
        special = self.tokenizer.special
        engine = self.model.engine or PyTorchEngine(self.model.encoder, special, self.model.precision, convert=False)
        candidates = decode(
            engine,
            engine.asarray(inputs["src_tokens"]),
            engine.asarray(inputs["src_lengths"]),
            self.decoding,
            special,
            self.model.limits,
            target_lengths=None if asked is None else engine.asarray(asked),
            stop_unchanged=self.stop_unchanged,
        )
        return self._hypotheses(candidates)

    def _hypotheses(self, candidates: Candidates) -> list[list[dict]]:
        """What fairseq's commands print.

        Like fairseq's other generators', hypotheses end in eos, so they are never empty: fairseq's own BLEU scorer
        crashes on those.
        """
        tokens, scores = torch.as_tensor(candidates.tokens).cpu(), torch.as_tensor(candidates.scores).cpu()
        lengths, steps = candidates.lengths.tolist(), candidates.steps.tolist()
        history = [torch.as_tensor(step).cpu() for step in candidates.history] if self.retain_history else []

        def hypothesis(row: int, score: float) -> dict:
            kept = self._kept(tokens[row, : lengths[row]])
            made = {
                "tokens": tokens[row, kept],
                "score": torch.tensor(score, dtype=torch.float64),
                "positional_scores": scores[row, kept],
                "steps": steps[row],
                "attention": None,
                "alignment": None,
            }
            if self.retain_history:
                passes = (step[row, : lengths[row]] for step in history[: steps[row]])
                made["history"] = [{"tokens": ids[self._kept(ids)]} for ids in passes]
            return made

        return [[hypothesis(*candidate) for candidate in ranked] for ranked in candidates.ranked()]

    def _kept(self, tokens: torch.Tensor) -> torch.Tensor:
        """Positions of the final text."""
        return torch.tensor(
            self.tokenizer.text_positions(tokens.tolist(), self.decoding.keep_repeats), dtype=torch.long
        )
