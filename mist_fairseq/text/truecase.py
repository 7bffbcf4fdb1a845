"""The capitals that an uncased vocabulary loses: names as the source wrote them, and a capital where a sentence begins.

Knows no language but one English word. A capital in the middle of a sentence of the source says how a word is written;
one at its beginning says nothing, as that stands there anyway. "I" always is the pronoun.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator

_WORD = re.compile(r"\w+(?:[.'\u2019-]\w+)*")
_STEM = re.compile(r"(.+?)(['\u2019]\w+)")  # of "Rome's" and "I'm"
_ENDS = re.compile(r"[.!?\u2026][\"')\]\u201d\u2019]*\s")  # of sentences
_ABBREVIATED = re.compile(r"[^\W\d_a-z][a-z]{0,3}|.*\..*")  # "Dr", "J", "e.g"; these end no sentence


def truecase(text: str, *sources: str) -> str:
    """Write the lower-case words of *text* as the *sources* do, and begin its sentences with capitals.

    A word that has capitals or accents already stays, and so does every word if the sources are all in capitals.

    ::

        truecase("what is jose's best song? is it sad?", "Which song of José is it?")
        # "What is José's best song? Is it sad?"
    """
    written = _spellings(sources)
    pieces, end, word = [], 0, ""
    for match in _WORD.finditer(text):
        gap = text[end : match.start()]
        begins = not end or _ends_sentence(word, gap)
        word, end = _spelled(match[0], written), match.end()
        pieces += [gap, word[:1].title() + word[1:] if begins and word == match[0] else word]
    return "".join([*pieces, text[end:]])


def _spellings(sources: tuple[str, ...]) -> dict[str, str]:
    """How the sources write a word, most often, by how it reads without case and accents."""
    if not any(map(str.islower, "".join(sources))):
        return {}
    counts: dict[str, Counter[str]] = {}
    for word, begins in (pair for source in sources for pair in _words(source)):
        stem = _STEM.fullmatch(word)
        for form in {word, stem[1] if stem else word}:
            if begins and form != "I" and form[1:] == form[1:].lower():
                form = form.lower()
                if form.isascii():
                    continue  # it may be a name or not
            counts.setdefault(_plain(form), Counter())[form] += 1
    return {plain: forms.most_common(1)[0][0] for plain, forms in counts.items()}


def _words(source: str) -> Iterator[tuple[str, bool]]:
    """The words of a text, and whether each begins a sentence."""
    end, word = 0, ""
    for match in _WORD.finditer(source):
        begins = not end or _ends_sentence(word, source[end : match.start()])
        word, end = match[0], match.end()
        yield word, begins


def _ends_sentence(word: str, gap: str) -> bool:
    """Whether a sentence ends between *word* and the next, which *gap* is between."""
    end = _ENDS.search(gap)
    return end is not None and not (gap[0] == "." and _ABBREVIATED.fullmatch(word))


def _spelled(word: str, written: dict[str, str]) -> str:
    if word != _plain(word):
        return word
    if word in written:
        return written[word]
    stem = _STEM.fullmatch(word)
    return written.get(stem[1], stem[1]) + stem[2] if stem else word


def _plain(word: str) -> str:
    """Without case and accents, as BERT's uncased vocabularies have it."""
    return "".join(c for c in unicodedata.normalize("NFD", word.lower()) if unicodedata.category(c) != "Mn")
