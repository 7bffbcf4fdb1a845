"""Hugging Face's sequence-to-sequence models behind fairseq's commands. Needs the extra ``huggingface``."""

import torch
from torch import Tensor

from mist_fairseq.extras import install_line
from mist_fairseq.models.nar_generator import Generator, refuse_options

# What Hugging Face's beam search has of fairseq's generation options.
_KNOWN = {"lenpen", "unnormalized", "min_len", "max_len_b", "no_repeat_ngram_size"}


def import_transformers():
    """The ``transformers`` package; an ImportError says how to install it."""
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise ImportError(f"this needs Hugging Face's transformers: {install_line('huggingface')}") from error
    return transformers


def right_padded(tokens: Tensor, pad: int) -> Tensor:
    """Move padding to the right end; fairseq puts it left of sources by default. *Shapes:* (B, T) -> (B, T)."""
    return tokens.gather(1, tokens.eq(pad).int().argsort(dim=1, stable=True))


class HuggingFaceGenerator(Generator):
    """Hugging Face's ``generate``, greedy or beam search with cached keys and values, as fairseq's commands call it.

    As in fairseq, a sentence is done when it has ``--beam`` finished hypotheses, and a hypothesis' score is its
    log-probability divided by its length to the power of ``--lenpen``. Options that do not work are refused by name;
    those that the folder of a model would add (generation_config.json) have no effect.

    *pad*, *eos* and *start* are ids of the padding, the last token and the decoder's first input; *longest* is the most
    tokens that the decoder takes, if limited. Of fairseq's *options* ``--beam``, ``--nbest`` and ``_KNOWN`` count.
    """

    def __init__(self, model, *, pad: int, eos: int, start: int, longest: int | None = None, options=None):
        super().__init__(model, pad, eos)
        refuse_options(options, "Hugging Face's beam search", _KNOWN, "leave it")
        beam, nbest = getattr(options, "beam", 5), getattr(options, "nbest", 1)
        if not 1 <= nbest <= beam:
            raise ValueError(f"expected 1 <= --nbest <= --beam, got {nbest} and {beam}")
        most, least = getattr(options, "max_len_b", 200), getattr(options, "min_len", 1)
        if longest is not None:
            most = min(most, longest - 1)  # the first input is none of the output's tokens
        if least > most:
            raise ValueError(f"--min-len {least} is too long: at most {most} tokens and the final one are generated")
        self.score = True  # by running the decoder once more; a benchmark may do with 0
        self.length_penalty = 0.0 if getattr(options, "unnormalized", False) else float(getattr(options, "lenpen", 1))
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
        model.generation_config = self.config  # whatever is not set there would count

    def hypotheses(self, sample: dict) -> list[list[dict]]:
        """``--nbest`` of each sentence; sources are padded left or right."""
        sources = right_padded(sample["net_input"]["src_tokens"], self.pad)
        inputs = {"input_ids": sources, "attention_mask": sources.ne(self.pad).long()}
        outputs = self.model.generate(**inputs, generation_config=self.config)
        nbest = self.config.num_return_sequences
        scores = torch.zeros_like(outputs[:, 1:], dtype=torch.float)
        if self.score:
            inputs = {name: value.repeat_interleave(nbest, dim=0) for name, value in inputs.items()}
            logits = self.model(**inputs, decoder_input_ids=outputs[:, :-1], use_cache=False).logits
            scores = logits.gather(2, outputs[:, 1:, None]).squeeze(2).float() - logits.float().logsumexp(2)
        made = [self._hypothesis(*row) for row in zip(outputs[:, 1:].cpu(), scores.cpu())]
        return [made[i : i + nbest] for i in range(0, len(made), nbest)]

    def _hypothesis(self, tokens: Tensor, scores: Tensor) -> dict:
        length = 1 + tokens.tolist().index(self.eos)
        score = scores[:length].sum() / length**self.length_penalty
        made = {"tokens": tokens[:length], "score": score, "positional_scores": scores[:length]}
        return {**made, "alignment": torch.empty(0), "attention": None}
