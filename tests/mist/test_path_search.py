"""Paths against all paths, over torch's tensors and numpy's arrays."""

import collections
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mist_fairseq.mist.path_search import FOLLOWED, NO_EDGE, beam, count_vertices, spell, viterbi


def random_edges(vertices, generator) -> torch.Tensor:
    """Log-probabilities. *Shapes:* (B) -> (B, L, L)."""
    L = int(vertices.max())
    order = torch.arange(L)
    there = (order > order[:, None]) & (order < vertices[:, None])[:, None]
    scores = 2 * torch.randn(len(vertices), L, L, generator=generator)
    return scores.masked_fill(~there, NO_EDGE).log_softmax(-1).masked_fill(~there, NO_EDGE)


def all_paths(vertices: int, length: int):
    """Vertices of each path of *length* tokens, without the first of all."""
    for inner in itertools.combinations(range(1, int(vertices) - 1), int(length) - 1):
        yield (*inner, int(vertices) - 1)


def plain_follow(scores, vertices: int) -> list[int]:
    """The best next vertex each time. *Shape:* (L, L)."""
    place, path = 0, []
    while place < vertices - 1:
        place = max(range(place + 1, vertices), key=lambda j: float(scores[place, j]))
        path.append(place)
    return path


def total(path, edges, scores) -> float:
    return sum(float(edges[before, place] + scores[place]) for before, place in zip((0, *path), path))


@pytest.fixture(params=["torch", "numpy"])
def convert(request):
    return np.asarray if request.param == "numpy" else lambda tensor: tensor


def drawn(data, most=9):
    vertices = torch.tensor(data.draw(st.lists(st.integers(3, most), min_size=1, max_size=4)))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 999)))
    scores = torch.randn(len(vertices), int(vertices.max()), generator=generator).mul(2).sub(3)
    return random_edges(vertices, generator), scores, vertices


KIND = st.sampled_from([np.asarray, torch.as_tensor])


@settings(max_examples=40)
@given(st.data(), KIND, st.sampled_from(sorted(FOLLOWED)))
def test_followed_paths_equal_a_plain_loop(data, convert, how):
    edges, scores, vertices = drawn(data)
    path, lengths = FOLLOWED[how](*map(convert, (edges, scores, vertices)))
    for row, number in enumerate(vertices.tolist()):
        steps = edges[row] + (scores[row] if how == "lookahead" else 0)
        expected = plain_follow(steps, number)
        assert path[row][: lengths[row]].tolist() == expected and len(expected) == lengths[row]


@settings(max_examples=60)
@given(st.data(), KIND, st.sampled_from([0.0, 1.0, 1.5]), st.integers(1, 12))
def test_viterbi_equals_an_exhaustive_search(data, convert, penalty, number):
    edges, scores, vertices = drawn(data)
    most = data.draw(st.integers(1, 9))
    least = data.draw(st.integers(1, most))
    skip = data.draw(st.integers(0, min(most, int(vertices.max()) - 1)))
    options = {"least": least, "most": most, "length_penalty": penalty, "ranks": range(skip, skip + number)}
    path, lengths, there = viterbi(*map(convert, (edges, scores, vertices)), **options)
    K = len(lengths) // len(vertices)
    for row, vertex in enumerate(vertices.tolist()):
        best = {}
        for length in range(min(least, vertex - 1), min(most, vertex - 1) + 1):
            best[length] = max(total(one, edges[row], scores[row]) for one in all_paths(vertex, length))
        ranked = sorted(best, key=lambda length: -best[length] / length**penalty)[skip : skip + number]
        assert there[row * K : row * K + K].tolist() == [k < len(ranked) for k in range(K)]
        assert number == K or len(ranked) < K, "where there are no more, one says so"
        for k, length in enumerate(ranked):
            at = row * K + k
            assert lengths[at] == length
            made = path[at][:length].tolist()
            assert made in map(list, all_paths(vertex, length))
            assert abs(total(made, edges[row], scores[row]) - best[length]) < 1e-4


@settings(max_examples=30)
@given(st.data(), KIND)
def test_paths_of_wanted_lengths(data, convert):
    edges, scores, vertices = drawn(data)
    wanted = torch.tensor([data.draw(st.integers(1, 12)) for _ in vertices])
    given_ = map(convert, (edges, scores, vertices))
    path, lengths, there = viterbi(*given_, least=1, most=9, wanted=convert(wanted))
    assert bool(there.all())
    for row, vertex in enumerate(vertices.tolist()):
        length = min(int(wanted[row]), vertex - 1)
        assert lengths[row] == length, "as near as the graph allows"
        best = max(total(one, edges[row], scores[row]) for one in all_paths(vertex, length))
        assert abs(total(path[row][:length].tolist(), edges[row], scores[row]) - best) < 1e-4


@settings(max_examples=60)
@given(st.data(), KIND, st.sampled_from([0.0, 1.0, 1.5]))
def test_a_wide_beam_finds_the_likeliest_texts(data, convert, penalty):
    """Of all texts that any path spells, the probabilities of its paths added up."""
    edges, scores, vertices = drawn(data, most=7)
    L, most = int(vertices.max()), data.draw(st.integers(1, 9))
    least = data.draw(st.integers(1, most))
    tokens = torch.tensor([[data.draw(st.integers(5, 7)) for _ in range(L)] for _ in vertices])
    options = {"least": least, "most": most, "length_penalty": penalty, "width": 33, "fill": 1, "ranks": range(33)}
    text, sure, lengths, there = beam(*map(convert, (edges, scores, tokens, vertices)), **options)
    assert text.shape == sure.shape == (33 * len(vertices), max(lengths))
    for row, vertex in enumerate(vertices.tolist()):
        likelihoods = collections.defaultdict(float)
        for length in range(min(least, vertex - 1), min(most, vertex - 1) + 1):
            for path in all_paths(vertex, length):
                likelihoods[tuple(tokens[row, list(path)].tolist())] += math.exp(total(path, edges[row], scores[row]))
        expected = {spelt: math.log(p) / len(spelt) ** penalty for spelt, p in likelihoods.items()}
        found = {}
        for k in range(row * 33, row * 33 + 33):
            if there[k]:
                spelt = tuple(text[k][: lengths[k]].tolist())
                assert spelt not in found and set(text[k][lengths[k] :].tolist()) <= {1}
                found[spelt] = float(sure[k].sum()) / len(spelt) ** penalty
        assert found == pytest.approx(expected, abs=1e-4)
        assert list(found.values()) == sorted(found.values(), reverse=True)


def plain_beam(edges, scores, tokens, vertices: int, width: int, lengths) -> dict[tuple[int, ...], list[float]]:
    """Texts of some lengths, with each token's score, by a plain loop that keeps the likeliest beginnings."""
    beginnings, whole = {(): ({0: 1.0}, [])}, {}

    def surer(text, places):
        likely, sure = beginnings[text[:-1]]
        return [*sure, math.log(sum(places.values()) / sum(likely.values()))]

    for step in range(vertices - 1):
        grown = collections.defaultdict(lambda: collections.defaultdict(float))
        for beginning, (places, _) in beginnings.items():
            for (i, p), j in itertools.product(places.items(), range(1, vertices)):
                if i < j and (j == vertices - 1 or vertices - 1 - j >= min(lengths) - step - 1):
                    longer = p * math.exp(edges[i, j] + scores[j])
                    grown[(*beginning, int(tokens[j])), j == vertices - 1][j] += longer
        whole |= {text: surer(text, places) for (text, ends), places in grown.items() if ends and step + 1 in lengths}
        left = {text: (places, surer(text, places)) for (text, ends), places in grown.items() if not ends}
        best = sorted(left, key=lambda text: -sum(left[text][0].values()))[:width]
        beginnings = {text: left[text] for text in best}
    return whole


@pytest.mark.parametrize("wanted", [None, [4, 1, 9]])
def test_a_narrow_beam(convert, wanted):
    generator = torch.Generator().manual_seed(0)
    vertices = torch.tensor([24, 17, 3])
    edges, scores = random_edges(vertices, generator), torch.randn(3, 24, generator=generator).sub(2)
    tokens = torch.randint(5, 11, (3, 24), generator=generator)
    options = {"least": 2, "most": 20, "width": 4, "fill": 1, "ranks": range(1, 4)}
    options["wanted"] = None if wanted is None else convert(torch.tensor(wanted))
    text, sure, lengths, there = beam(*map(convert, (edges, scores, tokens, vertices)), **options)
    for row, vertex in enumerate(vertices.tolist()):
        allowed = range(2, 21) if wanted is None else [min(wanted[row], vertex - 1)]
        whole = plain_beam(edges[row], scores[row], tokens[row], vertex, 4, allowed)
        expected = sorted(whole.items(), key=lambda item: -sum(item[1]) / len(item[0]))[1:4]
        for k in range(3):
            at = 3 * row + k
            assert bool(there[at]) == (k < len(expected))
            if there[at]:
                assert tuple(text[at][: lengths[at]].tolist()) == expected[k][0]
                np.testing.assert_allclose(sure[at][: lengths[at]], expected[k][1], atol=1e-5)


@pytest.mark.parametrize("how", sorted(FOLLOWED))
def test_a_diverged_model_has_a_path(convert, how):
    vertices = torch.tensor([6, 4])
    edges, scores = torch.full((2, 6, 6), torch.nan), torch.full((2, 6), torch.nan)
    path, lengths = FOLLOWED[how](*map(convert, (edges, scores, vertices)))
    assert [row[length - 1] for row, length in zip(path.tolist(), lengths.tolist())] == [5, 3]


def test_what_a_path_says(convert):
    generator = torch.Generator().manual_seed(0)
    vertices = torch.tensor([6, 4])
    edges, scores = random_edges(vertices, generator), torch.randn(2, 6, generator=generator)
    tokens = torch.randint(10, 20, (2, 6), generator=generator)
    path, lengths = torch.tensor([[2, 3, 5], [3, 3, 3]]), torch.tensor([3, 1])
    said, sure = spell(*map(convert, (path, lengths, tokens, scores, edges)), 7)
    assert said.tolist() == [tokens[0, [2, 3, 5]].tolist(), [tokens[1, 3], 7, 7]]
    expected = [[edges[0, i, j] + scores[0, j] for i, j in ((0, 2), (2, 3), (3, 5))], [edges[1, 0, 3] + scores[1, 3]]]
    np.testing.assert_allclose(sure[0], expected[0], rtol=1e-6)
    np.testing.assert_allclose(sure[1], [*expected[1], 0, 0], rtol=1e-6)


def test_as_many_vertices_as_the_sizes_say(convert):
    lengths = torch.tensor([2, 9, 40])
    assert count_vertices(convert(lengths), 4, 32, 100).tolist() == [32, 36, 100]
    assert count_vertices(convert(lengths), 4, 32, 20).tolist() == [20, 20, 20]
