import csv
import io
import json
from collections import Counter

from hypothesis import assume, given
from hypothesis import strategies as st

from mist_fairseq.experiments.preparation import quora
from mist_fairseq.experiments.preparation.pair_files import data_folder
from mist_fairseq.experiments.preparation.quora import COLUMNS, assign_splits, read_rows
from tests.experiments.preparation import pairs, run_script

SPLITS = ("train", "valid", "test")


def tsv(rows) -> str:
    """The official form; a row is (question1, question2, is_duplicate) or a line as it is."""
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t", lineterminator="\n")
    writer.writerow(COLUMNS)
    for number, row in enumerate(rows):
        if isinstance(row, str):
            text.write(row)
        else:
            writer.writerow([number, 2 * number + 1, 2 * number + 2, *row])
    return text.getvalue()


def rows_of(path, content: bytes):
    path.write_bytes(content)
    skipped = Counter()
    return [row[3:] for row in read_rows(str(path), skipped)], skipped


FIELD = st.text(st.sampled_from("ab \t\n\"',?12"), max_size=12)


@given(rows=st.lists(st.tuples(FIELD, FIELD, st.sampled_from("01")), max_size=8))
def test_well_formed_rows_read_as_csv(tmp_path_factory, rows):
    assume(not any(quora._ROW_START.match(line) for row in rows for f in row[:2] for line in f.split("\n")[1:]))
    actual, skipped = rows_of(tmp_path_factory.getbasetemp() / "a.tsv", tsv(rows).encode())
    assert actual == [list(row) for row in rows] and not skipped


def test_windows_line_ends_quoted_numbers_and_invalid_utf8(tmp_path):
    rows = [("a\rb", 'c "d"', "1"), ("e\nf", "g", "0")]
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter="\t", lineterminator="\r\n", quoting=csv.QUOTE_ALL)
    writer.writerows([COLUMNS, *([i, 1, 2, *row] for i, row in enumerate(rows))])
    content = b"\xef\xbb\xbf" + text.getvalue().encode().replace(b"g", b"q\xff\x00")
    actual, skipped = rows_of(tmp_path / "a.tsv", content)
    assert actual == [["a b", 'c "d"', "1"], ["e\nf", "q\ufffd\x00", "0"]] and not skipped


def test_a_malformed_row_spoils_no_other(tmp_path):
    good = [(f"good {i}?", f"g {i}?", "1") for i in range(8)]
    rows = [
        *(good[0], '1\t2\t3\t"never closed?\tb?\t1\n'),
        *(good[1], '1\t2\t3\t"closed" too early?\tb?\t1\n'),
        *(good[2], "1\t2\t3\ttoo few\t1\n"),
        *(good[3], "1\t2\t3\ttoo\tmany\tfields\t1\n", "just a line\n", "\n"),
        *(good[4], "1\t2\t3\ta?\tb?\tmaybe\n"),
        *(good[5], "1\t2\t3\t" + "x" * 140_000 + "\tb?\t1\n"),  # beyond the csv module's limit for a field
        *(good[6], '"open\n' + "junk\n" * 250, good[7], '1\t2\t3\ta?\t"cut o'),
    ]
    actual, skipped = rows_of(tmp_path / "a.tsv", tsv(rows).encode())
    assert actual == [list(row) for row in good]
    assert skipped.keys() == {"malformed row"} and skipped["malformed row"] >= 9


EDGES = st.lists(st.tuples(st.integers(0, 25), st.integers(0, 25)), min_size=1, max_size=60)


def components(edges):
    """Label of every question: the smallest question that it is connected to. Spread until nothing changes."""
    label = {q: q for edge in edges for q in edge}
    while any(label[a] != label[b] for a, b in edges):
        for a, b in edges:
            label[a] = label[b] = min(label[a], label[b])
    return label


@given(EDGES, st.integers(1, 20), st.integers(1, 10), st.integers(1, 10), st.integers(0, 5))
def test_no_question_is_in_two_splits(edges, train, valid, test, seed):
    label = components(edges)
    try:
        fates = assign_splits(edges, train, valid, test, seed)
    except ValueError:
        largest = max(Counter(label[a] for a, _ in edges).values())
        assert len(edges) < test + valid + 1 + 2 * largest  # cannot happen with pairs to spare
        return
    assert fates == assign_splits(edges, train, valid, test, seed)
    kept = Counter(fates)
    assert kept["test"] == test and kept["valid"] == valid
    unused = kept["beyond the training size"]
    assert kept["train"] == train if unused else 1 <= kept["train"] <= train
    homes = {}
    for fate, (a, _) in zip(fates, edges):
        home = fate.rpartition("question in ")[2] if fate.startswith("connected") else fate
        homes.setdefault(label[a], set()).add(home if home in ("valid", "test") else "train")
    assert all(len(home) == 1 for home in homes.values())


def test_small_groups_are_drawn_first():
    edges = [(0, i) for i in range(1, 101)] + [(1000 + i, 2000 + i) for i in range(40)]
    for seed in range(20):
        fates = assign_splits(edges, 100, 15, 15, seed)
        assert not {"test", "valid"} & set(fates[:100])
    draws = [tuple(assign_splits(edges, 10, 5, 5, seed)) for seed in range(20)]
    assert len(set(draws)) == 20


def test_the_draw_is_the_same_everywhere():
    fates = assign_splits([(i, i + 100) for i in range(12)], 4, 2, 3, seed=1)
    assert [fate[:2] for fate in fates] == "te tr tr be tr va tr te va be be te".split()


def run(monkeypatch, path, out, *options):
    return run_script(monkeypatch, "prepare_quora.py", path, "--out", out, *options)


def test_duplicates_are_kept_once(tmp_path, monkeypatch, capsys):
    rows = [(f"How {i}?", f"Why {i}?", 1) for i in range(20)]
    odd = [
        *(("Why 3?", " How\n3? ", 1), ("same?", " same? ", 1), ("different?", "questions?", 0), ("", "empty?", 1)),
        *(("how 5?", "Why 5?", 1), "1\t2\n"),  # pairs differ if case does
    ]
    path = tmp_path / "quora.tsv"
    path.write_text(tsv([*rows, *odd]), encoding="utf-8")
    sizes = ["--train-size", 30, "--valid-size", 5, "--test-size", 6]
    assert run(monkeypatch, path, tmp_path / "one", *sizes) is None
    assert "training pairs fewer than asked for" in capsys.readouterr().out
    actual = {split: pairs(tmp_path / "one", split) for split in SPLITS}
    assert len(actual["test"]) == 6 and len(actual["valid"]) == 5
    assert {pair for split in SPLITS for pair in actual[split]} <= {(a, b) for a, b, _ in rows} | {("how 5?", "Why 5?")}
    questions = [{q.lower() for pair in actual[split] for q in pair} for split in SPLITS]
    assert not (questions[0] & questions[1] or questions[0] & questions[2] or questions[1] & questions[2])
    counts = json.loads((tmp_path / "one" / "counts.json").read_text())
    connected = sum(n for reason, n in counts["skipped"].items() if reason.startswith("connected"))
    assert sum(counts["kept"].values()) + connected == 21
    for reason in ("malformed row", "not a duplicate", "twice the same question", "pair seen before", "empty question"):
        assert counts["skipped"][reason] == 1
    assert counts["remarks"]["training pairs fewer than asked for"] == 30 - counts["kept"]["train"]

    assert run(monkeypatch, path, tmp_path / "again", *sizes) is None
    assert run(monkeypatch, path, tmp_path / "other", *sizes, "--seed", 2) is None
    assert {split: pairs(tmp_path / "again", split) for split in SPLITS} == actual
    assert pairs(tmp_path / "other", "test") != actual["test"]


def test_questions_that_differ_in_case_stay_together(tmp_path):
    path = tmp_path / "quora.tsv"
    path.write_text(tsv([row for i in range(10) for row in ((f"HOW {i}", f"A {i}", 1), (f"B {i}", f"how {i}", 1))]))
    for seed in range(5):
        with data_folder(str(tmp_path / str(seed))) as files:
            quora.prepare(files, str(path), 14, 3, 3, seed)
        homes = {}
        for split in SPLITS:
            for number in {pair[0].split()[1] for pair in pairs(tmp_path / str(seed), split)}:
                assert homes.setdefault(number, split) == split


def test_errors_are_one_line(tmp_path, monkeypatch):
    path, out = tmp_path / "quora.tsv", tmp_path / "out"
    path.write_text(tsv([("a?", "b?", 1), ("b?", "c?", 1), ("c?", "d?", 1)]))
    sizes = ["--valid-size", 1, "--test-size", 1]
    few = "error: 3 duplicate pairs in 1 groups of connected questions do not give 1 for testing, 1 for validation"
    assert run(monkeypatch, path, out, *sizes).startswith(few)
    assert "sizes are 47000, 1 and 0, expected at least 1" in run(monkeypatch, path, out, *sizes, "--test-size", 0)
    path.write_text('"id","qid1","qid2"\n')
    assert "quora.tsv begins with" in run(monkeypatch, path, out)
    path.write_text("")
    assert "quora.tsv begins with '', expected the columns id, qid1" in run(monkeypatch, path, out)
    assert run(monkeypatch, tmp_path / "nowhere.tsv", out) == f"error: {tmp_path / 'nowhere.tsv'} is not a file"
    assert not out.exists()


def test_both_small_sets_have_exact_sizes():
    """Groups of three never fill ten exactly: the last one is cut."""
    edges = [(10 * g, 10 * g + i) for g in range(30) for i in (1, 2, 3)]
    fates = Counter(assign_splits(edges, 20, 10, 10, 3))
    expected = {"train": 20, **dict.fromkeys(["valid", "test"], 10)}
    expected |= {f"connected to a question in {split}": 2 for split in ("valid", "test")}
    assert fates == expected | {"beyond the training size": 90 - 44}


def test_pairs_drawn_one_by_one_overlap_and_both_draws_tell(tmp_path, monkeypatch, capsys):
    """As the published split looks; a chain of questions, of which disjoint splits cut some pairs off."""
    path = tmp_path / "quora.tsv"
    path.write_text(tsv([(f"Q {i // 2}a{i % 2}?", f"q {i // 2}A{i % 2 + 1}?", 1) for i in range(60)]))
    sizes = ["--train-size", 30, "--valid-size", 8, "--test-size", 10]
    for split in ("published", "disjoint"):
        assert run(monkeypatch, path, tmp_path / split, *sizes, "--split", split) is None
        made = {name: pairs(tmp_path / split, name) for name in SPLITS}
        assert [len(made[name]) for name in SPLITS] == [30, 8, 10]
        trained = {question.casefold() for pair in made["train"] for question in pair}
        remarks = json.loads((tmp_path / split / "counts.json").read_text())["remarks"]
        for name in ("valid", "test"):
            had = [[question.casefold() in trained for question in pair] for pair in made[name]]
            assert remarks[f"{name} sources that training has"] == sum(source for source, _ in had)
            assert remarks[f"{name} pairs of which training has both"] == sum(all(pair) for pair in had)
        overlap = remarks["test sources that training has"] + remarks["valid sources that training has"]
        assert (overlap > 0) == (split == "published")
    assert "test sources that training has" in capsys.readouterr().out
    assert run(monkeypatch, path, tmp_path / "again", *sizes, "--split", "published") is None
    assert pairs(tmp_path / "again", "test") == pairs(tmp_path / "published", "test")
    few = run(monkeypatch, path, tmp_path / "few", *sizes, "--split", "published", "--test-size", 52)
    assert few.startswith("error: 60 duplicate pairs do not give 52 for testing, 8 for validation and one for training")
