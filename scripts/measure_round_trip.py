"""How many lines of a text come back from a tokenizer, encoded and decoded, space by space.

    python scripts/measure_round_trip.py vocab.txt english.txt --kinds 20 --examples 2

A line is compared with itself as the tokenizer reads it: lower-cased where it does that, with single spaces. Lines with
an unknown token are left out. No rule can tell "why ?" from "why?" by their tokens, so that lines typed as usual count
by themselves, too: no space before a full
stop or a comma and one behind it, one before a bracket, none or two around a hyphen. Failures are told apart by
their first difference, a space put or lost between two characters; "a" is any letter, "0" a digit, "字" a Chinese one.
"""

import argparse
import re
import time
from collections import Counter, defaultdict

from mist_fairseq.text.lines import lines_of_file
from mist_fairseq.text.tokenizer_files import load_tokenizer

UNUSUAL = re.compile(
    r"\w [.,;:?!)\]]+( |$)|[(\[] |[^\W\d]\)?[,;?!][^\W\d]|[^\W\d]( [-/]|[-/] )[^\W\d]"
    r"|[^\W\d]{3}\.(?!com|org|net)[^\W\d]{3}|[^\W\d]{2}\((?!e?s\))[^\W\d]{2}"
)
ROWS = {
    "all": lambda line: True,
    "without digits": lambda line: not re.search(r"\d", line),
    "with digits": lambda line: re.search(r"\d", line),
    "typed as usual": lambda line: not UNUSUAL.search(line),
}


def as_read(tokenizer, line):
    """The line in the tokenizer's own spelling, with a space where the line has white space between two tokens."""
    encoding = tokenizer.backend.encode(line, add_special_tokens=False)
    text, end = "", 0
    for token, (start, stop) in zip(encoding.tokens, encoding.offsets):
        space = text and any(map(str.isspace, line[end:start]))
        text += (" " if space else "") + (token[2:] if token.startswith("##") and len(token) > 2 else token)
        end = stop
    return text


def kind(line, decoded):
    """Their first difference: "put 0 . 0" or "lost a ?"."""
    at = next(i for i, (a, b) in enumerate(zip(line + "\0", decoded + "\0")) if a != b)
    what, text = ("lost", line) if line[at : at + 1] == " " else ("put", decoded)
    around = "".join(
        "字" if "\u2e80" <= c <= "\uffef" and c.isalpha() else "0" if c.isdecimal() else "a" if c.isalnum() else c
        for c in f"{text[max(at - 2, 0) : at]}_{text[at + 1 : at + 3]}"
    )
    return f"{what} {around}" if text[at : at + 1] == " " else "another character"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("vocabulary", help="a vocab.txt, or a folder with one")
    parser.add_argument("files", nargs="+", help="texts, one sentence a line")
    parser.add_argument("--kinds", type=int, default=20, help="how many kinds of failure (default: %(default)s)")
    parser.add_argument("--examples", type=int, default=0, help="lines shown of each kind (default: %(default)s)")
    args = parser.parse_args()
    tokenizer = load_tokenizer(args.vocabulary)
    for file in args.files:
        lines = map(str.strip, lines_of_file(file))
        encoded = [(line, [index for _, index in tokenizer.encode(line)]) for line in lines]
        encoded = [(line, ids) for line, ids in encoded if ids and tokenizer.special.unk not in ids]
        start = time.perf_counter()
        decoded = [tokenizer.decode(ids) for _, ids in encoded]
        seconds = time.perf_counter() - start
        lines, back, failures = Counter(), Counter(), defaultdict(list)
        for (line, _), text in zip(encoded, decoded):
            expected = as_read(tokenizer, line)
            rows = [row for row, belongs in ROWS.items() if belongs(expected)]
            lines.update(rows)
            if text == expected:
                back.update(rows)
            else:
                failures[kind(expected, text)].append(f"    {expected}\n    {text}")
        print(f"{file}: {seconds / max(len(encoded), 1) * 1e6:.0f} us a line")
        for row, count in lines.items():
            print(f"  {row}: {back[row]} of {count} come back, {100 * back[row] / count:.2f} %")
        for found, shown in sorted(failures.items(), key=lambda item: -len(item[1]))[: args.kinds]:
            print(f"  {len(shown):6} {found}", *shown[: args.examples], sep="\n")


if __name__ == "__main__":
    main()
