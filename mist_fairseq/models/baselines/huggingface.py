"""Hugging Face's sequence-to-sequence models behind fairseq's commands. Needs the extra ``huggingface``."""

from typing import Any

import torch
from torch import Tensor

from mist_fairseq.models.generator import refuse_options

# fairseq's generation options that Hugging Face's beam search does not have: name -> default.
_REFUSED = {
    "sampling": False,
    "constraints": None,
    "prefix_size": 0,
    "score_reference": False,
    "diverse_beam_groups": -1,
    "diversity_rate": -1.0,
    "match_source_len": False,
    "max_len_a": 0,
    "unkpen": 0,
    "temperature": 1.0,
    "print_alignment": None,
    "replace_unk": None,
    "lm_path": None,
    "retain_dropout": False,
}


def import_transformers():
    """The ``transformers`` package; an ImportError says how to install it."""
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise ImportError("this needs Hugging Face's transformers: pip install -e .[huggingface]") from error
    return transformers


def right_padded(tokens: Tensor, pad: int) -> Tensor:
    """Move padding to the right end; fairseq puts it left of sources by default. *Shapes:* (B, T) -> (B, T)."""
    return tokens.gather(1, tokens.eq(pad).int().argsort(dim=1, stable=True))


class HuggingFaceGenerator:
    """Hugging Face's ``generate``, greedy or beam search with cached keys and values, as fairseq's commands call it.

    As in fairseq, a sentence is done when it has ``--beam`` finished hypotheses, and a hypothesis' score is its
    log-probability divided by its length to the power of ``--lenpen``. Options that the folder of a model would add
    (generation_config.json) have no effect.

    Args:
        model: any Hugging Face encoder-decoder model.
        pad, eos: ids of the padding and of the last token of source and target.
        start: id of the decoder's first input.
        longest: most tokens the decoder takes, None where positions have no limit.
        options: fairseq's generation options, None for their defaults: ``--beam``, ``--nbest``, ``--lenpen``,
            ``--unnormalized``, ``--min-len``, ``--max-len-b`` and ``--no-repeat-ngram-size`` count.
        score: run the decoder once more over the output for its log-probabilities. Without it they are 0, and the
            time is that of ``generate`` alone.

    Raises:
        ImportError: transformers is not installed.
        ValueError: an option does not work; names it.
    """

    def __init__(
        self,
        model: Any,
        *,
        pad: int,
        eos: int,
        start: int,
        longest: int | None = None,
        options=None,
        score: bool = True,
    ):
        refused = {name: (default, "leave it") for name, default in _REFUSED.items()}
        refuse_options(options, refused, "Hugging Face's beam search")
        beam, nbest = getattr(options, "beam", 5), getattr(options, "nbest", 1)
        if not 1 <= nbest <= beam:
            raise ValueError(f"expected 1 <= --nbest <= --beam, got {nbest} and {beam}")
        most, least = getattr(options, "max_len_b", 200), getattr(options, "min_len", 1)
        if longest is not None:
            most = min(most, longest - 1)  # the first input is none of the output's tokens
        if least > most:
            raise ValueError(f"--min-len {least} is too long: at most {most} tokens and the final one are generated")
        self.model = model
        self.pad, self.eos = pad, eos
        self.score = score
        self.length_penalty = 0.0 if getattr(options, "unnormalized", False) else float(getattr(options, "lenpen", 1))
        self.symbols_to_strip_from_output = {eos, pad}
        self.config = import_transformers().GenerationConfig(
            num_beams=beam,
            num_return_sequences=nbest,
            length_penalty=self.length_penalty if beam > 1 else 1.0,  # transformers warns of it without a beam
            early_stopping=beam > 1,
            min_new_tokens=least,
            max_new_tokens=most + 1,
            no_repeat_ngram_size=getattr(options, "no_repeat_ngram_size", 0),
            pad_token_id=pad,
            eos_token_id=eos,
            forced_eos_token_id=eos,
            decoder_start_token_id=start,
        )

    @torch.no_grad()
    def generate(self, models, sample, prefix_tokens=None, constraints=None, **kwargs):
        """Generate for a batch.

        Args:
            models: unused; the generator has its model.
            sample: a batch with ``net_input`` of ``src_tokens``, *Shape:* (B, S), padded left or right.

        Returns:
            For each sentence its hypotheses, best first: dictionaries with ``tokens`` up to the final one, ``score``,
            ``positional_scores``, ``alignment`` and ``attention``.
        """
        if prefix_tokens is not None or constraints is not None:
            raise ValueError("prefixes and constraints do not work with Hugging Face's beam search")
        self.model.eval()
        sources = right_padded(sample["net_input"]["src_tokens"], self.pad)
        inputs = {"input_ids": sources, "attention_mask": sources.ne(self.pad).long()}
        outputs = self.model.generate(**inputs, generation_config=self.config, use_model_defaults=False)
        nbest = self.config.num_return_sequences
        scores = torch.zeros_like(outputs[:, 1:], dtype=torch.float)
        if self.score:
            inputs = {name: value.repeat_interleave(nbest, dim=0) for name, value in inputs.items()}
            scores = self._score(outputs, inputs)
        hypotheses = [self._hypothesis(*row) for row in zip(outputs[:, 1:].cpu(), scores.cpu())]
        return [hypotheses[i : i + nbest] for i in range(0, len(hypotheses), nbest)]

    def _score(self, outputs: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        """Log-probabilities of tokens behind the first. *Shapes:* (N, 1 + T), each (N, S) -> (N, T)."""
        logits = self.model(**inputs, decoder_input_ids=outputs[:, :-1], use_cache=False).logits
        chosen = logits.gather(2, outputs[:, 1:, None]).squeeze(2)
        return chosen.float() - logits.float().logsumexp(2)

    def _hypothesis(self, tokens: Tensor, scores: Tensor) -> dict:
        length = 1 + tokens.tolist().index(self.eos)
        total = scores[:length].sum()
        return {
            "tokens": tokens[:length],
            "score": total / length**self.length_penalty,
            "positional_scores": scores[:length],
            "alignment": torch.empty(0),
            "attention": None,
        }
