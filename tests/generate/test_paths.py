"""Decoding with paths against plain loops over single sentences, which search all paths."""

import numpy as np
import pytest
import torch

from mist_fairseq import OnnxGenerator
from mist_fairseq.generate.answers import answer
from mist_fairseq.generate.decoding import Decoding
from mist_fairseq.mist.path_search import FOLLOWED
from mist_fairseq.release.onnx_folder import FILES, save_onnx
from tests.generate.plain import Runner, encode_one
from tests.helpers import sources, tiny_generator, tiny_released
from tests.mist.test_mixing import plain_mix
from tests.mist.test_path_search import all_paths, plain_beam, plain_follow

LENGTHS = [9, 4, 13, 2, 6, 9]
SIZES = {"head": "dag", "upsample": 1, "least_vertices": 5}
LIMIT = 10  # vertices, so that all paths can be searched


@pytest.fixture(scope="module", params=["none", "onnxruntime"])
def run(request, dictionary) -> Runner:
    return Runner(tiny_released(dictionary, target=LIMIT, **SIZES), request.param)


@pytest.fixture(scope="module")
def rows(dictionary):
    tokens, lengths = sources(LENGTHS, dictionary)
    return [row[:length].tolist() for row, length in zip(tokens, lengths)]


@torch.no_grad()
def plain_graph(model, source, number):
    """Tokens, their log-probabilities, and those of the edges."""
    special = model.tokenizer.special
    masks, given = torch.full((1, number), special.mask), (torch.tensor([number]), torch.arange(number))
    hidden = model.encoder.decode_target(masks, *given, encode_one(model, source))
    edges = model.encoder.edges(hidden[None], given[0])[0]
    logits = model.encoder.token_logits(hidden)
    logits[:, list(special.never_predicted)] = -torch.inf
    scores, tokens = logits.log_softmax(-1).max(-1)
    return tokens, scores, edges


def plain_read(model, source, number, search="viterbi", lengths=None, penalty=1.0):
    """-> tokens, the score of each."""
    tokens, scores, edges = plain_graph(model, source, number)

    def steps(path):
        return [float(edges[before, place] + scores[place]) for before, place in zip((0, *path), path)]

    if search == "beam":
        found = plain_beam(edges, scores, tokens, number, 5, lengths or range(2, number))
        return max(
            ((list(text), sure) for text, sure in found.items()), key=lambda one: sum(one[1]) / len(one[1]) ** penalty
        )
    if search in FOLLOWED:
        path = plain_follow(edges + (scores if search == "lookahead" else 0), number)
    else:
        paths = [path for length in lengths or range(2, number) for path in all_paths(number, length)]
        path = max(paths, key=lambda path: sum(steps(path)) / len(path) ** penalty)
    return tokens[list(path)].tolist(), steps(path)


def plain_decode(model, source, passes=1, **options):
    """-> the text and its scores after each pass."""
    special, number = model.tokenizer.special, min(max(len(source), SIZES["least_vertices"]), LIMIT)
    made = [plain_read(model, source, number, **options)]
    for _ in range(1, passes):
        mixed = plain_mix(made[-1][0], source, model.limits.source, special.cls, special.sep)
        made.append(plain_read(model, mixed, number, **options))
    return made


def assert_equals(found, made, penalty=1.0):
    """MIST ends where nothing changes."""
    steps = next((n + 1 for n in range(1, len(made)) if made[n][0] == made[n - 1][0]), len(made))
    tokens, scores = made[steps - 1]
    assert found.steps == steps and found.tokens == tokens
    assert found.history == [text for text, _ in made[:steps]]
    np.testing.assert_allclose(found.token_scores, scores, atol=1e-4, rtol=0)
    assert abs(found.score - sum(scores) / len(scores) ** penalty) < 1e-4


def answers(run, rows, decoding, **options):
    """As a text is read, but whole."""
    width = max(map(len, rows))
    tokens = [row + [run.special.pad] * (width - len(row)) for row in rows]
    given = (run.engine.asarray(torch.tensor(part)) for part in (tokens, list(map(len, rows))))
    if "target_lengths" in options:
        options["target_lengths"] = run.engine.asarray(torch.tensor(options["target_lengths"]))
    tokenizer = run.model.tokenizer
    return answer(run.engine, *given, decoding, tokenizer, run.model.limits, history=True, **options)


@pytest.fixture(autouse=True)
def whole(monkeypatch, run):
    """Nothing is left out of what was predicted."""
    monkeypatch.setattr(type(run.model.tokenizer), "text_positions", lambda self, ids, keep: list(range(len(ids))))


@pytest.mark.parametrize("search", ["viterbi", "beam", "lookahead", "greedy"])
@pytest.mark.parametrize("passes", [1, 3])
def test_decodings_equal_plain_loops(run, rows, search, passes):
    decoding = Decoding("mist" if passes > 1 else "single-pass", passes, path_search=search)
    for row, found in zip(rows, answers(run, rows, decoding)):
        assert_equals(found.best[0], plain_decode(run.model, row, passes, search=search))


@pytest.mark.parametrize("penalty", [0.0, 2.0])
def test_bounds_of_the_length(run, rows, penalty):
    decoding = Decoding(min_length=2, max_length=3, path_length_penalty=penalty)
    for row, found in zip(rows, answers(run, rows, decoding)):
        assert_equals(found.best[0], plain_decode(run.model, row, lengths=[3, 4], penalty=penalty), penalty)


@pytest.mark.parametrize("passes", [1, 2])
def test_several_answers_have_several_lengths(run, rows, passes):
    """Which MIST keeps."""
    decoding = Decoding("mist" if passes > 1 else "single-pass", passes, nbest=3, distinct=False)
    for row, found in zip(rows, answers(run, rows, decoding)):
        number = min(max(len(row), SIZES["least_vertices"]), LIMIT)
        first = {length: plain_decode(run.model, row, passes, lengths=[length]) for length in range(2, number)}
        chosen = sorted(first, key=lambda n: -sum(first[n][0][1]) / n)[:3]
        assert sorted(map(len, (one.tokens for one in found.best))) == sorted(chosen)
        for one in found.best:
            assert_equals(one, first[len(one.tokens)])


def test_a_batch_has_no_paths_that_its_sentences_have_not(run, rows):
    """Graphs of other sizes beside it: neither longer ones nor more, however many are asked for."""
    for decoding in (Decoding(min_length=8), Decoding(nbest=20, distinct=False)):
        for row, found in zip(rows, answers(run, rows, decoding)):
            number = min(max(len(row), SIZES["least_vertices"]), LIMIT)
            shortest = min(decoding.min_length + 1, number - 1)
            assert len(found.best) == (1 if decoding.nbest == 1 else number - shortest)
            for one in found.best:
                made = plain_decode(run.model, row, lengths=[len(one.tokens)])
                assert_equals(one, made)
                assert len(one.tokens) >= shortest


def test_further_lengths_where_the_best_says_the_source(run, rows, monkeypatch):
    """As of a fixed length: as many are tried as there are."""
    best = [found.best[0] for found in answers(run, rows, Decoding())]
    said = {tuple(one.tokens) for one in best}

    def texts(ids):
        return "the source" if len(ids) > LIMIT or tuple(ids) in said else str(ids)

    monkeypatch.setattr(type(run.model.tokenizer), "decode", lambda self, ids: texts(ids))
    monkeypatch.setattr("mist_fairseq.generate.answers.letters_of", str)
    wide = [row * 2 for row in rows if len(row) > LIMIT / 2]
    for found in answers(run, wide, Decoding(exclude_source=True)):
        assert found.best and texts(found.best[0].tokens) != "the source"


@pytest.mark.parametrize("search", ["viterbi", "beam"])
def test_lengths_that_are_asked_for(run, rows, search):
    lengths, decoding = [3, 2, 4, 3, 9, 20], Decoding(path_search=search)
    for row, length, found in zip(rows, lengths, answers(run, rows, decoding, target_lengths=lengths)):
        number = min(max(len(row), SIZES["least_vertices"]), LIMIT)
        assert_equals(found.best[0], plain_decode(run.model, row, lengths=[min(length, number - 1)], search=search))


def test_several_answers_of_a_beam_are_different_texts(run, rows):
    """Those that a plain beam finds, the likeliest first."""
    for row, found in zip(rows, answers(run, rows, Decoding(path_search="beam", nbest=3, distinct=False))):
        number = min(max(len(row), SIZES["least_vertices"]), LIMIT)
        tokens, scores, edges = plain_graph(run.model, row, number)
        whole = plain_beam(edges, scores, tokens, number, 5, range(2, number))
        best = sorted(whole, key=lambda text: -sum(whole[text]) / len(text))[:3]
        assert [tuple(one.tokens) for one in found.best] == best


def test_a_batch_gives_what_its_sentences_give(run, rows):
    decoding = Decoding("mist", 2)
    for row, found in zip(rows, answers(run, rows, decoding)):
        (alone,) = answers(run, [row], decoding)
        assert alone.best[0].tokens == found.best[0].tokens and alone.best[0].history == found.best[0].history


@pytest.mark.parametrize(
    "options, message",
    [
        (
            {"decoding": "mask-predict"},
            "decoding mask-predict needs a fixed length: --head dag has single-pass and mist",
        ),
        ({"nbest": 2, "diversity_penalty": 1.0}, "diversity_penalty needs a fixed length"),
    ],
)
def test_what_needs_a_fixed_length_is_refused(run, rows, options, message):
    with pytest.raises(ValueError, match=message):
        answers(run, rows, Decoding(**options))


def test_lookahead_takes_no_lengths(run, rows):
    with pytest.raises(
        ValueError, match="path_search lookahead finds a path of any length: lengths need viterbi or beam"
    ):
        answers(run, rows, Decoding(path_search="lookahead"), target_lengths=[3] * len(rows))
    for options in ({"nbest": 2}, {"min_length": 2}, {"max_length": 5}, {"path_length_penalty": 0.5}):
        (name,) = options
        with pytest.raises(
            ValueError, match=f"path_search greedy finds one path of any length: {name} needs viterbi or beam"
        ):
            Decoding(path_search="greedy", **options)
    with pytest.raises(ValueError, match="path_search is 'best', expected one of viterbi, beam, greedy, lookahead"):
        Decoding(path_search="best")


def test_path_options_need_paths(dictionary):
    generator = tiny_generator(tiny_released(dictionary))
    for options in ({"path_search": "viterbi"}, {"path_length_penalty": 0.5}):
        with pytest.raises(ValueError, match="are for models that were trained with --head dag"):
            generator.generate(["how can it"], **options)


def test_texts(dictionary, tmp_path):
    """The same answers in Python from a model and from an exported folder; int8 is near."""
    released = tiny_released(dictionary, target=LIMIT, **SIZES)
    save_onnx(released, str(tmp_path / "onnx"))
    generators = [
        tiny_generator(released),
        *(OnnxGenerator.from_pretrained(str(tmp_path / "onnx"), kind) for kind in FILES),
    ]
    texts = ["how can you learn", "", "where"]
    plain, whole, rounded = (made.generate(texts, decoding="mist", return_scores=True) for made in generators)
    assert [output.text for output in plain] == [output.text for output in whole]
    assert plain[0].tokens and not plain[1].text and not plain[0].length_scores
    for one, other in zip(plain, rounded):
        assert other.text == one.text or abs(other.score - one.score) < 0.1
