import csv
import gzip
import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mist_fairseq.experiments.preparation.pair_files import SPLITS, data_folder
from mist_fairseq.experiments.preparation.pairs import Columns, Limits, draw, prepare
from tests.experiments.preparation import pairs, run_script
from tests.helpers import tiny_dictionary

ROWS = [{"user": f"u{i % 12}", "query": f"How {i % 40}?", "rewrite": f"Why {i}?"} for i in range(120)]


def jsonl(path: Path, rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def run(monkeypatch, path, out, *options, source="query", target="rewrite"):
    fields = ["--source-field", source, "--target-field", target]
    return run_script(monkeypatch, "prepare_pairs.py", "--data", path, *fields, "--out", out, *options)


def counts(out: Path) -> dict:
    return json.loads((out / "counts.json").read_text(encoding="utf-8"))


def made(out: Path) -> dict[str, list[tuple[str, str]]]:
    return {split: pairs(out, split) for split in SPLITS}


# -- the draw ---------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 9), min_size=1, max_size=60), st.integers(1, 9), st.integers(1, 9), st.integers(0, 9))
def test_a_group_is_in_one_split(groups, valid, test, seed):
    sizes = Counter(groups)
    try:
        splits = draw(groups, valid, test, seed)
    except ValueError as error:
        assert f"{len(groups)} pairs in {len(sizes)} groups do not give {test} for testing" in str(error)
        # With one more group of the largest size than the two splits can take, something is left.
        assert len(groups) <= valid + test + 2 * max(sizes.values())
        return
    assert splits == draw(groups, valid, test, seed) and "train" in splits
    homes = {group: {split for split, other in zip(splits, groups) if other == group} for group in sizes}
    assert all(len(home) == 1 for home in homes.values())
    for split, size in (("valid", valid), ("test", test)):
        drawn = [sizes[group] for group, home in homes.items() if home == {split}]
        assert sum(drawn) >= size
        assert sum(drawn) - max(drawn) < size  # without its last group it was not full


def test_single_pairs_give_the_sizes_asked_for_by_every_seed():
    draws = [draw(range(50), 7, 11, seed) for seed in range(20)]
    assert {tuple(sorted(Counter(splits).items())) for splits in draws} == {(("test", 11), ("train", 32), ("valid", 7))}
    assert len(set(map(tuple, draws))) == 20
    assert min(Counter(i for splits in draws for i in range(50) if splits[i] == "test").values()) >= 1


def test_a_large_group_is_for_training():
    groups = ["large"] * 100 + [f"small {i}" for i in range(40)]
    for seed in range(20):
        assert set(draw(groups, 15, 15, seed)[:100]) == {"train"}


# -- whole tables -------------------------------------------------------------------------------------------------


def split_of(folder: dict, key) -> dict:
    """The splits in which each group is."""
    homes: dict = {}
    for split, found in folder.items():
        for pair in found:
            homes.setdefault(key(pair), set()).add(split)
    return homes


@pytest.mark.parametrize("options", [[], ["--group-field", "user"], ["--at-random"]], ids=["source", "user", "random"])
def test_splits_by_source_by_field_and_at_random(tmp_path, monkeypatch, capsys, options):
    path = jsonl(tmp_path / "pairs.jsonl", ROWS)
    assert run(monkeypatch, path, tmp_path / "out", "--valid", 10, "--test", 0.1, *options) is None
    found = made(tmp_path / "out")
    rows = {(row["query"], row["rewrite"]): row for row in ROWS}
    assert sorted(pair for split in found.values() for pair in split) == sorted(rows)
    assert all(split == [pair for pair in rows if pair in split] for split in found.values())  # in the table's order
    by_source = split_of(found, lambda pair: pair[0])
    by_user = split_of(found, lambda pair: rows[pair]["user"])
    apart = [all(len(homes) == 1 for homes in by.values()) for by in (by_source, by_user)]
    sizes = len(found["valid"]), len(found["test"])
    expected = {0: ([True, False], (12, 12)), 2: ([False, True], (10, 20)), 1: ([False, False], (10, 12))}
    assert (apart, sizes) == expected[len(options)]  # three rows have a source, ten a user

    trained = [source for source, _ in found["train"]]
    overlap = counts(tmp_path / "out")["remarks"]["test sources that training has"]
    assert overlap == sum(source in trained for source, _ in found["test"])
    assert "test sources that training has" in capsys.readouterr().out

    assert run(monkeypatch, path, tmp_path / "same", "--valid", 10, "--test", 12, *options) is None
    assert made(tmp_path / "same") == found
    assert run(monkeypatch, path, tmp_path / "other", "--valid", 10, "--test", 12, "--seed", 2, *options) is None
    assert made(tmp_path / "other")["test"] != found["test"]


def test_sources_that_differ_in_case_stay_together(tmp_path):
    rows = [{"q": text, "a": f"{text} {i}"} for i in range(30) for text in (f"how {i}", f"HOW {i}")]
    with data_folder(str(tmp_path / "out")) as files:
        prepare(files, str(jsonl(tmp_path / "a.jsonl", rows)), Columns(["q"], "a"), valid=9, test=9)
    assert all(len(splits) == 1 for splits in split_of(made(tmp_path / "out"), lambda pair: pair[0].lower()).values())


def test_what_is_left_out_is_counted(tmp_path, monkeypatch, caplog):
    odd = [
        *({"query": "", "rewrite": "x"}, {"query": "x", "rewrite": " \t "}, {"query": None, "rewrite": "x"}),
        *({"query": "x"}, {"query": 3, "rewrite": "x"}, {"query": "a b c d e f", "rewrite": "x"}),
        *({"query": "x", "rewrite": "a b c d e f g"}, dict(ROWS[0]), {"query": " How  0?", "rewrite": "Why\n0?"}),
    ]
    path = jsonl(tmp_path / "pairs.jsonl", [*ROWS, *odd, {"query": "a b c d e", "rewrite": "A B C D E"}])
    with open(path, "a", encoding="utf-8") as file:
        file.write("no JSON\n" * 12 + "[1]\n")
    limits = ["--max-source", 5, "--max-target", 6]
    assert run(monkeypatch, path, tmp_path / "out", *limits, "--valid", 5, "--test", 5) is None
    report = counts(tmp_path / "out")
    assert report["skipped"] == {
        "empty query": 1,
        "empty rewrite": 1,
        "query missing or not a text": 2,
        "rewrite missing or not a text": 1,
        "source of more than 5 words": 1,
        "target of more than 6 words": 1,
        "pair seen before": 2,
        "unreadable row": 13,
    }
    assert sum(report["kept"].values()) == 121
    assert report["remarks"]["pairs whose target is the source"] == 1
    names = ("words, median", "words, 99 %", "words, longest")
    assert report["lengths"] == {f"{side}, {n}": k for side in ("source", "target") for n, k in zip(names, (2, 2, 5))}
    assert "pairs.jsonl, row 131 is left out: it is not JSON" in caplog.messages[0] and len(caplog.messages) == 10


TEXT = st.text("abcB \t", max_size=4)


@settings(max_examples=50)
@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=40), st.integers(1, 5))
def test_any_table_keeps_each_pair_once_and_counts_the_rest(tmp_path_factory, rows, most):
    folder = tmp_path_factory.mktemp("pairs")
    path = jsonl(folder / "a.jsonl", [{"q": a, "a": b} for a, b in rows])
    seen, kept, skipped = [], [], Counter()
    for row in rows:
        a, b = (" ".join(text.split()) for text in row)
        if not a or not b:
            skipped["empty q" if not a else "empty a"] += 1
        elif (a, b) in seen:
            skipped["pair seen before"] += 1
        elif seen.append((a, b)) or len(a) > most:
            skipped[f"source of more than {most} characters"] += 1
        else:
            kept.append((a, b))
    try:
        with data_folder(str(folder / "out")) as files:
            limits = Limits(source=most, unit="characters")
            prepare(files, str(path), Columns(["q"], "a"), valid=1, test=1, limits=limits)
    except ValueError as error:
        assert len({a.lower() for a, _ in kept}) < 3
        assert str(error).startswith("nothing usable in the input" if not kept else f"{len(kept)} pairs in ")
        return
    found = made(folder / "out")
    assert sorted(pair for split in found.values() for pair in split) == sorted(kept)
    assert all(len(splits) == 1 for splits in split_of(found, lambda pair: pair[0].lower()).values())
    assert files.skipped == skipped


def test_overlap_of_texts_and_of_pairs(tmp_path):
    with data_folder(str(tmp_path / "out")) as files:
        for split, *pair in (("train", "a", "B"), ("train", "c", "d"), ("valid", "x", "y"), ("valid", "A", "b")):
            files.add(split, *pair)
        for pair in (("b", "a"), ("c", "x"), ("x", "D"), ("c", "b")):
            files.add("test", *pair)
        files.count_overlap()
    names = ("sources that training has", "targets that training has", "pairs of which training has both")
    expected = {"valid": (1, 1, 1, 1), "test": (3, 3, 2, 0)}
    assert files.remarks == {
        f"{split} {name}": number
        for split, found in expected.items()
        for name, number in zip((*names, "pairs that training has"), found)
    }


def write(path: Path, rows) -> Path:
    """A table of the format of its name, by the standard library or pyarrow."""
    name = path.name.removesuffix(".gz")
    opener = gzip.open if path.name.endswith(".gz") else open
    if name.endswith(".parquet"):
        pa = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pa.Table.from_pylist(rows), path)
        return path
    with opener(path, "wt", encoding="utf-8", newline="") as file:
        if name.endswith(".jsonl"):
            file.write("".join(json.dumps(row) + "\n" for row in rows))
        else:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if name.endswith(".tsv") else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


@pytest.mark.parametrize("name", ["a.tsv", "a.csv", "a.jsonl", "a.parquet", "a.tsv.gz", "a.csv.gz"])
def test_all_formats_give_the_same(tmp_path, monkeypatch, name):
    rows = [{**row, "rewrite": f"naïve, {row['rewrite']}"} for row in ROWS]
    assert run(monkeypatch, write(tmp_path / name, rows), tmp_path / "out", "--group-field", "user") is None
    assert run(monkeypatch, jsonl(tmp_path / "b.jsonl", rows), tmp_path / "plain", "--group-field", "user") is None
    assert made(tmp_path / "out") == made(tmp_path / "plain") and counts(tmp_path / "out") == counts(tmp_path / "plain")
    kept = counts(tmp_path / "out")["kept"]
    assert kept == {"train": 100, "valid": 10, "test": 10}  # 5 % are 6 rows, and a user has 10


def test_several_columns_are_one_source(tmp_path, monkeypatch):
    rows = [{"answer": f"{i} [SEP]", "passage": f"p {i}", "question": f"q {i}"} for i in range(9)]
    path, vocabulary = jsonl(tmp_path / "a.jsonl", rows), tmp_path / "dict.src.txt"
    tiny_dictionary().tokenizer.save(vocabulary)
    options = ["--source-field", "passage", "--vocab", vocabulary, "--max-target", 3]
    assert run(monkeypatch, path, tmp_path / "out", *options, source="answer", target="question") is None
    found = made(tmp_path / "out")
    expected = [(f"{i} [ SEP ] [SEP] p {i}", f"q {i}") for i in range(9)]
    assert sorted(pair for split in found.values() for pair in split) == expected
    # i [ s ##e ##p ] [SEP] p i [SEP]
    assert counts(tmp_path / "out")["lengths"]["source, tokens, longest"] == 10
    assert counts(tmp_path / "out")["lengths"]["target, tokens, longest"] == 3


def test_errors_are_one_line(tmp_path, monkeypatch, capsys):
    path, out = jsonl(tmp_path / "a.jsonl", ROWS), tmp_path / "out"
    tsv = write(tmp_path / "a.tsv", ROWS)
    assert (
        run(monkeypatch, tsv, out, source="q")
        == f"error: {tsv} has no column 'q', expected one of user, query, rewrite"
    )
    assert "nothing usable in the input; skipped: q missing or not a text (120)" in run(
        monkeypatch, path, out, source="q"
    )
    few = "error: 120 pairs in 40 groups do not give 119 for testing, 6 for validation and one for training"
    assert run(monkeypatch, path, out, "--test", 119).startswith(few)
    assert "does not tell its format" in run(monkeypatch, tmp_path / "pairs", out)
    for wrong in ("0", "1.5", "-3", "nan", "0.0"):
        assert run(monkeypatch, path, out, f"--valid={wrong}") == 2
        assert "is neither a number from 1 nor a share" in capsys.readouterr().err
    assert run(monkeypatch, path, out, "--at-random", "--group-field", "user") == 2
    with pytest.raises(ValueError, match="lengths in tokens: expected words"):
        Limits(unit="tokens").measure()
    assert not out.exists()
