import asyncio
import itertools
import threading
from dataclasses import dataclass

import numpy as np
import pytest

from mist_fairseq.generate.decoding import Decoding
from mist_fairseq.generate.text_generator import Output, Source, TextGenerator
from mist_fairseq.mist.config import PositionLimits
from tests.helpers import tiny_dictionary, tiny_vocab

SEP = tiny_vocab().index("[SEP]")


@dataclass
class EchoState:
    tokens: np.ndarray
    lengths: np.ndarray

    @property
    def length_scores(self):
        return -np.abs(np.arange(11) - (self.lengths[:, None] - 1.0))

    def select(self, rows):
        return EchoState(self.tokens[rows], self.lengths[rows])


class EchoEngine:
    """Fills in the source's own words and [SEP]; the longer, the less likely."""

    graph = None
    asarray = staticmethod(np.asarray)
    encode = EchoState

    def fill(self, tokens, lengths, state):
        words = np.pad(state.tokens[:, 1:], ((0, 0), (0, tokens.shape[1])), constant_values=SEP)
        filled = words[:, : tokens.shape[1]].copy()
        filled[np.arange(len(filled)), lengths - 1] = SEP
        return filled, np.broadcast_to(-lengths[:, None] / 10, filled.shape).astype(np.float32)


class Echo(TextGenerator):
    """Answers with the source's own words; remembers its batches."""

    def __init__(self):
        self.tokenizer, self.limits, self.engine = tiny_dictionary().tokenizer, PositionLimits(20, 10), EchoEngine()
        self.batches = []

    def _generate_batch(self, sources, *more):
        self.batches.append(sources)
        return super()._generate_batch(sources, *more)


@pytest.fixture
def echo():
    return Echo()


def read(echo, text):
    """The symbols that the model gets to see."""
    return [echo.tokenizer.symbols[index] for index in echo.encode(text).ids]


def test_texts_and_pairs_become_sources(echo):
    assert read(echo, "How can") == ["[CLS]", "how", "can", "[SEP]"]
    assert read(echo, ("it", "the guitar")) == read(echo, ["it", "the guitar"])
    assert read(echo, ("it", "the guitar")) == ["[CLS]", "it", "[SEP]", "the", "guitar", "[SEP]"]
    assert read(echo, ("", "it")) == ["[CLS]", "[SEP]", "it", "[SEP]"]


def test_a_literal_special_token_is_text(echo):
    for name in ("[SEP]", "[CLS]", "[MASK]", "[PAD]"):
        ids = echo.encode(f"it {name} it").ids
        special = [echo.tokenizer.symbols.index(one) for one in ("[CLS]", "[SEP]", "[MASK]", "[PAD]")]
        assert [index for index in ids if index in special] == [ids[0], ids[-1]]
        assert "".join(read(echo, ("it", f"{name}"))[3:-1]).replace("##", "") == name.lower()


def test_what_is_too_long_is_cut_and_says_so(echo, caplog):
    source = echo.encode("how " * 10_000)
    assert len(source.ids) == 20 and source.ids[-1] == SEP and source.cut
    exactly = echo.encode("how " * 18)
    assert len(exactly.ids) == 20 and not exactly.cut
    outputs = echo.generate(["how " * 19, "how " * 18], return_scores=True)
    assert [output.cut for output in outputs] == [True, False]
    message = "1 of 2 texts are longer than the 20 tokens that the model reads, and lost their ends: "
    assert [line.startswith(message) for line in caplog.messages] == [True]
    caplog.clear()
    echo.generate(["how " * 18])
    assert not caplog.messages
    echo.generate(["how " * 19])
    assert not caplog.messages, "it was said once"
    answers = Echo().generate(iter(3 * ["how " * 19]), batch_size=1)
    next(answers)
    answers.close()  # before its end
    assert len(caplog.messages) == 1


def test_a_string_gives_what_a_list_of_it_has(echo):
    text = "how can it"
    for options in ({}, {"nbest": 2}, {"return_scores": True}, {"return_scores": True, "nbest": 2}, {"lengths": [2]}):
        assert echo.generate(text, **options) == echo.generate([text], **options)[0]
    assert echo.generate(text) == text and echo.generate("") == ""
    assert echo.generate((text, "it")) == [text, "it"], "a tuple is several texts, a pair only in a list"
    assert echo.generate([(text, "guitar")]) == ["how can it guitar"]


def test_a_generator_can_be_called(echo):
    assert echo("how can it", lengths=2) == "how can" and echo(["it"], nbest=2) == [["it"]]


def test_a_list_gives_a_list_in_its_order(echo):
    texts = [" ".join(["how", "can", "it"][: 1 + i % 3]) + " the" * (i % 7) for i in range(50)]
    for given, size in ((texts, 8), (tuple(texts), 7), (texts, 10**20)):
        assert echo.generate(given, batch_size=size, keep_repeats=True) == texts
    assert echo.generate([]) == [] and echo.generate(()) == []


def test_batches_are_of_similar_lengths(echo):
    texts = ["how " * (1 + i % 8) for i in range(32)]
    echo.generate(texts, batch_size=8)
    widths = [[len(source.ids) for source in batch] for batch in echo.batches]
    assert [len(batch) for batch in widths] == [8] * 4
    assert all(max(batch) - min(batch) <= 1 for batch in widths)


def test_an_endless_generator_is_read_as_it_goes(echo):
    read_so_far = itertools.count()
    texts = ("how " * (1 + next(read_so_far) % 5) for _ in itertools.count())
    outputs = echo.generate(texts, batch_size=2, keep_repeats=True)
    assert not isinstance(outputs, list)
    first = list(itertools.islice(outputs, 3))
    assert [len(text.split()) for text in first] == [1, 2, 3]
    assert next(read_so_far) <= 16 * 2 + 1


def test_other_iterables(echo, tmp_path):
    (tmp_path / "texts").write_text("how can\nit\n\nthe guitar\n")
    with open(tmp_path / "texts") as file:
        assert list(echo.generate(file)) == ["how can", "it", "", "the guitar"]
    assert echo.generate({"how": 1, "can": 2}.keys()) == ["how", "can"]
    assert list(echo.generate(zip(["it", "the"], ["guitar", "way"]))) == ["it guitar", "the way"]


@pytest.mark.parametrize("text", ["", "   \t\n", "\x00\x01\x7f", ("", " "), "\u200b\u2060"])
def test_a_text_of_nothing_gives_nothing(echo, text):
    (output,) = echo.generate([text], return_scores=True)
    assert output == Output("") and not echo.batches
    assert echo.generate([text, "it the"], nbest=2) == [[""], ["it the", "it"]]


def test_other_scripts_and_half_characters(echo):
    texts = ["\u4e2d\u6587", "\u0645\u0631\u062d\u0628\u0627", "it \ud83d it", "\U0001f600", "i\u0307t\u0301 \u202eit"]
    assert len(echo.generate(texts)) == len(texts)
    assert echo.generate(["it \ud83d it"], keep_repeats=True) == ["it it"]


def test_scores_and_the_rest(echo):
    given = dict(decoding="mist", return_scores=True, max_length=4)
    (output,) = echo.generate(["how can"], **given)
    shares = np.exp([0, -1, -1, -2])
    shares /= shares.sum()
    assert output.text == "how can" and output.score == pytest.approx(np.log(shares[0]) - 0.3)
    assert output.tokens == ["how", "can"] and output.token_scores == pytest.approx([-0.3, -0.3])
    assert output.steps == 2 and output.history == ["how can", "how can"], "the second pass changed nothing"
    assert list(output.length_scores) == [2, 1, 3, 4]
    assert list(output.length_scores.values()) == pytest.approx(list(shares))
    (output,) = echo.generate(["how how the the"], **given, keep_repeats=False)
    assert (
        output.text == "how the"
        and output.tokens == ["how", "the"]
        and output.token_scores == pytest.approx([-0.5, -0.5])
    )
    (output,) = echo.generate(["how how the the"], **given, keep_repeats=True)
    assert output.text == "how how the the" and output.tokens == ["how", "how", "the", "the"]


def test_nbest(echo):
    first, second = echo.generate(["how the can it", "can it"], nbest=3, return_scores=True)
    assert [output.text for output in first] == ["how the can it", "how the can", "how the"]
    shares = np.exp([0.0, -1, -2]) / np.exp([-3.0, -2, -1, 0, -1, -2, -3, -4, -5]).sum()
    assert [output.score for output in first] == pytest.approx(np.log(shares) - [0.5, 0.4, 0.3])
    assert len({id(output.length_scores) for output in first}) == 1
    assert [output.text for output in second] == ["can it", "can"], "no other length gives another text"
    assert [len(ranked) for ranked in echo.generate(["how it"], nbest=2, length_beam=4)] == [2]


def test_more_answers_than_lengths(echo, caplog):
    assert len(echo.generate(["how the can it"], nbest=9)[0]) == 4 and not caplog.messages
    for _ in range(2):
        echo.generate(["how the can it"], nbest=100)
    assert caplog.messages == [
        "nbest is 100, but each of the 9 lengths gives one answer at most; diversity_penalty gives more"
    ]


def test_answers_may_have_to_be_distinct_new_and_good(echo):
    texts, score = ["how the can it", "can it"], np.log(1 / np.exp([-3.0, -2, -1, 0, -1, -2, -3, -4, -5]).sum()) - 0.5
    assert echo.generate(texts, nbest=3, distinct=False)[1] == ["can it", "can", "can it"]
    assert echo.generate(texts, exclude_source=True) == ["how the can", "can"]
    assert echo.generate(texts, exclude_source=True, nbest=9) == [["how the can", "how the", "how"], ["can"]]
    assert echo.generate(texts[:1], min_score=score - 1e-6) == texts[:1]
    assert echo.generate(texts[:1], min_score=score + 1e-6) == [""], "none is good enough"
    assert echo.generate(texts[:1], min_score=score + 1e-6, nbest=2) == [[]]
    (none,) = echo.generate(texts[:1], min_score=0, return_scores=True)
    assert none.text == "" and none.score == -np.inf


def test_lengths(echo):
    assert echo.generate(["how can it"] * 3, lengths=2) == ["how can"] * 3
    texts = ["how can it", "the guitar", "it how can", "it"]
    assert echo.generate(texts, lengths=[1, None, 2, 9], batch_size=2) == ["how", "the guitar", "it how", "it"]
    assert all(len({source.length is None for source in batch}) == 1 for batch in echo.batches)
    assert list(echo.generate(iter(texts), lengths=iter([1, 1, 1, 1]))) == ["how", "the", "it", "it"]


def test_lengths_in_words(echo):
    """The source's first words, of which "zab" has three pieces; of 1 + 1 + 1 + ... tokens the likeliest is longer."""
    assert len(read(echo, "zab")) == 5
    texts = ["zab it the how", "it zab zab", "how the it", "it"]
    found = echo.generate(texts, lengths=[2, 2, 3, None], length_unit="words")
    assert found == ["zab it", "it zab", "how the it", "it"]
    assert echo.generate("zab it", lengths=9, length_unit="words") == "zab it", "the nearest that there is"
    ranked = echo.generate("it zab the", lengths=2, length_unit="words", nbest=3, return_scores=True)
    assert [one.text for one in ranked] == ["it zab", "it za", "it z"]
    assert [one.score for one in ranked] == sorted((one.score for one in ranked), reverse=True)


def test_lengths_as_shares_of_the_source(echo):
    texts = ["how the it can", "zab it", ("how the", "it can it"), "how the it is the way to it the guitar"]
    for share in (0.5, np.float32(0.5), 1, 0.01):
        lengths = [max(1, min(round(share * number), 9)) for number in (4, 4, 5, 10)]
        assert [source.length for source in echo.read(texts, share, Decoding(length_unit="source"))] == lengths
    found = echo.generate(texts[:2], lengths=[0.25, 2], length_unit="source")
    assert found == ["how", "zab it"]


def test_many_lengths_are_tried_for_words(echo, monkeypatch):
    tried, fill = [], echo.engine.fill
    monkeypatch.setattr(echo.engine, "fill", lambda *given: tried.append(given[1].tolist()) or fill(*given))
    assert echo.generate("zabzab it", lengths=2, length_unit="words") == "zabzab it"
    assert tried == [[3, 4, 5, 6], [7, 8, 9, 10]], "of six tokens and more before the final [SEP]"
    tried.clear()
    assert echo.generate("it", lengths=8, length_unit="words") == "it"
    assert tried == [[9, 10, 8, 7]], "no more lengths have room for eight"


def test_truecase(echo):
    text = "How is it a Guitar? is it"
    assert echo.generate(text) == "how is it a guitar? is it"
    assert echo.generate(text, truecase=True) == "How is it a Guitar? Is it"
    output = echo.generate(text, truecase=True, return_scores=True)
    assert output.history == [output.text] and "guitar" in output.tokens


@pytest.mark.parametrize(
    "texts, message",
    [
        (b"how", r"\(bytes\): expected a string, or a list"),
        (None, r"texts is None \(NoneType\)"),
        (7, r"texts is 7 \(int\)"),
        ({"text": "it"}, r"texts is \{'text': 'it'\} \(dict\): expected a string, or a list"),  # not "text"
        ({"it"}, r"texts is \{'it'\} \(set\)"),
        (np.array([["it", "how"]]), r"texts is array\(.*\(ndarray\)"),
        (["it", None], r"texts\[1\]: None \(NoneType\) is no text: expected a string"),
        ([3], r"texts\[0\]: 3 \(int\)"),
        ([b"it"], r"texts\[0\]: b'it' \(bytes\)"),
        ([("it", 3)], r"texts\[0\]: \('it', 3\)"),
        ([()], r"texts\[0\]: \(\) \(tuple\)"),
        ([{"text": "it"}], r"texts\[0\]: \{'text': 'it'\} \(dict\)"),
    ],
)
def test_what_is_no_text_is_refused_and_told(echo, texts, message):
    with pytest.raises(TypeError, match=message):
        echo.generate(texts)
    assert not echo.batches


def test_another_programs_option_is_named(echo):
    with pytest.raises(TypeError, match="generate has no option num_beams: there are nbest, .*length_beam"):
        echo.generate(["how"], num_beams=3)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"decoding": "beam"}, "decoding is 'beam', expected one of single-pass, mist, mask-predict, mask-repeats"),
        ({"min_length": 10}, "min_length 10 is too long: the model makes at most 9 tokens"),
        ({"lengths": 10}, r"texts\[0\]: length is 10, expected a whole number from 1 to 9"),
        ({"lengths": [2, "3"]}, r"texts\[1\]: length is '3'"),
        ({"lengths": [2]}, "1 lengths for 2 texts"),
        ({"lengths": iter([2])}, "there are more texts than lengths, which end at 1"),
        ({"lengths": 2, "nbest": 2}, "lengths are given: there is none to choose"),
        ({"lengths": 2.0}, r"lengths is 2.0 \(float\), expected a whole number, or one for each text"),
        ({"lengths": "12"}, r"lengths is '12' \(str\), expected a whole number"),
        ({"lengths": b"12"}, r"lengths is b'12' \(bytes\)"),
        ({"lengths": True}, r"lengths is True \(bool\)"),
        ({"lengths": np.float64(2)}, r"lengths is \S+ \(float64\)"),
        ({"lengths": "0.5", "length_unit": "source"}, r"lengths is '0.5' \(str\), expected a number, or one for each"),
        ({"lengths": -0.5, "length_unit": "source"}, r"texts\[0\]: length is -0.5, expected a number of at least 0"),
        ({"lengths": 2.5, "length_unit": "words"}, r"lengths is 2.5 \(float\), expected a whole number"),
        ({"lengths": 10, "length_unit": "words"}, r"texts\[0\]: length is 10, expected a whole number from 1 to 9"),
        ({"length_unit": "letters"}, "length_unit is 'letters', expected one of tokens, words, source"),
        ({"truecase": 1}, "truecase is 1, expected True or False"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_impossible_options_are_refused(echo, options, message):
    with pytest.raises(ValueError, match=message):
        echo.generate(["how", "can"], **options)


def test_numbers_may_be_numpys(echo):
    texts = np.array(["how can it", "the guitar it"])
    assert echo.generate(texts, lengths=np.int64(2)) == echo.generate(texts, lengths=np.array([2, 2]))
    assert echo.generate(texts, lengths=np.array([1, 2])) == ["how", "the guitar"]
    ranked = [["how can it", "how can"], ["the guitar it", "the guitar"]]
    assert echo.generate(texts, nbest=np.int32(2), batch_size=np.int64(1)) == ranked


def test_a_decoding_may_be_given_whole(echo):
    (ranked,) = echo.generate(["how it"], decoding=Decoding("mask-predict", 4, nbest=2), return_scores=True)
    assert [output.steps for output in ranked] == [4, 4]


def test_sources_of_ids(echo):
    decoding, cls = Decoding("mist", 2), echo.tokenizer.special.cls
    ranked = echo.generate_sources([echo.encode("how can"), Source([]), echo.encode("it")], decoding, details=False)
    assert [[one.text for one in best] for best in ranked] == [["how can"], [""], ["it"]]
    assert not any(one.tokens or one.history or one.length_scores for (one,) in ranked)
    with pytest.raises(ValueError, match="a source has 21 tokens, more than the model's 20"):
        echo.generate_sources([Source([cls] + [50] * 20)], decoding)
    with pytest.raises(ValueError, match="a length is 10, expected at most 9"):
        echo.generate_sources([Source([cls, 50, SEP], 10)], decoding)


def test_asyncio_gets_the_same(echo):
    texts = ["how can it", "the guitar"]

    async def work():
        given = ("it", texts, iter(texts)), dict(return_scores=True, nbest=2)
        one, several, lines = await asyncio.gather(*(echo.agenerate(each, **given[1]) for each in given[0]))
        return one, several, [line async for line in lines]

    expected = echo.generate(texts, return_scores=True, nbest=2)
    assert asyncio.run(work()) == (echo.generate("it", return_scores=True, nbest=2), expected, expected)
    with pytest.raises(TypeError, match="generate has no option num_beams"):
        asyncio.run(echo.agenerate("it", num_beams=3))


def test_asyncio_runs_one_call_at_a_time(echo, monkeypatch):
    """Of three calls the second is cancelled as it waits, the first as it runs; the third waits for the first's end."""
    running, may_end, noted = threading.Event(), threading.Event(), []

    def fill(tokens, lengths, state, fill=echo.engine.fill):
        noted.append(len(tokens))
        running.set()
        assert may_end.wait(10)
        noted.append(-len(tokens))
        return fill(tokens, lengths, state)

    monkeypatch.setattr(echo.engine, "fill", fill)

    async def work():
        calls = [asyncio.create_task(echo.agenerate(["it"] * number)) for number in (1, 2, 3)]
        await asyncio.to_thread(running.wait, 10)
        calls[1].cancel()
        calls[0].cancel()
        found = await asyncio.gather(*calls[:2], return_exceptions=True)
        assert noted == [1], "the model is not waited for"
        may_end.set()
        return *map(type, found), await calls[2]

    assert asyncio.run(work()) == (asyncio.CancelledError, asyncio.CancelledError, ["it"] * 3)
    assert noted == [1, -1, 3, -3]


def test_progress_is_shown_when_asked_for(echo, capsys):
    assert echo.generate(["how"] * 3, progress=True) == ["how"] * 3
    assert "3/3" in capsys.readouterr().err
    echo.generate(["how"] * 2000)  # not on a terminal
    assert capsys.readouterr().err == ""
