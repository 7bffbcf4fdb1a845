"""results/README.md: every row of the paper's tables beside what our result files say."""

import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import groupby, zip_longest
from pathlib import Path

from mist_fairseq.scoring.scores import METRICS
from mist_fairseq.training_log import table as convergence_table

# A gain is the difference of two runs that differ in nothing but the mixing.
_SAME = ("task", "init", "weights", "data", "updates", "seed", "subset", "protocol")
_INTRODUCTION = """# Results

`python scripts/report.py` makes this file from [`paper.json`](paper.json), the figures of *{source}*, and the result
files in `runs/`: `decodings-test.json`, written by `scripts/compare_decodings.py` with the labels `task`, `arm`, `init`,
`weights`, `data`, `updates` and `training` and copied to `runs/NAME.json`. Do not edit it; conclusions go to
`findings.md`. A cell is `paper → ours ± half the 95 % confidence interval (ours − paper)`, or the paper's figure alone.
"""


@dataclass
class Run:
    """A result file of ``scripts/compare_decodings.py``.

    Attributes:
        name: the file's, without its ending.
        path: relative to the folder of results.
        content: what is in it.
    """

    name: str
    path: str
    content: dict

    def decoding(self, name: str, iterations: int) -> dict | None:
        """The entry of a decoding; with one iteration all of them are a single pass."""
        for entry in self.content["decodings"]:
            if entry["iterations"] == iterations and (iterations == 1 or entry["decoding"] == name):
                return entry
        return None

    def link(self) -> str:
        """To its part of "Runs", and in short what it is a result of: labels without what is in brackets."""
        weights, data, updates = (str(self.content.get(key, "")).split(" (")[0] for key in ("weights", "data", "updates"))
        parts = [weights, f"{updates} updates" if updates else "", data]
        parts += [f"on {self.content['subset']}"] if self.content.get("subset", "test") != "test" else []
        protocol = self.content.get("protocol", self.content["task"])
        parts += [f"protocol {protocol}"] if protocol != self.content["task"] else []
        return _cell(f"[{self.name}](#run-{_slug(self.name)}): " + (", ".join(filter(None, parts)) or "not recorded"))


@dataclass
class Answer:
    """What stands beside a row of the paper: figures by metric, if there are, and the note in the last column."""

    note: str
    values: dict[str, Decimal] = field(default_factory=dict)
    widths: dict[str, Decimal] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


class Report:
    """The report on a folder of results.

    Args:
        folder: with ``paper.json`` and, where they exist, ``runs/``, ``findings.md``, ``convergence-*``, ``latency-*``.

    Raises:
        OSError, ValueError: a file is missing, broken or incomplete; the message names it.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        if not (folder / "paper.json").is_file():
            raise ValueError(f"there is no {folder / 'paper.json'}: the paper's figures are results/paper.json")
        self.paper = _load(folder / "paper.json")
        self.runs = _read_runs(folder, self.paper)
        self._shown: set[str] = set()

    def markdown(self) -> str:
        """All of README.md."""
        sections = [_INTRODUCTION.format(source=self.paper["source"])]
        if (self.folder / "findings.md").exists():
            sections.append((self.folder / "findings.md").read_text(encoding="utf-8"))
        for number, tables in groupby(self.paper["tables"], lambda table: table["number"]):
            sections.append(f"## Table {number}\n")
            sections += [self._table(table) for table in tables]
        sections += [self._figure(), self._latency(), self._beyond(), self._runs(), self._others()]
        return "\n".join(section if section.endswith("\n") else section + "\n" for section in sections if section)

    def _table(self, table: dict) -> str:
        """One table of the paper, with a legend of the reasons."""
        legend = _Legend()
        first = table["rows"][0]
        heads = [name for name, key in (("", "group"), ("Model", "name"), ("Iter.", "iterations")) if key in first]
        heads += [column["name"] for column in table["columns"]]
        if "speed" in first:
            heads.append(f"Speed ({legend.letter(self.paper['not_run']['speed'])})")
        lines = []
        for row in table["rows"]:
            answers = {column["task"]: self._answers(row, column["task"], legend) for column in table["columns"]}
            lines += self._lines(table, row, row["values"], answers, legend)
            if "gains" in row:
                answers = {task: self._gains(row, task, legend) for task in answers}
                gain = {**row, "name": row["name"] + ": gain over no mixing"}
                lines += self._lines(table, gain, row["gains"], answers, legend, sign="+")
        return f"{table['title']}:\n\n{_markdown_table([*heads, 'Ours'], lines)}\n{legend}"

    def _lines(self, table: dict, row: dict, figures: list, answers: dict, legend: "_Legend", sign="") -> Iterator:
        """Table lines of one row: as many as the task with the most runs has."""
        left = [row[key] for key in ("group", "name", "iterations") if key in row]
        speed = [f"{row['speed']} → not run"] if "speed" in row else []
        for line in zip_longest(*answers.values()):
            by_task = {task: answer for task, answer in zip(answers, line) if answer}
            cells, notes = [], {task: answer.note for task, answer in by_task.items()}
            for column, figure in zip(table["columns"], figures):
                answer = by_task.get(column["task"])
                cells.append(_compare(_figure(figure), answer, column["metric"], sign))
                if answer and answer.values and column["metric"] not in answer.values:
                    why = f"not scored: {answer.missing.get(column['metric'], 'not among the metrics of the run')}"
                    notes[column["task"]] += f", no {column['name']} {legend.letter(why)}"
            if len(answers) > 1:
                notes = {task: f"{self.paper['tasks'][task]}: {note}" for task, note in notes.items()}
            yield [*left, *cells, *speed, "<br>".join(notes.values())]

    def _answers(self, row: dict, task: str, legend: "_Legend") -> list[Answer]:
        """A row's answers from runs, or the one that says why there is none."""
        found, others = [], []
        for run in self._matching(row, task):
            decoding = _decoding(run, row)
            if decoding:
                self._shown.add(run.name)
                found.append(_answer(run, decoding))
            else:
                others.append(run.name)
        return found or [self._not_run(row, task, legend, others)]

    def _gains(self, row: dict, task: str, legend: "_Legend") -> list[Answer]:
        """Differences of a row's runs to the runs without mixing that are otherwise the same."""
        answers, lonely = [], []
        for run in self._matching(row, task):
            pairs = [other for other in self.runs if other.content["arm"] == "no-mixing" and _same(other, run)]
            entries = [(other, _decoding(other, row), _decoding(run, row)) for other in pairs]
            entries = [(other, base, mixed) for other, base, mixed in entries if base and mixed]
            for other, base, mixed in entries:
                base, mixed = _answer(other, base), _answer(run, mixed)
                values = {name: mixed.values[name] - base.values[name] for name in mixed.values if name in base.values}
                note = f"{_link(run)} − {_link(other)}"
                answers.append(Answer(note, values, missing={**mixed.missing, **base.missing}))
            lonely += [] if entries else [run.name]
        if lonely:
            why = "there is no run without mixing and else the same as " + ", ".join(lonely)
            answers.append(Answer(f"not run: {legend.letter(why)}"))
        return answers or [self._not_run(row, task, legend, [])]

    def _matching(self, row: dict, task: str) -> list[Run]:
        asked = {"task": task, **{key: row["run"][key] for key in ("arm", "init") if key in row["run"]}} if "run" in row else None
        return [run for run in self.runs if asked and asked.items() <= run.content.items()]

    def _not_run(self, row: dict, task: str, legend: "_Legend", others: list[str]) -> Answer:
        """The row's own reason, its weights', its data's, or the last one; *others* lack only the decoding."""
        reasons = self.paper["not_run"]
        if others:
            why = f"not decoded this way: {', '.join(others)}"
        elif "not_run" in row or "run" not in row:
            why = row.get("not_run", reasons["baseline"])
        else:
            why = reasons.get(row["run"].get("init")) or reasons.get(task) or reasons["other"]
        return Answer(f"not run: {legend.letter(why.replace('{task}', task))}")
