"""Write what a user comes with: a table of question pairs, and many questions that wait for answers.

    python examples/production/make_table.py DIR [--queries 100000]

Makes pairs.tsv, with the columns question and rewrite, out of the intents of examples/quickstart/make_data.py, and
queries.jsonl, with the fields id and question; one query in a thousand has no text, as happens.
"""

import argparse
import itertools
import json
import random
import runpy
from pathlib import Path

MAKE = runpy.run_path(str(Path(__file__).parents[1] / "quickstart/make_data.py"))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pairs", type=int, default=5600, help="(default: %(default)s)")
    parser.add_argument("--queries", type=int, default=100_000, help="(default: %(default)s)")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)

    pairs = MAKE["make_splits"](args.pairs, 0)["train"]
    with open(args.folder / "pairs.tsv", "w", encoding="utf-8") as table:
        table.write("question\trewrite\n")
        table.writelines(f"{question}\t{rewrite}\n" for question, rewrite in pairs)

    rng, questions = random.Random(1), sorted({question for pair in pairs for question in pair})
    with open(args.folder / "queries.jsonl", "w", encoding="utf-8") as queries:
        for number in itertools.islice(itertools.count(1), args.queries):
            row = {"id": number, "question": rng.choice(questions) if number % 1000 else None}
            queries.write(json.dumps(row, ensure_ascii=False) + "\n")
    print(f"{len(pairs):,} pairs and {args.queries:,} queries in {args.folder}")


if __name__ == "__main__":
    main()
