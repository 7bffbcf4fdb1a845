"""The report: every row of the paper, our figures beside it, and where they come from."""

import json
import re
import shutil
from decimal import Decimal
from pathlib import Path

import pytest

from mist_fairseq.experiments.report import Report, check
from mist_fairseq.scoring.scores import METRICS
from tests.experiments.preparation import run_script

RESULTS = Path(__file__).parents[2] / "results"
PAPER = json.loads((RESULTS / "paper.json").read_text(encoding="utf-8"))
ROWS = {1: [18], 2: [18], 3: [17], 4: [3], 5: [3], 6: [6], 7: [4, 4]}
LABELS = {
    "weights": "MiniLM-L6-H384 (all-MiniLM-L6-v2)",
    "data": "a | pipe (3 pairs)",
    "updates": "600",
    "training": "bash examples/quora/run.sh --pretrained minilm",
    "subset": "test",
    "command": "python scripts/compare_decodings.py data-bin",
    "commit": "abc1234+",
}
QUORA = {"bleu-1": 40.0, "bleu-4": 13.4, "meteor15": 20.125, "rouge-l": 41.0}


def decoding(name="single-pass", iterations=1, values=QUORA, **more):
    return {"decoding": name, "iterations": iterations, "sentences_per_second": 9.5, "values": values, **more}


def add_run(folder, name, *decodings, task="quora", arm="mist", init="MiniLM", **labels):
    content = {"task": task, "arm": arm, "init": init, **LABELS, "protocol": task, **labels}
    content["decodings"] = list(decodings) or [decoding()]
    path = folder / "runs" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def folder(tmp_path):
    shutil.copy(RESULTS / "paper.json", tmp_path)
    return tmp_path


def section(markdown: str, title: str) -> str:
    """The text under a heading, up to the next one of its level."""
    return re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", markdown, flags=re.MULTILINE | re.DOTALL).group(1)


def tables(text: str) -> list[list[dict[str, str]]]:
    """The tables of a Markdown text, each line as column -> cell; legends' letters stand written out in the cells."""
    actual = []
    for block in re.findall(r"(?:^\|.*\n?)+\n*(?:^- \(\w\) .*\n?)*", text, flags=re.MULTILINE):
        reasons = dict(re.findall(r"^- (\(\w\)) (.*)$", block, flags=re.MULTILINE))
        lines = [re.split(r"(?<!\\) ?\| ?", line)[1:-1] for line in block.splitlines() if line.startswith("|")]
        assert {len(line) for line in lines} == {len(lines[0])}
        spelt_out = [[re.sub(r"\([a-z]\)", lambda key: reasons[key[0]], cell) for cell in line] for line in lines]  # noqa: B023
        actual.append([dict(zip(lines[0], line)) for line in spelt_out[2:]])
    return actual


def cells(folder, table: int, model: str, part: int = 0, **more) -> list[dict[str, str]]:
    """The lines of a row."""
    lines = tables(section(Report(folder).markdown(), f"Table {table}"))[part]
    return [line for line in lines if line["Model"] == model and more.items() <= line.items()]


def test_the_papers_figures():
    """Typed anew from the paper's tables."""
    actual = {}
    for table in PAPER["tables"]:
        actual.setdefault(table["number"], []).append(table)
    assert {number: [len(part["rows"]) for part in parts] for number, parts in actual.items()} == ROWS

    def row(number, name, part=0, **more):
        (one,) = [r for r in actual[number][part]["rows"] if r["name"].startswith(name) and more.items() <= r.items()]
        return [*one["values"], *one.get("gains", []), one.get("iterations"), one.get("speed")]

    assert row(1, "MIST(UniLM)") == [47.13, 16.40, 21.68, 0.79, 0.40, 0.58, "1", "8.3×"]
    assert row(1, "Transformer") == [29.43, 4.61, 9.86, "N", "1.0×"]
    assert row(2, "Encoder MiniLM") == [21.91, 3.72, 19.15, "1", "13.5×"]
    assert row(2, "BANG") == [32.59, 8.98, 27.41, "1", "*"]  # not what Table 7 says
    assert row(3, "LevT") == [56.01, 27.68, 30.56, "-", "1.8×"]
    assert row(3, "MIST(MiniLM)") == [57.74, 26.96, 30.61, 0.87, 0.86, 0.54, "1", "6.5×"]
    assert row(4, "Static") == [45.74, 15.89, 21.29, None, None]
    assert row(5, "MIST") == [34.63, 11.29, 28.70, None, None]
    assert row(6, "Mask-Predict", iterations="3") == [16.73, 11.27, 27.70, "3", None]
    assert row(6, "MIST", iterations="6") == [18.27, 12.79, 29.77, "6", None]
    assert row(7, "BANG", part=1) == [32.50, 8.92, 27.35, 2.07, 1.26, 1.85, None, None]


def test_the_papers_gains_are_differences_of_its_rows():
    for table in PAPER["tables"][:3]:
        rows = {(row["run"]["arm"], row["run"]["init"]): row for row in table["rows"] if "run" in row}
        mixed = [row for row in table["rows"] if "gains" in row]
        assert len(mixed) == 3
        for row in mixed:
            base = rows["no-mixing", row["run"]["init"]]["values"]
            assert row["gains"] == [round(own - other, 2) for own, other in zip(row["values"], base)]
        # Table 7 repeats them.
        for again in PAPER["tables"][6:]:
            if again["columns"] == table["columns"]:
                assert [row["gains"] for row in again["rows"][1:]] == [row["gains"] for row in mixed]


def test_columns_have_metrics_that_are_computed():
    for table in PAPER["tables"]:
        for column in table["columns"]:
            assert column["metric"] in METRICS and column["task"] in PAPER["tasks"]
            assert column["metric"].startswith("rouge155") == (column["task"] == "xsum")
        assert all(len(row["values"]) == len(table["columns"]) for row in table["rows"])


@pytest.mark.parametrize("with_runs", [False, True])
def test_every_row_of_the_paper_is_there_with_figures_or_a_reason(folder, with_runs):
    if with_runs:
        for task in PAPER["tasks"]:
            for arm in ("no-mixing", "static-mixing", "mist"):
                add_run(folder, f"{task}-{arm}", task=task, arm=arm)
    markdown = Report(folder).markdown()
    for number, counts in ROWS.items():
        shown = tables(section(markdown, f"Table {number}"))
        papers = [table for table in PAPER["tables"] if table["number"] == number]
        assert len(shown) == len(counts)
        for lines, table in zip(shown, papers):
            values = [line for line in lines if not line["Model"].endswith(": gain")]
            assert [line["Model"] for line in values] == [row["name"] for row in table["rows"]]
            for line, row in zip(values, table["rows"]):
                names = [column["name"] for column in table["columns"]]
                assert [line[name].split(" ")[0] for name in names] == [f"{value:.2f}" for value in row["values"]]
                assert line.get("Iter.") == row.get("iterations")
                assert bool(re.search(r"not run: \w|\]\(#run-", line["Ours"]))
            gains = [line for line in lines if line["Model"].endswith(": gain")]
            assert len(gains) == sum("gains" in row for row in table["rows"])
    assert ("None yet" in markdown) != with_runs
    assert "\n\n\n" not in markdown and markdown.endswith("\n")


def test_reasons_why_rows_were_not_run(folder):
    reasons = PAPER["not_run"]
    assert cells(folder, 1, "MASS (Song et al. 2019)")[0]["Ours"] == "not run: " + reasons["baseline"]
    for init, name in {"BERT": "MIST(BERT) †", "UniLM": "MIST(UniLM) †", "random": "Encoder random init †"}.items():
        assert cells(folder, 3, name)[0]["Ours"] == "not run: " + reasons[init].replace("{task}", "quora")
    assert cells(folder, 2, "MIST(MiniLM) †")[0]["Ours"] == "not run: " + reasons["xsum"]
    assert "{task}" not in Report(folder).markdown()
    table = section(Report(folder).markdown(), "Table 1")
    assert "| Speed (a) |" in table and f"- (a) {PAPER['speed']}\n" in table
    assert cells(folder, 1, "NAT (Gu et al. 2017)")[0]["Speed (a)"] == "8.3× → not run"
    paper = json.loads(json.dumps(PAPER))
    paper["tables"][0]["rows"][1]["not_run"] = "nobody asked"
    (folder / "paper.json").write_text(json.dumps(paper))
    assert cells(folder, 1, "MASS (Song et al. 2019)")[0]["Ours"] == "not run: nobody asked"


def test_speed_is_that_of_the_benchmark(folder):
    (folder / "latency").mkdir()
    path = folder / "latency/squad_qg.json"
    systems = {"NAT": {"speed_up": 3.14}, "CMLM": {}}
    runs = [{"batch_size": 1, "systems": systems}, {"batch_size": 16, "systems": {"NAT": {"speed_up": 9}}}]
    path.write_text(json.dumps({"runs": runs}))
    expected = {"NAT (Gu et al. 2017)": "8.3× → 3.1×", "CMLM (Ghazvininejad et al. 2019)": "1.9× → not run"}
    for name, speed in expected.items():
        assert cells(folder, 1, name)[0]["Speed (a)"] == speed
    assert cells(folder, 3, "NAT (Gu et al. 2017)")[0]["Speed (a)"] == "5.6× → not run"
    path.write_text(json.dumps({"runs": runs[1:]}))
    with pytest.raises(ValueError, match="squad_qg.json is not a result of scripts/benchmark_latency.py"):
        Report(folder)


def test_a_run_stands_beside_its_row_with_interval_and_difference(folder):
    add_run(folder, "quora-mist", decoding(intervals={"bleu-4": [12.875, 13.915]}))
    (line,) = cells(folder, 3, "MIST(MiniLM) †")
    assert line["BLEU-1"] == "57.74 → 40.00 (-17.74)"
    assert line["BLEU-4"] == "26.96 → 13.40 ± 0.52 (-13.56)"
    assert line["METEOR"] == "30.61 → 20.12 (-10.49)"
    assert line["Ours"] == r"[quora-mist](#run-quora-mist): MiniLM-L6-H384, 600 updates, a \| pipe"
    assert "→" not in cells(folder, 3, "Encoder MiniLM init †")[0]["BLEU-4"]
    assert "→" not in cells(folder, 1, "MIST(MiniLM) †")[0]["BLEU-4"]
    add_run(folder, "quora-mist", subset="valid", protocol="plain")
    (line,) = cells(folder, 3, "MIST(MiniLM) †")
    assert line["Ours"].endswith(", subset valid") and line["Scored"] == "plain"


def test_differences_are_those_of_the_figures_shown(folder):
    for i in range(40):
        add_run(folder, f"run-{i}", decoding(values={"bleu-1": 50 + 0.3337 * i, "bleu-4": 26 + 0.0501 * i}))
    lines = cells(folder, 3, "MIST(MiniLM) †")
    assert len(lines) == 40  # one a run
    seen = set()
    for line in lines:
        for name in ("BLEU-1", "BLEU-4"):
            paper, ours, difference = re.fullmatch(r"([\d.]+) → ([\d.]+) \(([+-][\d.]+)\)", line[name]).groups()
            assert Decimal(ours) - Decimal(paper) == Decimal(difference)
            seen.add((name, ours))
    assert ("BLEU-1", f"{50 + 0.3337 * 7:.2f}") in seen and len(seen) == 80
    assert "no METEOR not among the metrics of the run" in lines[0]["Ours"]


def test_a_metric_without_score_says_why(folder):
    values = {name: value for name, value in QUORA.items() if name != "meteor15"}
    add_run(folder, "quora-mist", decoding(values=values, failed={"meteor15": "there is no Java"}))
    (line,) = cells(folder, 3, "MIST(MiniLM) †")
    assert line["METEOR"] == "30.61" and line["Ours"].endswith(", no METEOR there is no Java")


def test_gains_are_over_the_run_that_differs_in_the_arm_alone(folder):
    add_run(folder, "mist")
    assert "no run without mixing" in cells(folder, 3, "MIST(MiniLM) †: gain")[0]["Ours"]
    add_run(folder, "longer", arm="no-mixing", updates="1200")
    add_run(folder, "older", arm="no-mixing", training_commit="a")
    assert "no run without mixing" in cells(folder, 3, "MIST(MiniLM) †: gain")[0]["Ours"]
    add_run(folder, "base", decoding(values={**QUORA, "bleu-4": 12.0, "bleu-1": 40.5}), arm="no-mixing")
    (line,) = cells(folder, 3, "MIST(MiniLM) †: gain")
    assert line["BLEU-1"] == "+0.87 → -0.50 (-1.37)"
    assert line["BLEU-4"] == "+0.86 → +1.40 (+0.54)"
    assert line["METEOR"] == "+0.54 → +0.00 (-0.54)"
    assert line["Ours"] == "[mist](#run-mist) − [base](#run-base)"


def test_mixing_methods_take_any_weights(folder):
    add_run(folder, "a", task="squad_qg", arm="static-mixing", init="random")
    add_run(folder, "b", task="squad_qg", arm="static-mixing", init="MiniLM")
    first, second = cells(folder, 4, "Static Mixing")
    assert first["ROUGE-L"] == second["ROUGE-L"] == "45.74 → 41.00 (-4.74)"
    assert first["Ours"].startswith("[a](#run-a)") and second["Ours"].startswith("[b](#run-b)")


def test_iterations_of_each_task(folder):
    rouge = {"rouge155-2": 9.0}
    mask_predict = decoding("mask-predict", 3, {**QUORA, "bleu-4": 17.76})
    add_run(folder, "quora-mist", decoding(), decoding("mist", 3, {**QUORA, "bleu-4": 30}), mask_predict)
    add_run(folder, "xsum-1", decoding(values=rouge), decoding("mist", 3, rouge), task="xsum")
    add_run(folder, "xsum-2", decoding(values={"rouge155-2": 8.0}), task="xsum")
    first, second = cells(folder, 6, "Mask-Predict", **{"Iter.": "1"})  # a single pass
    assert first["Quora: BLEU-4"] == "28.95 → 13.40 (-15.55)" and first["XSum: ROUGE-2"] == "11.17 → 9.00 (-2.17)"
    assert second["Quora: BLEU-4"] == "28.95" and second["XSum: ROUGE-2"] == "11.17 → 8.00 (-3.17)"
    assert "Quora" not in second["Ours"] and "XSum: [xsum-2]" in second["Ours"]
    assert "SQuAD 1.1: not run: no result file" in first["Ours"] and first["SQuAD1.1: BLEU-4"] == "16.09"
    assert cells(folder, 6, "MIST", **{"Iter.": "3"})[0]["Quora: BLEU-4"] == "29.77 → 30.00 (+0.23)"
    assert cells(folder, 6, "Mask-Predict", **{"Iter.": "3"})[0]["Quora: BLEU-4"] == "27.70 → 17.76 (-9.94)"
    (line,) = cells(folder, 6, "MIST", **{"Iter.": "6"})
    assert "Quora: not run: this was not decoded with quora-mist" in line["Ours"]


def test_what_the_paper_does_not_have_stands_beside_its_like(folder):
    assert "## Beyond the paper" not in Report(folder).markdown()
    add_run(folder, "ours")
    add_run(folder, "longer", updates="1200")
    add_run(folder, "copy", decoding(), decoding("mist", 3, {"bleu-4": 5.0}), arm="reference")
    lines = tables(section(Report(folder).markdown(), "Beyond the paper: what is mixed in"))[0]
    actual = [(line["Arm"], line["Decoding"], line["BLEU-4"], line["BLEU-1"]) for line in lines]
    assert actual == [
        ("reference", "single-pass × 1", "13.40", "40.00"),
        ("reference", "mist × 3", "5.00", "-"),
        ("mist", "single-pass × 1", "13.40", "40.00"),
    ]


def protocol(name, *decodings):
    return {"protocol": name, "decodings": list(decodings)}


def copy(bleu=32.6, name="copy of the source", **more):
    return {"decoding": name, "iterations": 0, "values": {**QUORA, "bleu-4": bleu, **more}}


def test_protocols_stand_beside_each_other(folder):
    theirs = protocol("authors-quora", decoding(values={**QUORA, "bleu-4": 12.0}))
    add_run(folder, "mist", other_protocols=[theirs])
    ours, authors = cells(folder, 3, "MIST(MiniLM) †")
    assert (ours["Scored"], ours["BLEU-4"]) == ("ours", "26.96 → 13.40 (-13.56)")
    assert (authors["Scored"], authors["BLEU-4"]) == ("authors'", "26.96 → 12.00 (-14.96)")
    assert ours["Ours"] == authors["Ours"]  # the same run
    markdown = Report(folder).markdown()
    assert markdown.count("### Run ") == 1 and "- protocol: quora, authors-quora\n" in markdown
    theirs = protocol("authors-quora", decoding(values={**QUORA, "bleu-4": 11.5}))
    add_run(folder, "base", arm="no-mixing", other_protocols=[theirs])
    gains = [(line["Scored"], line["BLEU-4"]) for line in cells(folder, 3, "MIST(MiniLM) †: gain")]
    assert gains == [("ours", "+0.86 → +0.00 (-0.86)"), ("authors'", "+0.86 → +0.50 (-0.36)")]  # of equal protocols


def test_a_line_has_one_way_of_scoring(folder):
    theirs = protocol("authors-xsum", decoding(values={"rouge-package-2": 7.5}))
    add_run(folder, "xsum", decoding(values={"rouge155-2": 9.0}), task="xsum", other_protocols=[theirs])
    add_run(folder, "quora")
    lines = cells(folder, 6, "MIST", **{"Iter.": "1"})
    actual = [(line["Scored"], line["XSum: ROUGE-2"], line["Quora: BLEU-4"]) for line in lines]
    theirs = "11.17 → 7.50 (-3.67)"  # the authors' ROUGE is another package's
    assert actual == [("ours", "11.17 → 9.00 (-2.17)", "28.95 → 13.40 (-15.55)"), ("authors'", theirs, "28.95")]
    assert ["SQuAD 1.1: not run" in line["Ours"] for line in lines] == [True, False]


def test_systems_without_a_model(folder):
    """From runs and files of scripts/score.py, once for each test set, in every table of the task."""
    for name, more in {"mist": {}, "again": {}, "other": {"data": "another split"}}.items():
        add_run(folder, name, decoding(), copy(20.0 if name == "other" else 32.6), arm="reference", **more)
    (folder / "trivial").mkdir()
    found = {"protocol": "authors-quora", "command": "score", "commit": "a"}
    found["systems"] = {"copy of the source": {"values": {**QUORA, "bleu-4": 30.0}}}
    (folder / "trivial" / "authors.json").write_text(json.dumps(found))
    first, other, theirs = cells(folder, 3, "copy of the source")
    assert (first["BLEU-4"], first["Scored"], first["Iter."]) == ("→ 32.60", "ours", "0")
    assert first["Ours"].startswith("with [again](#run-again): ") and other["BLEU-4"] == "→ 20.00"
    assert (theirs["Scored"], theirs["Ours"]) == ("authors'", "[trivial/authors.json](trivial/authors.json)")
    assert len(cells(folder, 6, "copy of the source")) == 3 and not cells(folder, 1, "copy of the source")
    markdown = Report(folder).markdown()
    (beyond,) = tables(section(markdown, "Beyond the paper: what is mixed in"))
    assert [line["Decoding"] for line in beyond] == ["single-pass × 1"] * 3 + ["copy of the source"] * 3
    assert "```bash\nscore\n```" in section(markdown, "Runs") and "What BLEU hides" not in markdown
    (folder / "trivial" / "authors.json").write_text('{"protocol": "plain"}')
    with pytest.raises(ValueError, match=r"authors\.json is not .*: protocol is plain, expected that of squad_qg"):
        Report(folder)


def test_what_bleu_hides(folder):
    hidden = {"ibleu": 5.0, "copies": 12.5}
    add_run(folder, "mist", decoding(values={**QUORA, **hidden}, intervals={"ibleu": [4, 6]}), copy(copies=100))
    add_run(folder, "old")
    add_run(folder, "xsum", decoding(values={"rouge155-2": 2.0, "novel-1": 30.0}), task="xsum")
    xsum, quora = tables(section(Report(folder).markdown(), "What BLEU hides"))
    assert [(line["Decoding"], line["`ibleu`"], line["`copies`"]) for line in quora] == [
        ("single-pass × 1", "5.00 ± 1.00", "12.50"),
        ("copy of the source", "-", "100.00"),
    ]
    assert quora[1]["BLEU-4"] == "32.60" and quora[0]["Run"] == "[mist](#run-mist)" and quora[0]["Scored"] == "ours"
    (line,) = xsum
    assert line == line | {"ROUGE-2": "2.00", "`novel-1`": "30.00"} and "`ibleu`" not in line


def test_runs_say_how_they_came_about(folder):
    add_run(folder, "Quora.mist", seed="2")
    add_run(folder, "unlabelled", commit=None)
    content = json.loads((folder / "runs" / "unlabelled.json").read_text())
    del content["training"], content["data"]
    (folder / "runs" / "unlabelled.json").write_text(json.dumps(content))
    first, second = section(Report(folder).markdown(), "Runs").split("### Run ")[1:]
    assert first.startswith("Quora.mist\n") and "[runs/Quora.mist.json](runs/Quora.mist.json)" in first
    for key in ("weights", "data", "updates", "commit", "subset"):
        assert f"- {key}: {LABELS[key]}\n" in first
    assert "- seed: 2\n" in first
    assert LABELS["training"] in first and LABELS["command"] in first
    for text in ("- data: not recorded", "- commit: not recorded", "# training\n# not recorded\n"):
        assert text in second
    assert "(#run-quoramist)" in Report(folder).markdown()  # GitHub's anchor of "Run Quora.mist"


def test_findings_come_first_and_verbatim(folder):
    text = "## Findings\n\nMixing helps, *a bit* | really {source}\n"
    (folder / "findings.md").write_text(text)
    markdown = Report(folder).markdown()
    assert text in markdown and markdown.index(text) < markdown.index("## Table 1")
    assert markdown.startswith("# Results\n\n`python scripts/report.py`")


def test_figures_latency_and_other_files(folder):
    assert "not run: " in section(Report(folder).markdown(), "Figure 2")
    assert "not run: " in section(Report(folder).markdown(), "No cost at inference")
    for name in ("convergence-xsum.png", "convergence-xsum.json", "significance-quora.json", "notes.md", "README.md"):
        (folder / name).write_text("{}")
    ratio = {"speed_up": 1.004, "speed_up_interval": [0.9, 1.11]}
    systems = {"mist": {"milliseconds": {"mean": 10.126, "median": 10, "p90": 11.5}, **ratio}}
    content = {"runs": [{"batch_size": 1, "systems": systems}], "command": "python x.py", "commit": "abc"}
    content |= {"threads": 2, "device": "cpu"}
    (folder / "latency-cpu.json").write_text(json.dumps(content))
    markdown = Report(folder).markdown()
    assert "![convergence-xsum](convergence-xsum.png)" in section(markdown, "Figure 2")
    latency = section(markdown, "No cost at inference")
    row = {"Milliseconds, batches of 1": "mist", "mean": "10.13", "median": "10.00", "p90": "11.50"}
    assert tables(latency) == [[row | {"Times as fast as mist": "1.00 (0.90 - 1.11)"}]]
    assert "python x.py" in latency and "on cpu, 2 threads:" in latency and "Commit abc:" in latency
    links = re.findall(r"\]\((.*)\)", section(markdown, "More files"))
    assert links == ["convergence-xsum.json", "notes.md", "significance-quora.json"]
    (folder / "latency-cpu.json").write_text('{"runs": []}')
    with pytest.raises(ValueError, match="latency-cpu.json"):
        Report(folder).markdown()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"task": None}, "task is None, expected squad_qg, xsum, quora"),
        ({"task": "qqp"}, "task is qqp"),
        ({"arm": ""}, "arm is "),
        ({"init": "minilm"}, "init is minilm, expected random, MiniLM"),
        ({"decodings": [decoding(values={"bleu": 3.0})]}, "bleu is 3.00, expected finite scores of sacrebleu"),
        ({"decodings": [decoding(intervals={"bleu4": [1, 2]})]}, "bleu4 is 0.50"),
        ({"decodings": [decoding(values={"bleu-4": float("nan")})]}, "finite"),
        ({"decodings": [decoding(values={"bleu-4": "13.4"})]}, "not a decodings-test.json"),
        ({"decodings": [decoding(intervals={"bleu-4": [1]})]}, "not a decodings-test.json"),
        ({"decodings": [{"values": {}}]}, "decoding"),
        ({"decodings": 3}, "not a decodings-test.json"),
    ],
)
def test_errors_name_the_file(folder, changes, message):
    path = add_run(folder, "a")
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(ValueError, match=rf"runs/a\.json.*{message}|{message}.*runs/a\.json"):
        Report(folder)


@pytest.mark.parametrize("text", [b"{", b"[]", b"3", b"", b"\xff"])
def test_broken_files_are_named(folder, text):
    add_run(folder, "a").write_bytes(text)
    with pytest.raises(ValueError, match=r"runs/a\.json"):
        Report(folder)


def test_equal_names_are_refused(folder):
    add_run(folder, "a")
    add_run(folder, "b/A")
    with pytest.raises(ValueError, match=r"b/A\.json and .*runs/a\.json|a\.json and .*b/A\.json"):
        Report(folder)


def test_no_folder(tmp_path):
    with pytest.raises(OSError, match=r"paper\.json"):
        Report(tmp_path)


def test_the_script_writes_the_same_again_and_checks_it(folder, monkeypatch, capsys):
    def run(*options):
        return run_script(monkeypatch, "report.py", "--results", folder, *options)

    for name in ("b", "a", "c"):
        add_run(folder, name)
    assert re.match(r"error: .*README\.md is not .*scripts/report\.py", run("--check"))  # the exit status is 1
    assert not (folder / "README.md").exists()
    assert run() is run("--check") is None and capsys.readouterr().out == f"{folder / 'README.md'}\n"
    first = (folder / "README.md").read_bytes()
    assert run() is None and (folder / "README.md").read_bytes() == first
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "paper.json", "runs"]
    add_run(folder, "d")
    assert "README.md is not" in run("--check") and (folder / "README.md").read_bytes() == first
    add_run(folder, "a").write_text("{")
    assert re.match(r"error: .*runs/a\.json", run())


def test_the_repositorys_report_is_up_to_date():
    check(RESULTS)
