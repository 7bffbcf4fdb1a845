"""Banned and required words, over an engine whose scores are random, and over real ones."""

import re

import numpy as np
import pytest

from mist_fairseq.generate.constraints import ConstrainedEngine, Constraints
from mist_fairseq.generate.decoding import DECODINGS, Decoding
from mist_fairseq.text.wordpiece import wordpiece_tokenizer
from tests.generate.test_text_generator import Echo
from tests.helpers import tiny_generator

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PIECES = ["a", "c", "at", "cat", "Cat", "the", "dog", "new", "york", "?", "(", ")", "-"]
PIECES += ["##a", "##t", "##at", "##egory", "##s", "##c"]
TOKENIZER = wordpiece_tokenizer(SPECIAL + PIECES, lowercase=False)


def ids(*pieces: str) -> list[int]:
    return [TOKENIZER.indices[piece] for piece in pieces]


class Scored:
    """An engine whose log-probabilities are given, (T, V), whatever the source."""

    graph, asarray, encode = None, staticmethod(np.asarray), None

    def __init__(self, log_p):
        self.log_p = log_p

    def fill(self, tokens, lengths, state, second=False, allowed=None):
        log_p = self.log_p.copy()
        log_p[:, :5] = -np.inf
        if allowed is not None:
            log_p[:, ~allowed] = -np.inf
        masked = tokens == TOKENIZER.special.mask
        best = log_p[: tokens.shape[1]].argmax(1)
        return np.where(masked, best, tokens), np.where(masked, log_p[: tokens.shape[1]].max(1), 0.0)


class Rows:
    def select(self, rows):
        return self


def filled(log_p, *, banned=(), required=(), rows=1, given=None):
    engine = ConstrainedEngine(Scored(log_p), Constraints(TOKENIZER, banned, required))
    tokens = np.full((rows, len(log_p)), TOKENIZER.special.mask) if given is None else given
    return engine, *engine.fill(tokens, np.full(len(tokens), tokens.shape[1]), Rows())


def likeliest(*pieces: str) -> np.ndarray:
    log_p = np.full((len(pieces), len(TOKENIZER.symbols)), -9.0)
    log_p[range(len(pieces)), ids(*pieces)] = -1
    return log_p


@pytest.mark.parametrize(
    "pieces, banned",
    [
        (["the", "cat", "?"], True),
        (["the", "Cat", "?"], True),
        (["(", "cat", ")"], True),
        (["c", "##at", "dog"], True),  # cut otherwise
        (["c", "##a", "##t"], True),
        (["cat", "##egory", "?"], False),
        (["cat", "##s", "?"], False),
        (["the", "a", "##c", "##at"], False),
        (["c", "[SEP]", "##at"], True),  # [SEP] is not read
        (["dog", "-", "cat"], True),
    ],
)
def test_a_word_is_what_readers_see(pieces, banned):
    rules = Constraints(TOKENIZER, ("cat",), ())
    assert bool(rules.banned_in(ids(*pieces))) == banned
    assert rules.met_by(ids(*pieces)) == (not banned)
    assert banned == bool(re.search(r"\bcat\b", TOKENIZER.decode(ids(*pieces)).lower()))


def test_phrases():
    rules = Constraints(TOKENIZER, ("new york",), ())
    assert rules.banned_in(ids("the", "new", "york", "?")) == [(1, 3)]
    assert not rules.banned_in(ids("new", "?", "york")) and not rules.banned_in(ids("york", "new"))


def test_banned_words_are_filled_anew_and_nothing_else():
    log_p = likeliest("the", "cat", "c", "##at", "dog")
    log_p[1, ids("Cat", "dog")] = [-2, -3]
    log_p[2, ids("a")] = -2
    _, tokens, scores = filled(log_p, banned=("cat",), rows=2)
    assert [TOKENIZER.decode(row) for row in tokens.tolist()] == ["the dog aat dog"] * 2
    assert scores.tolist() == [[-1, -3, -2, -1, -1]] * 2


def test_what_was_known_stays():
    given = np.array([ids("c", "[MASK]", "cat")])
    _, tokens, _ = filled(likeliest("dog", "##at", "dog"), banned=("cat",), given=given)
    assert tokens[0, [0, 2]].tolist() == ids("c", "cat")


@pytest.mark.parametrize("seed", range(30))
def test_random_scores_give_no_banned_word_but_every_required_one(seed):
    rng = np.random.default_rng(seed)
    log_p = np.log(rng.dirichlet(np.full(len(TOKENIZER.symbols), 0.2), 9) + 1e-30)
    engine, tokens, scores = filled(log_p, banned=("cat", "a", "new york"), required=("dogs", "york"))
    text = TOKENIZER.decode(tokens[0].tolist())
    assert not re.search(r"\b(cat|a|new york)\b", text.lower())
    assert re.search(r"\bdogs\b", text) and re.search(r"\byork\b", text), text
    np.testing.assert_allclose(scores[0], log_p[range(9), tokens[0]], err_msg="the scores are those among all tokens")
    assert engine.constraints.met_by(tokens[0].tolist())


def test_required_words_are_put_where_they_are_likeliest():
    """The longest first; what follows goes on with no word."""
    log_p = likeliest("the", "##s", "the", "##s", "the", "the")
    log_p[2, ids("dog")] = log_p[3, ids("cat")] = -2
    log_p[3, ids("##egory")] = log_p[4, ids("##s")] = -3
    _, tokens, scores = filled(log_p, required=("cat", "dogegory"))
    assert tokens[0, :5].tolist()[2:4] == ids("dog", "##egory"), "cat would have been likelier there"
    assert scores[0, 2:4].tolist() == [-2, -3] and not TOKENIZER.symbols[tokens[0, 4]].startswith("##")
    assert "cat" in TOKENIZER.decode(tokens[0].tolist()).split()


@pytest.mark.parametrize(
    "banned, required, message",
    [
        (("",), (), "banned has '', expected words"),
        ((), ("z",), "required has 'z', which the vocabulary cannot write"),
        (("Cat",), ("the cat",), "required has 'the cat', which is banned"),
    ],
)
def test_impossible_words_are_named(banned, required, message):
    with pytest.raises(ValueError, match=message):
        Constraints(TOKENIZER, banned, required)


# -- in generation ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accelerate", ["none", "onnxruntime"])
def test_every_decoding_keeps_to_them(accelerate):
    generator = tiny_generator(accelerate=accelerate)
    texts = ["how can i learn the guitar", "what is it"]
    for decoding in DECODINGS:
        given = dict(decoding=decoding, lengths=12, required=["guitars", "paris"])
        banned = {word for answer in generator.generate(texts, **given) for word in re.findall(r"[a-z]{2,}", answer)}
        given["banned"] = sorted(banned - {"guitars", "paris"})[:9]
        assert given["banned"]
        after = generator.generate(texts, **given)
        for answer in after:
            found = re.findall(r"\w+", answer)
            assert not set(found) & set(given["banned"]) and {"guitars", "paris"} <= set(found), (decoding, answer)
        assert [generator.generate(text, **given) for text in texts] == after, "whatever else is in the batch"


def test_an_older_graph_says_so(monkeypatch):
    generator = tiny_generator(accelerate="onnxruntime")
    monkeypatch.setattr(generator.engine, "_optional", {"second"})
    with pytest.raises(ValueError, match="banned and required need a newer ONNX model: export it again"):
        generator.generate("how can i", required=["it"])


def test_longer_answers_where_there_is_no_room():
    generator = tiny_generator()
    assert len(generator.generate("how can i", required=["one two three four"]).split()) >= 4
    assert generator.generate("how can i", required=["one two three four"], max_length=3) == ""
    assert generator.generate("how can i", banned=["how"]) != "how"


def test_refusals():
    with pytest.raises(ValueError, match="required takes 10 tokens, more than the 9 that the model makes"):
        Echo().generate("how", required=["how the", "can it the way to the guitar it"])
    with pytest.raises(ValueError, match="banned is 'cat', expected a list of words"):
        Decoding(banned="cat")
    with pytest.raises(ValueError, match=r"required is \['cat', 3\], expected a list of words"):
        Decoding(required=["cat", 3])
    assert hash(Decoding(banned=["cat"])) == hash(Decoding(banned=("cat",)))
    with pytest.raises(ValueError, match="banned has '', expected words"):
        Echo().generate("how", banned=[""])
