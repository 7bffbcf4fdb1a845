"""What is read off the last hidden states: the target's length and its tokens (paper, "Model Architecture").

Dimensions as in ``mist.encoder``.
"""

from functools import cache

import torch
from torch import Tensor, nn

from mist_fairseq.mist.config import EncoderConfig
from mist_fairseq.mist.kernels import Linear, argmax, row_chunks
from mist_fairseq.mist.layers import activation
from mist_fairseq.mist.packing import padding_mask


class LengthHead(nn.Linear):
    """Target length, the final [SEP] counted, from the mean over the encoded source; a layer without bias."""

    def __init__(self, hidden_size: int, classes: int):
        super().__init__(hidden_size, classes, bias=False)

    def forward(self, hidden: Tensor, lengths: Tensor) -> Tensor:  # type: ignore[override]
        """Score each length. *Shapes:* hidden (B, S, D), lengths (B) -> (B, classes)."""
        real = padding_mask(lengths, hidden.shape[1])[:, :, None]
        mean = hidden.masked_fill(~real, 0.0).sum(1) / lengths.clamp(min=1)[:, None]
        return super().forward(mean).float()


class MaskedLMHead(nn.Module):
    """BERT's masked-LM head up to its last product; ``weight`` is None while that is tied to the word embeddings."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        size = config.embedding_size or config.hidden_size
        self.activation = activation(config.activation)
        self.transform = Linear(config.hidden_size, size, bias=not config.without_biases)
        self.norm = nn.LayerNorm(size, eps=config.layer_norm_eps, bias=not config.without_biases)
        self.weight = nn.Parameter(torch.empty(config.vocab_size, size)) if config.untie_head else None
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, hidden: Tensor) -> Tensor:
        """*Shapes:* (N, D) -> (N, D or the embeddings' size)."""
        transformed: Tensor = self.norm(self.activation(self.transform(hidden)))
        return transformed


def likeliest_tokens(logits: Tensor, never: tuple[int, ...]) -> Tensor:
    """The likeliest token of each row, but none of *never*. *Shapes:* (N, V) -> (N)."""
    tokens = torch.empty(len(logits), dtype=torch.long, device=logits.device)
    for rows in row_chunks(logits):
        tokens[rows] = argmax(_without(logits[rows].clone(), never))
    return tokens


def likeliest_with_scores(
    logits: Tensor, never: tuple[int, ...], second: bool = False, allowed: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The likeliest tokens, or the *second* likeliest, and their log-probabilities in fp32, over all but *never*.

    With *allowed* only such tokens are chosen; the probabilities stay what they are.

    *Shapes:* (N, V), which may be overwritten, allowed boolean (V) -> (N), (N).
    """
    logits = _without(logits.float(), never)
    log_p = logits.log_softmax(-1)
    if allowed is not None:
        logits = logits.masked_fill(~allowed, float("-inf"))
    tokens = argmax(logits)
    if second:
        tokens = argmax(logits.scatter(1, tokens[:, None], float("-inf")))
    return tokens, log_p.gather(1, tokens[:, None])[:, 0]


def _without(logits: Tensor, never: tuple[int, ...]) -> Tensor:
    """The same logits, in which *never* are impossible."""
    for tokens in runs(never):
        logits[:, tokens] = float("-inf")
    return logits


@cache
def runs(tokens: tuple[int, ...]) -> list[slice]:
    """Slices of neighbours: unused tokens are many, and a GPU is told each slice apart."""
    slices: list[slice] = []
    for token in sorted(tokens):
        if slices and slices[-1].stop == token:
            slices[-1] = slice(slices[-1].start, token + 1)
        else:
            slices.append(slice(token, token + 1))
    return slices
