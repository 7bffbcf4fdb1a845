import pytest
from hypothesis import given
from hypothesis import strategies as st

from mist_fairseq.text.truecase import truecase

CASES = [
    ("how far is lisbon from chicago?", ["How do I get from Chicago to Lisbon?"], "How far is Lisbon from Chicago?"),
    ("what is an iphone? is it nasa's?", ["iPhone or NASA, who made it?"], "What is an iPhone? Is it NASA's?"),
    ("how do i learn it? i'm old", ["I want to learn it"], "How do I learn it? I'm old"),
    ("how do i learn it", ["how do i learn it"], "How do i learn it"),
    ("does paris hurt", ["Paris hurts"], "Does paris hurt"),  # the first word may be no name
    ("the u.s. army", ["Who leads the U.S. army?"], "The U.S. army"),
    ("who is dr. king?", ["Was Dr. King a poet?"], "Who is Dr. King?"),
    ("is o'brien a spider-man fan", ["Ask O'Brien of Spider-Man"], "Is O'Brien a Spider-Man fan"),
    ("the turkey of turkey", ["a turkey, a turkey in Turkey"], "The turkey of turkey"),  # what is most frequent
    ("how loud is rome", ["WHY DO THEY SHOUT IN ROME"], "How loud is rome"),
    ("the song of jose", ["A song of José?", "a"], "The song of José"),
    ("a café of jose", ["cafe"], "A café of jose"),  # accents of its own stay
    ("it is iPhone time. ebay", ["the IPHONE"], "It is iPhone time. Ebay"),
    ("was elan lost", ["Élan is lost"], "Was élan lost"),
    ("ebay or amazon", ["is eBay or Amazon cheap?"], "eBay or Amazon"),
    ('she said "yes." why', [""], 'She said "yes." Why'),
    ("it is e.g. red", [""], "It is e.g. red"),
    ("\u4e2d\u6587 3.5 km", ["\u4e2d\u6587"], "\u4e2d\u6587 3.5 km"),
    ("is it in rome", ["Who?", "The way to Rome"], "Is it in Rome"),  # each source begins anew
    ("", ["Rome"], ""),
]


@pytest.mark.parametrize("text, sources, expected", CASES)
def test_truecase(text, sources, expected):
    assert truecase(text, *sources) == expected


@given(st.text(alphabet="abI .?'-E\u00c9\u0130\u00df\u01c6\n"), st.text(alphabet="abI .?'-E\u00c9\u0130\n"))
def test_nothing_but_case_and_accents_changes(text, source):
    import unicodedata

    def letters(of):
        folded = unicodedata.normalize("NFD", of.casefold())
        return "".join(c for c in folded if unicodedata.category(c) != "Mn")

    once = truecase(text, source)
    assert letters(once) == letters(text)
    assert truecase(once, source) == once
