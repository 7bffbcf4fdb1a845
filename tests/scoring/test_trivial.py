import pytest

from mist_fairseq.scoring.scores import PROTOCOLS, with_trivial
from mist_fairseq.scoring.trivial import first_sentence

REST = " The 21-year-old said so."


@pytest.mark.parametrize(
    "sentence",
    [
        "Mr Farry said that fees in the U.S. Senate's view cost £9.5m in 2015.",
        'He said: "It is the most complete shock!"',
        "J. K. Rowling asked why (or when?)",
        "Is it so?",
        "No mark ends it",
        "",
    ],
)
def test_first_sentences(sentence):
    assert first_sentence(sentence + REST * sentence.endswith(tuple('.!?")'))) == sentence
    for start in ('"I think', "24 June", "£10 was", "(They"):
        assert first_sentence(f"It rains. {start} so.") == "It rains."


def test_each_protocol_has_its_own_and_it_comes_last():
    sources, systems = ["It rains. It does."], {"a": ["x"], "b": ["y"]}
    for name, protocol in PROTOCOLS.items():
        *given, trivial = with_trivial(systems, sources, protocol).items()
        if name == "plain":
            assert (*given, trivial) == (*systems.items(),)
            continue
        assert dict(given) == systems
        assert trivial == (("lead-1", ["It rains."]) if "xsum" in name else ("copy of the source", sources))
    assert with_trivial(systems, None, PROTOCOLS["quora"]) == systems
    given = {"lead-1": ["another's"], "a": ["x"]}
    assert list(with_trivial(given, sources, PROTOCOLS["xsum"]).items()) == list(given.items())
