"""One call of each kind against a plain loop, and precisions."""

import pytest
import torch

from mist_fairseq.engines import build_engine
from mist_fairseq.engines.pytorch import PyTorchEngine
from tests.generate.plain import encode_one, plain_fill
from tests.helpers import sources, targets, tiny_encoder_decoder, tiny_released


@pytest.mark.parametrize("build", [tiny_released, tiny_encoder_decoder])
def test_fills_masks_and_leaves_the_rest(dictionary, build):
    """Also a row without a [MASK], and a state whose sentences were repeated and reordered."""
    model, mask = build(dictionary), dictionary.mask()
    engine = PyTorchEngine(model.encoder, model.tokenizer.special, "fp32")
    src, src_lengths = sources([9, 4, 13], dictionary)
    tgt, tgt_lengths = targets([5, 12, 1, 7], dictionary)
    tgt[0, :5], tgt[1, 2:9], tgt[3, :1] = mask, mask, mask
    before, order = tgt.clone(), [2, 0, 0, 1]
    state = engine.encode(src, src_lengths).select(torch.tensor(order))
    filled, scores = engine.fill(tgt, tgt_lengths, state)
    assert torch.equal(tgt, before) and filled.shape == scores.shape == tgt.shape
    for row, length in enumerate(tgt_lengths.tolist()):
        source = src[order[row], : src_lengths[order[row]]].tolist()
        tokens, expected = plain_fill(model, tgt[row, :length].tolist(), source)
        assert filled[row].tolist() == tokens + tgt[row, length:].tolist()
        padded = torch.tensor(expected + [0.0] * (tgt.shape[1] - length))
        torch.testing.assert_close(scores[row], padded, atol=1e-4, rtol=0)
        lengths = model.encoder.length_logits(encode_one(model, source))[0].detach()
        torch.testing.assert_close(state.length_scores[row], lengths, atol=1e-4, rtol=0)


def test_only_allowed_tokens_are_chosen(dictionary):
    """Each is the likeliest of them, with its log-probability among all; by ONNX Runtime the same."""
    model, lengths = tiny_released(dictionary), torch.tensor([5, 12])
    allowed = torch.arange(len(dictionary.tokenizer.symbols)) % 5 == 0
    src, src_lengths = sources([9, 4], dictionary)
    masks = torch.full((2, 12), dictionary.mask())
    for engine in (
        build_engine(model.encoder, dictionary.tokenizer.special, name, "fp32") for name in ("none", "onnxruntime")
    ):
        given = [engine.asarray(values) for values in (src, src_lengths, masks, lengths, allowed)]
        filled, scores = engine.fill(*given[2:4], engine.encode(*given[:2]), allowed=given[4])
        for row, length in enumerate(lengths.tolist()):
            source, masked = src[row, : src_lengths[row]].tolist(), masks[row, :length].tolist()
            forbidden = [(~allowed).nonzero().flatten()] * length
            tokens, expected = plain_fill(model, masked, source, without=forbidden)
            assert filled[row, :length].tolist() == tokens
            torch.testing.assert_close(torch.as_tensor(scores[row, :length]), torch.tensor(expected), atol=1e-4, rtol=0)


@pytest.mark.parametrize("build", [tiny_released, tiny_encoder_decoder])
def test_converted_weights_of_bf16_change_nothing(dictionary, build):
    """Autocast would convert them anew for every batch."""
    engines = [
        PyTorchEngine(build(dictionary).encoder, dictionary.tokenizer.special, "bf16", convert=convert)
        for convert in (False, True)
    ]
    src, src_lengths = sources([9, 4, 13], dictionary)
    masks, lengths = torch.full((3, 12), dictionary.mask()), torch.tensor([5, 12, 1])
    results = []
    for engine in engines:
        state = engine.encode(src, src_lengths)
        results.append([state.source.hidden, state.length_scores, *engine.fill(masks, lengths, state)])
    for one, other in zip(*results):
        assert torch.equal(one, other)
    assert results[0][-1].dtype == torch.float32, "log-probabilities are in fp32"
