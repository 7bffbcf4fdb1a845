"""Against plain PyTorch; without a GPU a graph's replay is stood in for by running its function on the same memory."""

import contextlib
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch

from mist_fairseq.engines import cuda_graph
from mist_fairseq.engines.cuda_graph import CudaGraphEngine, GraphState, rounded
from mist_fairseq.generate.decoding import Decoding
from tests.generate.plain import DECODINGS, Runner
from tests.helpers import sources, targets, tiny_generator, tiny_released

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LENGTHS = [[9, 4, 13, 2, 20], [7], [17, 3, 30], [30, 2, 5], [9, 4, 13]]  # some of one graph, with other values


@pytest.fixture(autouse=True)
def stand_in(monkeypatch):
    def capture(self, function):
        outputs = function()

        def replay():
            for static, new in zip(outputs, function()):
                static.copy_(new)

        return replay, outputs

    if DEVICE == "cpu":
        monkeypatch.setattr(CudaGraphEngine, "_capture", capture)
        monkeypatch.setattr("torch.cuda.graph_pool_handle", object)


def runners(dictionary, precision="fp32", **sizes) -> tuple[Runner, Runner]:
    """A model behind the engine and behind plain PyTorch."""
    models = [tiny_released(dictionary, **sizes) for _ in range(2)]
    run, plain = (Runner(model, "none", precision) for model in models if model.encoder.to(DEVICE))
    run.engine = CudaGraphEngine(models[0].encoder, run.special, precision)
    return run, plain


def rows_of(lengths, dictionary) -> list[list[int]]:
    tokens, lengths = sources(lengths, dictionary)
    return [row[:length].tolist() for row, length in zip(tokens, lengths)]


def assert_same(found, expected, tolerance=1e-3):
    for ours, theirs in zip(found, expected, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert all(one[name] == other[name] for name in ("tokens", "steps", "history"))
            assert one["score"] == pytest.approx(other["score"], abs=tolerance)
            torch.testing.assert_close(one["scores"], other["scores"], atol=tolerance, rtol=0)


@pytest.mark.parametrize("sizes", [{}, {"rel_pos_bins": 8}, {"copy_head": True}])
@pytest.mark.parametrize("decoding, iterations", DECODINGS)
def test_generates_as_plain_pytorch(dictionary, sizes, decoding, iterations):
    run, plain = runners(dictionary, **sizes)
    for lengths in LENGTHS:
        for beam in (1, 3):
            given = rows_of(lengths, dictionary), Decoding(decoding, iterations, length_beam=beam)
            assert_same(run(*given), plain(*given))


def test_varied_answers(dictionary):
    run, plain = runners(dictionary)
    given = rows_of(LENGTHS[0], dictionary), Decoding(nbest=2, diversity_penalty=1.0)
    assert_same(run(*given), plain(*given))


def test_a_graph_may_end_beyond_the_last_position(dictionary):
    run, plain = runners(dictionary, source=35, target=12, max_positions=47)
    given = rows_of([35, 3], dictionary), Decoding(min_length=11)
    assert_same(run(*given), plain(*given))


@pytest.mark.parametrize("precision, tolerance", [("fp32", 1e-3), ("bf16", 0.1)])
def test_a_state_stays_valid_while_others_run_through_the_same_graphs(dictionary, precision, tolerance):
    """And while larger ones replace them."""
    run, plain = runners(dictionary, precision)
    tgt, tgt_lengths = targets([5, 12, 1], dictionary)
    tgt[:, ::2] = dictionary.mask()
    tgt.masked_fill_(torch.arange(12) >= tgt_lengths[:, None], dictionary.pad())
    tgt, tgt_lengths = tgt.to(DEVICE), tgt_lengths.to(DEVICE)
    given = [[part.to(DEVICE) for part in sources(LENGTHS[i], dictionary, i)] for i in (4, 3, 0)]
    states = [[each.engine.encode(*source) for each in (run, plain)] for source in given]
    for ours, theirs in states[:2]:
        assert isinstance(ours, GraphState)
        torch.testing.assert_close(ours.length_scores, theirs.length_scores, atol=10 * tolerance, rtol=0)
        filled, expected = (each.engine.fill(tgt, tgt_lengths, state) for each, state in ((run, ours), (plain, theirs)))
        torch.testing.assert_close(filled[1], expected[1], atol=tolerance, rtol=0)
        if precision == "fp32":
            assert torch.equal(filled[0], expected[0])


def graphs(run) -> list[tuple]:
    return list(run.engine._graphs)


def test_sizes_are_rounded():
    assert [rounded(n, 1) for n in (1, 2, 3, 5, 8)] == [1, 2, 4, 8, 8]
    assert [rounded(n, 2) for n in (1, 2, 3, 4, 5, 7, 9, 16, 17, 33)] == [1, 2, 3, 4, 6, 8, 12, 16, 24, 48]
    assert [rounded(n, 3) for n in (7, 8, 9, 11, 17, 29)] == [7, 8, 10, 12, 20, 32]


def test_a_rounded_size_is_captured_once(dictionary):
    run, _ = runners(dictionary)
    for lengths in ([9, 4, 13, 2, 5, 6], *LENGTHS[1:], [9, 4, 13, 2, 15]):
        run(rows_of(lengths, dictionary), Decoding(min_length=16, max_length=19))
    sizes = [(6, 16), (1, 16), (3, 32), (3, 16)]
    expected = {part for rows, S in sizes for part in (("source", rows, S, 0), ("target", rows, S, 32))}
    largest = {("source", 256 // 32, 32, 0)}  # 192 positions of a target, by powers of two
    assert set(graphs(run)) == expected | largest


def test_larger_ones_replace_all_and_take_memory_for_more(dictionary):
    run, plain = runners(dictionary)
    seen = []
    for lengths in ([9], [9] * 4, [9] * 3, [9] * 5):
        given = rows_of(lengths, dictionary), Decoding(max_length=9)
        assert_same(run(*given), plain(*given))
        seen.append((len(run.engine._room) // (2 * 2 * 32), {rows for _, rows, *_ in graphs(run)}))
    assert seen == [(16, {1}), (64, {4}), (64, {4, 3}), (128, {8, 6})]


def test_the_least_recently_used_goes_first(dictionary, monkeypatch):
    run, _ = runners(dictionary)
    monkeypatch.setattr(cuda_graph, "GRAPHS", 4)
    for number in (4, 3, 4, 1):
        run(rows_of([9] * number, dictionary), Decoding(max_length=9))
    assert [(name, rows) for name, rows, *_ in graphs(run)] == [
        *[("source", 4), ("target", 4)],
        *[("source", 1), ("target", 1)],
    ]


def test_large_passes_run_as_they_are(dictionary, monkeypatch):
    """Sources, and targets whose sources had a graph: as they are longer, or there are candidates of each."""
    run, plain = runners(dictionary)
    monkeypatch.setattr(cuda_graph, "MOST", 64)
    for lengths, decoding, captured in (
        ([9] * 5, Decoding(), set()),
        ([9] * 3, Decoding(min_length=17), {"source"}),
        ([9] * 3, Decoding(length_beam=2), {"source"}),
        ([9] * 3, Decoding(), {"source", "target"}),
    ):
        given = rows_of(lengths, dictionary), decoding
        assert_same(run(*given), plain(*given))
        assert {name for name, *_ in graphs(run)} == captured


def test_what_was_prewarmed_is_not_captured_again(dictionary):
    run, _ = runners(dictionary)
    run.engine.prewarm([1, 3], [12, 30], [10])
    before = set(graphs(run))
    assert {key[1:] for key in before if key[0] == "target"} == {(B, S, 16) for B in (1, 3) for S in (16, 32)}
    for lengths in LENGTHS[1:]:
        run(rows_of(lengths, dictionary), Decoding(max_length=9))
    assert set(graphs(run)) == before


def test_several_threads_may_generate(dictionary):
    model = tiny_released(dictionary)
    generator = tiny_generator(model)
    generator._engine = CudaGraphEngine(model.encoder.to(DEVICE), model.tokenizer.special, "fp32")
    texts = [f"{a} {b} is it" for a in ("how", "why", "who") for b in ("can", "do", "the")] * 4
    expected = [generator.generate([text]) for text in texts]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda text: generator.generate([text]), texts)) == expected


def test_captures_on_the_models_device_and_one_stream(dictionary, monkeypatch):
    """Whatever the current ones are."""
    monkeypatch.undo()
    monkeypatch.setattr("torch.cuda.graph_pool_handle", lambda: "pool")
    inside, captured = [], []

    @contextlib.contextmanager
    def entered(what, *_, **__):
        inside.append(str(what))
        yield
        inside.pop()

    @contextlib.contextmanager
    def graph(graph, pool, stream, capture_error_mode):
        captured.append((tuple(inside), pool, stream, capture_error_mode))
        yield

    stream = SimpleNamespace(wait_stream=lambda _: None)
    made = []
    for name, stand_in in {
        "device": entered,
        "stream": entered,
        "graph": graph,
        "current_stream": lambda: None,
        "Stream": lambda device: made.append(device) or stream,
        "CUDAGraph": lambda: SimpleNamespace(replay=lambda: None),
    }.items():
        monkeypatch.setattr(f"torch.cuda.{name}", stand_in)
    model = tiny_released(dictionary)
    engine = CudaGraphEngine(model.encoder, model.tokenizer.special, "fp32")
    engine.device = device = torch.device("cuda:1")
    for _ in range(2):
        engine._pool = "pool"
        engine._capture(lambda: ())
    assert made == [device] and captured == [(("cuda:1",), "pool", stream, "thread_local")] * 2
