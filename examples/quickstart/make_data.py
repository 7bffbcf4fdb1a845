"""Write the quickstart's data set: English question pairs that ask the same thing in two ways.

Each intent below has several phrasings; a pair takes one as source and the next as target, with the same fillers.
What is held out for validation and test are combinations of an intent and its fillers, so that every word of a test
question was seen in training but no question like it. Deterministic. Also trains a SentencePiece model on the
training text.

    python examples/quickstart/make_data.py DIR
"""

import argparse
import io
import itertools
import random
from pathlib import Path

import sentencepiece

FILLERS = {
    "skill": "cook,swim,draw,dance,sing,code,knit,juggle,meditate,ski,surf,type faster,read music,speak in public,"
    "play chess,write poetry,edit videos,bake bread,drive a car,ride a horse,take good photos,grow vegetables",
    "language": "French,Spanish,German,Italian,Japanese,Korean,Arabic,Hindi,Russian,Portuguese,Turkish,Swedish,"
    "Greek,Polish,Dutch,Mandarin",
    "instrument": "guitar,piano,violin,flute,drums,cello,trumpet,harp,saxophone,banjo,ukulele,clarinet",
    "city": "Paris,London,Rome,Tokyo,Berlin,Madrid,Lisbon,Vienna,Prague,Dublin,Athens,Oslo,Cairo,Mumbai,Delhi,"
    "Sydney,Toronto,Chicago,Boston,Seattle,Istanbul,Bangkok,Singapore,Nairobi",
    "country": "India,Canada,Brazil,Spain,Norway,Japan,Kenya,Mexico,Italy,Egypt,Chile,Poland,Vietnam,Iceland,"
    "Greece,Portugal,Morocco,Ireland",
    "food": "rice,bread,cheese,honey,coffee,chocolate,eggs,garlic,ginger,yogurt,almonds,spinach,avocado,salmon,"
    "green tea,olive oil,potatoes,bananas,lentils,oats",
    "subject": "physics,chemistry,biology,history,algebra,geometry,statistics,economics,philosophy,astronomy,"
    "geography,calculus,psychology,linguistics",
    "device": "laptop,phone,tablet,camera,printer,router,keyboard,monitor,headset,smartwatch,projector,scanner",
    "sport": "tennis,football,cricket,hockey,golf,rugby,boxing,karate,judo,archery,badminton,volleyball",
    "animal": "dog,cat,horse,rabbit,parrot,goldfish,hamster,turtle,ferret,snake,guinea pig,canary",
    "job": "doctor,teacher,lawyer,pilot,nurse,chef,plumber,journalist,designer,gardener,dentist,librarian,"
    "translator,baker",
    "person": "a beginner,a student,a child,an adult,a tourist,my mother,my father,a busy person",
    "time": "a week,a month,two months,a year,six weeks,ten days,one summer",
    "money": "$50,$100,$200,$500,$800,$1500",
}

# Phrasings of one intent, in a circle: each is paired with the next.
INTENTS = """
How can I learn to {skill} in {time}?|What is the best way to learn to {skill} within {time}?|Is it possible to \
{skill} after {time} of practice?
How do I learn {language} quickly?|What's the fastest way to learn {language}?|How can I become fluent in {language} \
in a short time?|Which method works best for learning {language} fast?
How hard is it to learn {language} for {person}?|Is {language} difficult for {person} to learn?|Will {person} find \
{language} hard?
What are the best places to visit in {city}?|Which sights shouldn't I miss in {city}?|Where should a tourist go in \
{city}?|What can I see during my stay in {city}?
How expensive is it to live in {city}?|What does it cost to live in {city}?|Is the cost of living in {city} high?
What is the best time to travel to {country}?|When should I visit {country}?|Which month is best for a trip to \
{country}?
Do I need a visa for {country}?|Is a visa required to enter {country}?|Can I travel to {country} without a visa?
Is {food} good for your health?|What are the health benefits of {food}?|Why is {food} said to be healthy?|Should I \
eat {food} every day to stay healthy?
How long can I keep {food} in the fridge?|When does {food} go bad in the fridge?|For how long does {food} stay fresh?
What can I cook with {food} and {food2}?|Which dishes use both {food} and {food2}?|Is there a recipe with {food} and \
{food2}?
How should {person} start to play the {instrument}?|What's a good way for {person} to begin with the {instrument}?|\
Where does {person} begin when learning the {instrument}?
Is the {instrument} harder than the {instrument2}?|Which is more difficult, the {instrument} or the {instrument2}?|\
Should I learn the {instrument} or the {instrument2} first?
What are the best books on {subject} for {person}?|Which {subject} books would you recommend to {person}?|Which book \
should {person} read to understand {subject}?
Why is {subject} so hard to understand?|What makes {subject} so difficult?|Why do so many people struggle with \
{subject}?
Which {device} should I buy for under {money}?|What's the best {device} below {money}?|Can I get a good {device} for \
{money}?
How do I fix a {device} that won't turn on?|What should I do when my {device} doesn't start?|Why won't my {device} \
switch on?
How do you clean a {device} safely?|What is a safe way to clean my {device}?|Can I clean a {device} without \
damaging it?
What are the rules of {sport}?|How is {sport} played?|Can someone explain how {sport} works?
Is {sport} a good sport for {person}?|Should {person} take up {sport}?|Would you recommend {sport} to {person}?
How do I take care of a {animal}?|What does a {animal} need to be happy?|What should I know before getting a {animal}?
Can a {animal} live together with a {animal2}?|Is it safe to keep a {animal} and a {animal2} in one house?|Do a \
{animal} and a {animal2} get along?
How do I become a {job} in {country}?|What does it take to be a {job} in {country}?|Which degree do I need to work as \
a {job} in {country}?
How much does a {job} earn in {city}?|What is the salary of a {job} in {city}?|Is a {job} well paid in {city}?
How can I find a job as a {job}?|What's the best way to get hired as a {job}?|Where do I look for work as a {job}?
How do I get from {city} to {city2}?|What is the cheapest way to travel from {city} to {city2}?|Is there a direct \
train between {city} and {city2}?
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train", type=int, default=5000, help="training pairs (default: %(default)s)")
    parser.add_argument("--heldout", type=int, default=300, help="validation and test pairs each (default: 300)")
    parser.add_argument("--vocab-size", type=int, default=1000, help="SentencePiece pieces (default: %(default)s)")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)

    splits = make_splits(args.train, args.heldout)
    for name, pairs in splits.items():
        for i, suffix in enumerate(("src", "tgt")):
            text = "".join(pair[i] + "\n" for pair in pairs)
            (args.folder / f"{name}.{suffix}").write_text(text, encoding="utf-8")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=itertools.chain.from_iterable(splits["train"]),
        model_writer=model,
        vocab_size=args.vocab_size,
        model_type="bpe",
        character_coverage=1.0,
        minloglevel=2,
    )
    (args.folder / "sp.model").write_bytes(model.getvalue())
    sizes = ", ".join(f"{len(pairs):,} {name}" for name, pairs in splits.items())
    print(f"{sizes} pairs in {args.folder}, for instance:\n  {splits['train'][0][0]}\n  {splits['train'][0][1]}")


def make_splits(train: int, heldout: int) -> dict[str, list[tuple[str, str]]]:
    """``train``, ``valid`` and ``test`` pairs; no combination of intent and fillers is in two of them."""
    rng = random.Random(1)
    meanings = []  # an intent with its fillers, as pairs of neighbouring phrasings
    for line in INTENTS.strip().split("\n"):
        phrasings = line.split("|")
        combinations = list(_fillers(line))
        for fillers in rng.sample(combinations, min(len(combinations), 200)):
            texts = [phrasing.format(**fillers) for phrasing in phrasings]
            meanings.append(list(zip(texts, texts[1:] + texts[:1])))
    rng.shuffle(meanings)
    splits = {}
    for name, size in (("test", heldout), ("valid", heldout), ("train", train)):
        pairs = []
        while len(pairs) < size:
            if not meanings:
                raise SystemExit(f"there are not enough combinations for {size:,} {name} pairs: ask for fewer")
            pairs.extend(meanings.pop())
        rng.shuffle(pairs)
        splits[name] = pairs[:size]
    return {name: splits[name] for name in ("train", "valid", "test")}


def _fillers(template: str):
    """All assignments of fillers to a template's slots; ``{food2}`` is another filler than ``{food}``."""
    slots = [slot for slot in _slots() if "{" + slot + "}" in template]
    choices = [FILLERS[slot.rstrip("2")].split(",") for slot in slots]
    for values in itertools.product(*choices):
        if len(set(values)) == len(values):
            yield dict(zip(slots, values))


def _slots() -> list[str]:
    return [name for slot in FILLERS for name in (slot, slot + "2")]


if __name__ == "__main__":
    main()
