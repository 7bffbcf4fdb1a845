"""Question pairs, and a vocabulary of words and letters, by code alone: no package's version changes them."""

import random
import string
from pathlib import Path

_SLOTS = {
    "skill": "draw,swim,cook,sing,dance,play chess,play the guitar,play the piano,speak in public,write very well",
    "language": "french,german,italian,russian,greek,hindi,very good english,old english",
    "city": "paris,rome,tokyo,london,new york,delhi,oslo,los angeles,new delhi",
    "country": "india,canada,spain,japan,kenya,new zealand,south africa",
    "food": "rice,bread,honey,green tea,coffee,olive oil,eggs,dark chocolate",
    "person": "a child,a student,an old man,a beginner,my mother,my father",
    "time": "a week,a month,two months,a year,ten days,one long summer",
    "animal": "dog,cat,horse,rabbit,big old dog,very small cat",
}

# Each line asks one thing in two or three ways; a pair is a phrasing and the next one.
_INTENTS = (
    """
how can i learn to {skill} in {time}?|what is the best way to learn to {skill} within {time}?|can {person} {skill} \
after {time}?
how do i learn {language} quickly?|what is the fastest way to learn {language}?|which book is best to learn {language}?
is {language} hard for {person} to learn?|will {person} find {language} very, very hard?
what are the best places to visit in {city}?|where should {person} go in {city}?
how much does it cost to live in {city}?|is it expensive for {person} to live in {city}?
when should i visit {country}?|what is the best time to travel to {country}?|which month is best for {country}?
is {food} good for your health?|why is {food} said to be good?|should {person} eat {food} every day?
what can i cook with {food} and {food2}?|which dishes use both {food} and {food2}?
how do i take care of a {animal}?|what does a {animal} need to be happy?|can {person} keep a {animal}?
how do i get from {city} to {city2}?|is there a train from {city} to {city2}?
""".strip()
    .replace("\\\n", "")
    .split("\n")
)

_SPECIAL = ["[PAD]", "[unused1]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def vocabulary() -> list[str]:
    """Special tokens, not at BERT's places, punctuation, letters and digits to spell with, and the words above."""
    letters = string.ascii_lowercase + string.digits
    text = " ".join(_INTENTS + list(_SLOTS.values()))
    for character in string.punctuation:
        text = text.replace(character, " ")
    words = sorted({word for word in text.split() if len(word) > 1} - {slot + "2" for slot in _SLOTS})
    # Some are to be spelled, with continued pieces.
    words = [word for word in words if word not in ("piano", "russian", "rabbit", "tokyo")]
    return [*_SPECIAL, *string.punctuation, *letters, *("##" + letter for letter in letters), *words]


def pairs(number: int, seed: int) -> list[tuple[str, str]]:
    """Source and target; the same for the same seed, and some of them several times."""
    rng = random.Random(seed)
    found = []
    for _ in range(number):
        phrasings = rng.choice(_INTENTS).split("|")
        first = rng.randrange(len(phrasings))
        fillers = {}
        for slot, values in _SLOTS.items():
            fillers[slot], fillers[slot + "2"] = rng.sample(values.split(","), 2)
        source, target = phrasings[first], phrasings[(first + 1) % len(phrasings)]
        found.append((source.format(**fillers), target.format(**fillers)))
    return found


def awkward() -> list:
    """Inputs that are easy to get wrong: empty, cut, of unknown characters, with special tokens, of several parts."""
    return [
        "",
        "how can i learn to draw " * 12,
        "caf\u00e9 \u2603 \U0001f600 \u4e2d\u6587, what is it?",
        "Is [SEP] or [MASK] GOOD for your health?",
        "paris",
        ("paris", "how much does it cost to live in paris?"),
        ("a year", "rome", "when should i visit spain?"),
    ]


def candidates() -> list:
    """Inputs from which those whose outputs no rounding error changes are taken; no pair of texts is among the last."""
    return awkward() + list(dict.fromkeys(source for source, _ in pairs(260, seed=3)))


def write_texts(folder: Path) -> Path:
    """What fairseq-preprocess reads: vocab.txt, and train and valid in src and tgt."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(vocabulary()) + "\n", encoding="utf-8")
    for split, number, seed in (("train", 2000, 1), ("valid", 16, 2)):
        found = pairs(number, seed)
        found[1] = ("how " * 70, "why " * 40)  # over both limits
        found[2] = ("caf\u00e9 \u2603 \U0001f600", "it")
        found[3] = ("paris [SEP] how much does it cost to live in paris?", "is it expensive to live in paris?")
        for i, suffix in enumerate(("src", "tgt")):
            text = "".join(pair[i] + "\n" for pair in found)
            (folder / f"{split}.{suffix}").write_text(text, encoding="utf-8")
    return folder
