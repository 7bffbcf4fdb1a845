"""scripts/measure_round_trip.py on five lines that are counted by hand."""

from tests.experiments.preparation import run_script
from tests.helpers import tiny_vocab

LINES = [
    "what is it?",
    "Is  it 3.5?",
    "what is it ?",
    "what? it is",
    "\u2603 is unknown",
]  # the third does not come back


def test_lines_that_come_back_are_counted(tmp_path, monkeypatch, capsys):
    (tmp_path / "vocab.txt").write_text("".join(symbol + "\n" for symbol in tiny_vocab()))
    text = tmp_path / "lines.txt"
    text.write_text("".join(line + "\n" for line in LINES), encoding="utf-8")
    assert run_script(monkeypatch, "measure_round_trip.py", tmp_path / "vocab.txt", text, "--examples", 1) is None
    first, *rows = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{text}: ")
    assert sorted(rows[:4]) == [
        "  all: 3 of 4 come back, 75.00 %",
        "  typed as usual: 3 of 3 come back, 100.00 %",
        "  with digits: 1 of 1 come back, 100.00 %",
        "  without digits: 2 of 3 come back, 66.67 %",
    ]
    assert rows[4:] == ["       1 lost aa_?", "    what is it ?", "    what is it?"]
