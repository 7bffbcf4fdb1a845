"""Against plain PyTorch on the same GPU."""

import pytest
import torch

from mist_fairseq.engines.cuda_graph import BUCKET, CudaGraphEncoder
from tests.engines.helpers import DECODINGS, assert_same_outputs, generate, prepare
from tests.helpers import flat, sources, targets, tiny_model

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

LENGTHS = [[9, 4, 13], [7], [17, 3, 30], [30, 2, 5], [9, 4, 13]]  # two buckets, each used again with other values


def on_gpu(*tensors):
    return [tensor.cuda() for tensor in tensors]


@pytest.mark.parametrize("rel_pos_bins", [0, 8])
@pytest.mark.parametrize("decoding, iterations", DECODINGS)
def test_generates_as_plain_pytorch(dictionary, rel_pos_bins, decoding, iterations):
    model, plain = (tiny_model(dictionary, rel_pos_bins=rel_pos_bins).cuda() for _ in range(2))
    assert isinstance(prepare(model, "cudagraph").engine, CudaGraphEncoder)
    for lengths in LENGTHS:
        tokens, lengths = on_gpu(*sources(lengths, dictionary))
        for beam in (1, 3):
            options = dict(decoding=decoding, iterations=iterations, length_beam=beam)
            found, expected = (generate(each, tokens, lengths, **options) for each in (model, plain))
            assert_same_outputs(found, expected, tolerance=1e-3)


def test_a_bucket_may_end_beyond_the_last_position(dictionary):
    sizes = dict(source=35, target=12, max_positions=47)
    model, plain = (tiny_model(dictionary, **sizes).cuda() for _ in range(2))
    prepare(model, "cudagraph")
    tokens, lengths = on_gpu(*sources([35, 3], dictionary))
    found, expected = (generate(each, tokens, lengths, min_length=11) for each in (model, plain))
    assert_same_outputs(found, expected, tolerance=1e-3)


@pytest.mark.parametrize("precision, tolerance", [("fp32", 1e-3), ("bf16", 0.1)])
def test_passes_equal_the_encoders(dictionary, precision, tolerance):
    """A state stays valid while other batches run through the same graphs."""
    model = tiny_model(dictionary).cuda()
    encoder, engine = model.encoder, prepare(model, "cudagraph", precision).engine
    states = []
    tgt, tgt_lengths = on_gpu(*targets([5, 12, 1], dictionary))
    tgt_index = flat([5, 12, 1]).cuda()
    with torch.no_grad(), model.autocast(precision):
        for seed in (0, 1):
            tokens, lengths = on_gpu(*sources([9, 4, 13], dictionary, seed))
            index = flat([9, 4, 13]).cuda()
            states.append([each.encode_source(tokens, lengths, index) for each in (engine, encoder)])
        for found, expected in states:
            assert found.hidden.shape[1] == BUCKET
            for row, length in enumerate([9, 4, 13]):
                rows = found.hidden[row, :length].float(), expected.hidden[row, :length].float()
                torch.testing.assert_close(*rows, atol=tolerance, rtol=0)
            scores = engine.length_logits(found), encoder.length_logits(expected)
            torch.testing.assert_close(*scores, atol=10 * tolerance, rtol=0)
            hidden = [
                each.decode_target(tgt, tgt_lengths, tgt_index, state).float()
                for each, state in ((engine, found), (encoder, expected))
            ]
            torch.testing.assert_close(*hidden, atol=tolerance, rtol=0)


def test_a_graph_is_captured_once_for_each_bucket(dictionary):
    model = prepare(tiny_model(dictionary).cuda(), "cudagraph")
    for lengths in LENGTHS:
        generate(model, *on_gpu(*sources(lengths, dictionary)), min_length=16, max_length=19)
    # Three sentences of up to 16 and of up to 32 tokens, and one sentence of up to 16: a source and a target graph.
    assert len(model.engine._graphs) == 6
