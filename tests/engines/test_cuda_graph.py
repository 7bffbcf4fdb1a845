"""Against plain PyTorch on the same GPU."""

import pytest
import torch

from mist_fairseq.engines.cuda_graph import BUCKET, CudaGraphEngine
from mist_fairseq.generate.decoding import Decoding
from tests.generate.plain import DECODINGS, Runner
from tests.helpers import sources, targets, tiny_released

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

LENGTHS = [[9, 4, 13], [7], [17, 3, 30], [30, 2, 5], [9, 4, 13]]  # two buckets, each used again with other values


def runners(dictionary, precision="fp32", **sizes) -> tuple[Runner, Runner]:
    """A model behind the engine and behind plain PyTorch."""
    models = []
    for _ in range(2):
        models.append(tiny_released(dictionary, **sizes))
        models[-1].encoder.cuda()
    run = Runner(models[0], "cudagraph", precision)
    assert isinstance(run.engine, CudaGraphEngine)
    return run, Runner(models[1], "none", precision)


def rows_of(lengths, dictionary) -> list[list[int]]:
    tokens, lengths = sources(lengths, dictionary)
    return [row[:length].tolist() for row, length in zip(tokens, lengths)]


def assert_same(found, expected, tolerance=1e-3):
    for ours, theirs in zip(found, expected, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert all(one[name] == other[name] for name in ("tokens", "steps", "history"))
            assert one["score"] == pytest.approx(other["score"], abs=tolerance)
            torch.testing.assert_close(one["scores"], other["scores"], atol=tolerance, rtol=0)


@pytest.mark.parametrize("rel_pos_bins", [0, 8])
@pytest.mark.parametrize("decoding, iterations", DECODINGS)
def test_generates_as_plain_pytorch(dictionary, rel_pos_bins, decoding, iterations):
    run, plain = runners(dictionary, rel_pos_bins=rel_pos_bins)
    for lengths in LENGTHS:
        for beam in (1, 3):
            given = rows_of(lengths, dictionary), Decoding(decoding, iterations, length_beam=beam)
            assert_same(run(*given), plain(*given))


def test_a_bucket_may_end_beyond_the_last_position(dictionary):
    run, plain = runners(dictionary, source=35, target=12, max_positions=47)
    given = rows_of([35, 3], dictionary), Decoding(min_length=11)
    assert_same(run(*given), plain(*given))


@pytest.mark.parametrize("precision, tolerance", [("fp32", 1e-3), ("bf16", 0.1)])
def test_a_state_stays_valid_while_others_run_through_the_same_graphs(dictionary, precision, tolerance):
    run, plain = runners(dictionary, precision)
    tgt, tgt_lengths = (part.cuda() for part in targets([5, 12, 1], dictionary))
    tgt[:, ::2] = dictionary.mask()
    tgt.masked_fill_(torch.arange(12, device="cuda") >= tgt_lengths[:, None], dictionary.pad())
    given = [[part.cuda() for part in sources([9, 4, 13], dictionary, seed)] for seed in (0, 1)]
    states = [[each.engine.encode(*source) for each in (run, plain)] for source in given]
    for ours, theirs in states:
        assert ours.source.hidden.shape[1] == BUCKET
        torch.testing.assert_close(ours.length_scores, theirs.length_scores, atol=10 * tolerance, rtol=0)
        for row, length in enumerate([9, 4, 13]):
            hidden = (state.source.hidden[row, :length].float() for state in (ours, theirs))
            torch.testing.assert_close(*hidden, atol=tolerance, rtol=0)
        filled, expected = (each.engine.fill(tgt, tgt_lengths, state) for each, state in ((run, ours), (plain, theirs)))
        torch.testing.assert_close(filled[1], expected[1], atol=tolerance, rtol=0)
        if precision == "fp32":
            assert torch.equal(filled[0], expected[0])


def test_a_graph_is_captured_once_for_each_bucket(dictionary):
    run, _ = runners(dictionary)
    for lengths in LENGTHS:
        run(rows_of(lengths, dictionary), Decoding(min_length=16, max_length=19))
    # Three sentences of up to 16 and of up to 32 tokens, and one sentence of up to 16: a source and a target graph.
    assert len(run.engine._graphs) == 6
