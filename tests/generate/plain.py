"""The decodings of one unpadded sentence in plain loops, nothing cached: every pass encodes the source anew."""

import torch

from mist_fairseq.engines import build_engine
from mist_fairseq.generate.decoding import Candidates, Decoding, decode
from tests import helpers
from tests.mist.test_mixing import plain_mix

DECODINGS = [("single-pass", 1), ("mist", 3), ("mask-predict", 3), ("mask-repeats", 3)]
LENGTHS = [9, 4, 13, 2, 20, 9]


def encode_one(model, source):
    return helpers.encode(model, torch.tensor([source]), torch.tensor([len(source)]))


@torch.no_grad()
def plain_fill(model, tokens, source, without=()):
    """Predict the [MASK]s, by other tokens than those of *without*. -> tokens, log-probabilities."""
    special = model.tokenizer.special
    state = encode_one(model, source)
    hidden = helpers.decode(model, torch.tensor([tokens]), torch.tensor([len(tokens)]), state)[0]
    logits = helpers.plain_logits(model, hidden, state)
    logits[:, special.never_predicted] = -float("inf")
    log_p = logits.log_softmax(-1)
    filled, scores = list(tokens), [0.0] * len(tokens)
    for t, token in enumerate(without):
        log_p[t, token] = -float("inf")
    for t, token in enumerate(tokens):
        if token == special.mask:
            filled[t] = int(log_p[t].argmax())
            scores[t] = float(log_p[t].max())
    return filled, scores


@torch.no_grad()
def plain_length_scores(model, source, low=2, high=None) -> dict[int, float]:
    """The log-probabilities of the lengths from *low* to *high*, likeliest first."""
    lengths = range(low, (high or model.limits.target) + 1)
    logits = model.encoder.length_logits(encode_one(model, source))[0, lengths.start : lengths.stop]
    return dict(sorted(zip(lengths, logits.log_softmax(0).tolist()), key=lambda item: -item[1]))


def plain_lengths(model, source, low=2, high=None) -> list[int]:
    """The lengths from *low* to *high*, likeliest first."""
    return list(plain_length_scores(model, source, low, high))


def plain_decode(model, source, decoding, iterations, length):
    """-> tokens, log-probabilities, history."""
    masks = [model.tokenizer.special.mask] * length
    if decoding == "mist":
        return plain_mist(model, source, iterations, masks)
    if decoding == "mask-repeats":
        return plain_mask_repeats(model, source, iterations, masks)
    return plain_mask_predict(model, source, iterations, masks)


def plain_mist(model, source, iterations, masks):
    """The paper's iterative decoding, without stopping early."""
    special = model.tokenizer.special
    tokens, scores = plain_fill(model, masks, source)
    history = [tokens]
    for _ in range(iterations - 1):
        mixed = plain_mix(tokens, source, model.limits.source, special.cls, special.sep)
        tokens, scores = plain_fill(model, masks, mixed)
        history.append(tokens)
    return tokens, scores, history


def plain_mask_predict(model, source, iterations, masks):
    """Ghazvininejad et al. 2019: of N passes, N - n of N tokens are masked before pass n + 1."""
    tokens, scores = plain_fill(model, masks, source)
    history = [tokens]
    for done in range(1, iterations):
        number = len(tokens) * (iterations - done) // iterations
        worst = sorted(range(len(tokens)), key=lambda t: scores[t])[:number]
        tokens, scores = plain_refill(model, source, tokens, scores, worst)
        history.append(tokens)
    return tokens, scores, history


def plain_mask_repeats(model, source, iterations, masks):
    """Neighbours that are alike are masked, until there are none."""
    tokens, scores = plain_fill(model, masks, source)
    history = [tokens]
    while len(history) < iterations:
        alike = {t + side for t in range(len(tokens) - 1) if tokens[t] == tokens[t + 1] for side in (0, 1)}
        if not alike:
            break
        tokens, scores = plain_refill(model, source, tokens, scores, alike)
        history.append(tokens)
    return tokens, scores, history


def plain_refill(model, source, tokens, scores, places):
    """Mask the tokens at *places* and predict them again."""
    mask = model.tokenizer.special.mask
    filled, new = plain_fill(model, [mask if t in places else token for t, token in enumerate(tokens)], source)
    return filled, [new[t] if t in places else score for t, score in enumerate(scores)]


class Runner:
    """A model behind an engine; a call decodes a batch of sources, given as lists of ids."""

    def __init__(self, model, accelerate="none", precision="fp32"):
        self.model, self.special = model, model.tokenizer.special
        self.engine = build_engine(model.encoder, self.special, accelerate, precision)

    def candidates(self, sources, decoding: Decoding, lengths=None, padding=0, **options) -> Candidates:
        width = max(map(len, sources)) + padding
        rows = [source + [self.special.pad] * (width - len(source)) for source in sources]
        given = (self.engine.asarray(torch.tensor(values)) for values in (rows, list(map(len, sources))))
        lengths = None if lengths is None else self.engine.asarray(torch.tensor(lengths))
        options["target_lengths"] = lengths
        return decode(self.engine, *given, decoding, self.special, self.model.limits, **options)

    def __call__(self, sources, decoding: Decoding, lengths=None, padding=0, **options) -> list[list[dict]]:
        """For each source its candidates, best first."""
        found = self.candidates(sources, decoding, lengths, padding, **options)

        def candidate(row, score):
            real, steps = slice(int(found.lengths[row])), int(found.steps[row])
            return {
                "tokens": found.tokens[row, real].tolist(),
                "scores": torch.as_tensor(found.scores[row, real]),
                "score": score,
                "steps": steps,
                "history": [tokens[row, real].tolist() for tokens in found.history[:steps]],
            }

        return [[candidate(*one) for one in ranked] for ranked in found.ranked()]


def assert_equals_plain(found, model, source, decoding, iterations, length, given=False):
    """A candidate of ``Runner`` is that of the plain loop, with a predicted length or a *given* one."""
    length_score = 0.0 if given else plain_length_scores(model, source)[length]
    tokens, scores, history = plain_decode(model, source, decoding, iterations, length)
    assert found["tokens"] == tokens
    torch.testing.assert_close(found["scores"], torch.tensor(scores), atol=1e-4, rtol=0)
    assert abs(found["score"] - length_score - sum(scores) / len(scores)) < 1e-4
    steps = len(history)
    if decoding == "mist":  # which stops where nothing changes
        steps = next((n + 1 for n in range(1, iterations) if history[n] == history[n - 1]), iterations)
    assert found["steps"] == steps and found["history"] == history[:steps]
