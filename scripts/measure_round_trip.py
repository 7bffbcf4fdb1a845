"""How many lines come back, space by space, from a tokenizer: encoded, decoded and compared with what went in.

    python scripts/measure_round_trip.py vocab.txt english.txt --examples 2

What is compared with is the line as the tokenizer reads it: lower-cased where it does that, with single spaces. Lines
with an unknown token are left out. A failure's kind is its first difference: a space put or lost, between what; letters
are "a", digits "0", Chinese characters "字", no character "^".
"""

import argparse
import time
from collections import Counter, defaultdict

from mist_fairseq.text.tokenizer_files import load_tokenizer


def as_read(tokenizer, line):
    """The line in the tokenizer's own spelling, a space wherever the line has white space between two tokens."""
    encoding = tokenizer.backend.encode(line, add_special_tokens=False)
    text, end = "", 0
    for token, (start, stop) in zip(encoding.tokens, encoding.offsets):
        text += " " * (text != "" and any(map(str.isspace, line[end:start]))) + token.removeprefix(
            "##" * (len(token) > 2)
        )
        end = stop
    return text


def kind(line, decoded):
    """Where *decoded* first differs from *line*: "put 0. 0", "lost a ?"."""
    at = next(i for i, (a, b) in enumerate(zip(line + "\0", decoded + "\0")) if a != b)
    longer = line if line[at : at + 1] == " " else decoded
    if longer[at : at + 1] != " ":
        return "another character"
    around = [
        longer[max(at - 2, 0) : at].split(" ")[-1].rjust(2, "^"),
        longer[at + 1 : at + 3].split(" ")[0].ljust(2, "^"),
    ]
    shown = [
        "".join(
            "字" if "\u2e80" <= c <= "\uffef" and c.isalpha() else "0" if c.isdecimal() else "a" if c.isalnum() else c
            for c in s
        )
        for s in around
    ]
    return f"{'lost' if longer is line else 'put'} {' '.join(shown)}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("vocabulary", help="a vocab.txt")
    parser.add_argument("files", nargs="+", help="texts, one sentence a line")
    parser.add_argument("--lines", help="FIRST:LAST of each file, as Python counts (default: all)", default=":")
    parser.add_argument(
        "--kinds", type=int, default=20, help="how many kinds of failure are shown (default: %(default)s)"
    )
    parser.add_argument("--examples", type=int, default=0, help="lines shown of each kind (default: %(default)s)")
    args = parser.parse_args()
    tokenizer = load_tokenizer(args.vocabulary)
    chosen = slice(*(int(n) if n else None for n in args.lines.split(":")))
    for file in args.files:
        with open(file, encoding="utf-8") as f:
            lines = [line.strip() for line in list(f)[chosen]]
        kept, back, kinds, examples, seconds = Counter(), Counter(), Counter(), defaultdict(list), 0.0
        for line in lines:
            ids = [index for _, index in tokenizer.encode(line)]
            if not ids or tokenizer.special.unk in ids:
                continue
            start = time.perf_counter()
            decoded = tokenizer.decode(ids)
            seconds += time.perf_counter() - start
            expected, digits = as_read(tokenizer, line), any(map(str.isdecimal, line))
            kept[digits] += 1
            back[digits] += decoded == expected
            if decoded != expected:
                kinds[found := kind(expected, decoded)] += 1
                examples[found].append(f"    {expected}\n    {decoded}")
        print(f"{file}: {len(lines)} lines, {kept.total()} without unknown tokens, decoded in ", end="")
        print(f"{seconds / max(kept.total(), 1) * 1e6:.0f} us each")
        for name, got, of in [("all", back.total(), kept.total()), *((n, back[d], kept[d]) for n, d in DIGITS)]:
            print(f"  {name}: {got} of {of} come back, {100 * got / max(of, 1):.2f} %")
        for found, count in kinds.most_common(args.kinds):
            print(f"  {count:6} {found}", *examples[found][: args.examples], sep="\n")


DIGITS = (("without digits", False), ("with digits", True))

if __name__ == "__main__":
    main()
