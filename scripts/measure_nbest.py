"""How good and how different the answers of n-best lists are.

    python scripts/measure_nbest.py MODEL SOURCE REFERENCE [OPTION=VALUE ...] [--nbest 5] [--limit 1000] [--json FILE]

MODEL is what ``MistGenerator.from_pretrained`` takes, or CHECKPOINT:DATA. OPTIONs are those of ``generate``, for
instance ``decoding=mist diversity_penalty=1``. Of all lists it tells:

    first, best       sacrebleu (lower-cased) of the first answers, and of those in each list that are nearest to the
                      reference, by sentence BLEU
    exact, exact-n    how many first answers, and how many lists, have the reference, in percent
    distinct-1, -2    different words, and pairs of words, of a list, as a share of all in it (Li et al. 2016)
    self-bleu         sentence BLEU of each answer against the others of its list (Zhu et al. 2018)
    alike             lists in which two answers differ in case and punctuation only, in percent
    answers           how many a list has, on average

--rankings compares rules for which of the N likeliest lengths is the best instead: for each the corpus' sacrebleu and
exact answers, in percent, of the candidates that it puts first.
"""

import argparse
import ast
import itertools
import re
import statistics
from pathlib import Path

import numpy as np
import sacrebleu

from mist_fairseq import MistGenerator
from mist_fairseq.experiments.results import write_json
from mist_fairseq.generate.answers import letters_of
from mist_fairseq.generate.decoding import Decoding, decode
from mist_fairseq.text.lines import lines_of_file

# What a candidate is ranked by: log p(T|X), the sum of log p(y|X, T) and T; the first of equals wins.
RANKINGS = {
    "the likeliest length": lambda length, tokens, T: length,
    "mean of the tokens'": lambda length, tokens, T: tokens / T,
    "sum of all": lambda length, tokens, T: length + tokens,
    "mean of all": lambda length, tokens, T: (length + tokens) / (T + 1),
    "sum of all / T^0.6": lambda length, tokens, T: (length + tokens) / T**0.6,
    "length's + sum / sqrt(T)": lambda length, tokens, T: length + tokens / T**0.5,
    "length's + mean": lambda length, tokens, T: length + tokens / T,
    "length's + 3 x mean": lambda length, tokens, T: length + 3 * tokens / T,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("source", help="text file")
    parser.add_argument("reference", help="text file")
    parser.add_argument("options", nargs="*", metavar="OPTION=VALUE")
    parser.add_argument("--nbest", type=int, default=5, help="(default: %(default)s)")
    parser.add_argument("--rankings", action="store_true", help="compare rules for the best of the lengths instead")
    parser.add_argument("--limit", type=int, help="lines, by default all")
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    args = parser.parse_args()
    pairs = zip(lines_of_file(args.source), lines_of_file(args.reference), strict=True)
    sources, references = zip(*itertools.islice(pairs, args.limit))
    checkpoint, _, data = args.model.partition(":")
    path = Path(checkpoint)
    generator = MistGenerator.from_pretrained(*([str(path.parent), path.name, data] if data else [checkpoint]))
    options = {name: _value(text) for name, _, text in (option.partition("=") for option in args.options)}
    if args.rankings:
        for name, texts in ranked(generator, sources, Decoding(**options, length_beam=args.nbest)).items():
            exact = _percent(text == one for text, one in zip(texts, references))
            score = sacrebleu.corpus_bleu(texts, [references], lowercase=True).score
            print(f"{name:<25} sacrebleu {score:6.2f}  exact {exact:5.1f}")
        return
    lists = generator.generate(sources, nbest=args.nbest, progress=False, **options)
    figures = measure([ranked if args.nbest > 1 else [ranked] for ranked in lists], references)
    print("  ".join(f"{name} {value:.2f}" for name, value in figures.items()))
    if args.json:
        write_json(args.json, {"nbest": args.nbest, "sentences": len(sources), "options": options, **figures})


def ranked(generator, texts: list[str], decoding: Decoding) -> dict[str, list[str]]:
    """The texts that each of ``RANKINGS`` puts first."""
    special, engine = generator.tokenizer.special, generator.engine
    best: dict[str, list[str]] = {name: [] for name in RANKINGS}
    for start in range(0, len(texts), 32):
        sources = [generator.encode(text).ids for text in texts[start : start + 32]]
        tokens = np.full((len(sources), max(map(len, sources))), special.pad)
        for row, ids in zip(tokens, sources):
            row[: len(ids)] = ids
        given = engine.asarray(tokens), engine.asarray(np.array(list(map(len, sources))))
        found = decode(engine, *given, decoding, special, generator.limits)
        rows = list(zip(found.choice_scores.tolist(), found.scores.tolist(), found.lengths.tolist()))
        for first in range(0, len(rows), found.number):
            for name, rule in RANKINGS.items():
                values = [rule(p, sum(scores[:T]), T) for p, scores, T in rows[first : first + found.number]]
                row = first + values.index(max(values))
                ids = found.tokens[row, : rows[row][2]].tolist()
                kept = generator.tokenizer.text_positions(ids, decoding.keep_repeats)
                best[name].append(generator.tokenizer.decode([ids[i] for i in kept]))
    return best


def measure(lists: list[list[str]], references: list[str]) -> dict[str, float]:
    """The figures of n-best lists, none of which is empty."""
    nearest = [max(ranked, key=lambda text: _bleu(text, [one])) for ranked, one in zip(lists, references)]
    several = [ranked for ranked in lists if len(ranked) > 1]
    others = [_bleu(one, [*ranked[:i], *ranked[i + 1 :]]) for ranked in several for i, one in enumerate(ranked)]
    return {
        "first": sacrebleu.corpus_bleu([ranked[0] for ranked in lists], [references], lowercase=True).score,
        "best": sacrebleu.corpus_bleu(nearest, [references], lowercase=True).score,
        "exact": _percent(ranked[0] == one for ranked, one in zip(lists, references)),
        "exact-n": _percent(one in ranked for ranked, one in zip(lists, references)),
        "distinct-1": 100 * statistics.mean(_distinct(ranked, 1) for ranked in lists),
        "distinct-2": 100 * statistics.mean(_distinct(ranked, 2) for ranked in lists),
        "self-bleu": statistics.mean(others) if others else 100.0,
        "alike": _percent(len(set(map(letters_of, ranked))) < len(ranked) for ranked in lists),
        "answers": statistics.mean(map(len, lists)),
    }


def _bleu(text: str, references: list[str]) -> float:
    return sacrebleu.sentence_bleu(text, references, lowercase=True).score


def _percent(truths) -> float:
    return 100 * statistics.mean(map(float, truths))


def _distinct(ranked: list[str], n: int) -> float:
    words = [re.findall(r"\w+", text.lower()) for text in ranked]
    grams = [gram for one in words for gram in zip(*(one[i:] for i in range(n)))]
    return len(set(grams)) / len(grams) if grams else 0.0


def _value(text: str):
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text


if __name__ == "__main__":
    main()
