"""Check that each query of a killed and resumed run was answered once, in order, or stands among the errors.

python examples/production/check_answers.py DIR
"""

import json
import sys
from pathlib import Path


def main():
    folder = Path(sys.argv[1])
    queries, answers, errors = (
        [json.loads(line) for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").split("\n")[:-1]]
        for name in ("queries", "answers", "errors")
    )
    answered, refused = [row["id"] for row in answers], [row["row"] for row in errors]
    asked = [row["id"] for row in queries]
    if answered != sorted(answered) or sorted(answered + refused) != asked:
        sys.exit("error: a query is missing, there twice, or out of order")
    if refused != [row["id"] for row in queries if row["question"] is None]:
        sys.exit("error: other queries were refused than those without a text")
    print(f"{len(answered):,} answers and {len(refused):,} errors for {len(asked):,} queries, each once, in order:")
    for row in answers[:5]:
        print(f"  {row['question']}\n    {row['output']}")


if __name__ == "__main__":
    main()
