"""``results/README.md``: every row of the paper's tables beside what the result files say."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import groupby, zip_longest
from pathlib import Path

from mist_fairseq.files.markdown import markdown_table
from mist_fairseq.files.whole import write_text
from mist_fairseq.scoring.scores import AGAINST_SOURCE, METRICS, PROTOCOLS

_LEFT = {"group": "", "name": "Model", "iterations": "Iter."}
_LABELS = ("task", "arm", "init", "weights", "data", "updates", "subset", "protocol", "commit")
# A gain is the difference of two runs that differ in nothing but the mixing.
_SAME = ("task", "init", "weights", "data", "updates", "seed", "training_commit", "subset", "protocol")
_INTRODUCTION = """# Results

`python scripts/report.py` makes this file from [`paper.json`](paper.json), the figures of *{source}*,
and result files: `decodings-test.json` of `scripts/compare_decodings.py` with the labels `task`, `arm`, `init`,
`weights`, `data`, `updates` and `training`, copied to `runs/NAME.json`. Conclusions are written by hand, in
`findings.md`. A cell is `paper → ours ± half the 95 % confidence interval (ours − paper)`, or the paper's figure alone.
A gain is over the same model without mixing, BANG's over no NAR pre-training. (a), (b), ... are explained under each
table. "Scored" is how: by our protocol for the task, or as the authors' code does it
([the differences](../docs/fidelity.md#scores)). A copy of the source and lead-1, the source's first sentence, take no
model, and the paper does not have them; they are from the runs, or from `scripts/score.py --json`, copied to
`trivial/NAME.json`."""
_HIDDEN = """What BLEU and ROUGE cannot tell, in percent: `source-bleu` (BLEU-4 against the source), `ibleu` (0.8 of
BLEU-4 less 0.2 of `source-bleu`), `copies` (outputs equal to their source), `novel-n` (n-grams that the source does not
have), `distinct-n` (different n-grams of all n-grams), `similarity` and `source-similarity` (cosines of sentence
vectors with the reference and with the source). [docs/results.md](../docs/results.md#what-bleu-hides) has their papers.
Only runs that have them."""


@dataclass
class Run:
    """A result file: its name without the ending, its path in the folder of results, its content."""

    name: str
    path: str
    content: dict

    @property
    def link(self) -> str:
        """To its part of "Runs", by the anchor that GitHub makes of a heading; to the file where there is no model."""
        if "arm" not in self.content:
            return f"[{self.path}]({self.path})"
        return f"[{self.name}](#run-{_anchor(self.name)})"

    @property
    def summary(self) -> str:
        """The link, and in short what the run is a result of: labels up to their first bracket."""
        labels = {"weights": self.content["init"], "updates": "?", "data": "", "subset": "test"} | self.content
        weights, updates, data = (str(labels[key]).split(" (")[0] for key in ("weights", "updates", "data"))
        # The paper's tables are of test sets.
        subset = "" if labels["subset"] == "test" else f"subset {labels['subset']}"
        return f"{self.link}: {', '.join(filter(None, [weights, f'{updates} updates', data, subset]))}"

    @property
    def scored(self) -> str:
        """How its figures came about: "ours" is scripts/score.py's protocol for the task."""
        protocol, task = self.content.get("protocol", self.content["task"]), self.content["task"]
        return {task: "ours", f"authors-{task}": "authors'"}.get(protocol, protocol)

    @property
    def decodings(self) -> list[dict]:
        """The entries of the model's decodings."""
        return [entry for entry in self.content["decodings"] if entry["iterations"]]

    @property
    def trivial(self) -> list[dict]:
        """The entries of what takes no model."""
        return [entry for entry in self.content["decodings"] if not entry["iterations"]]

    def decoding(self, decoding: str = "single-pass", iterations: int = 1) -> dict | None:
        """Return the entry of a decoding; with one iteration every decoding is a single pass."""
        same = (entry for entry in self.content["decodings"] if entry["iterations"] == iterations)
        return next((entry for entry in same if iterations == 1 or entry["decoding"] == decoding), None)

    def has(self, **labels) -> bool:
        """Tell whether the run has all these labels."""
        return all(self.content.get(key) == value for key, value in labels.items())

    def is_alike(self, other: "Run") -> bool:
        """Tell whether nothing but the arm differs."""
        return self.has(**{key: other.content.get(key) for key in _SAME})


@dataclass
class Answer:
    """What stands beside a row: a note and, where the row was run, how and figures by metric or why it has none."""

    note: str
    scored: str = ""
    values: dict[str, Decimal] = field(default_factory=dict)
    widths: dict[str, Decimal] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, entry: dict, note: str = "", scored: str = "") -> "Answer":
        """Read the entry of a decoding."""
        widths = {name: _round((high - low) / 2) for name, (low, high) in entry.get("intervals", {}).items()}
        values = {name: _round(value) for name, value in entry["values"].items()}
        why = dict.fromkeys(METRICS, "not among the metrics of the run") | entry.get("failed", {})
        failed = {name: str(reason) for name, reason in why.items() if name not in values}
        return cls(note, scored, values, widths, failed)

    def minus(self, other: "Answer") -> "Answer":
        """Subtract the rounded figures, as a reader would; the differences' intervals are not known."""
        values = {name: self.values[name] - other.values[name] for name in self.values if name in other.values}
        return Answer(f"{self.note} − {other.note}", self.scored, values, failed=self.failed | other.failed)

    def metric(self, ours: str) -> str:
        """Return the metric in the place of *ours*, which a table names: the authors' ROUGE is another."""
        return ours.replace("rouge155", "rouge-package") if self.scored == "authors'" else ours

    def figure(self, metric: str, sign: str = "") -> str:
        """Return the value and half the width of its interval, or nothing; *sign* as in a format string."""
        width = f" ± {self.widths[metric]}" if metric in self.widths else ""
        return f"{self.values[metric]:{sign}}{width}" if metric in self.values else ""


class Legend(dict[str, str]):
    """The letter of each reason in a table; a reason that is looked up for the first time gets the next one."""

    def __missing__(self, reason: str) -> str:
        self[reason] = f"({chr(ord('a') + len(self))})"
        return self[reason]


class Report:
    """The report on a folder of results; OSError or ValueError names a file that is missing, broken or incomplete."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.paper = _load(folder / "paper.json")
        self.runs = _read_runs(folder, self.paper)
        self.trivial = _read_trivial(folder, self.paper)
        self.speeds = {task: _read_speeds(folder / "latency" / f"{task}.json") for task in self.paper["tasks"]}

    def markdown(self) -> str:
        """Return all of README.md."""
        sections = [_INTRODUCTION.format(source=self.paper["source"])]
        if (self.folder / "findings.md").exists():
            sections.append((self.folder / "findings.md").read_text(encoding="utf-8").removesuffix("\n"))
        for number, tables in groupby(self.paper["tables"], lambda table: table["number"]):
            sections += [f"## Table {number}", *map(self._table, tables)]
        parts = self._figure, self._latency, self._beyond, self._hidden, self._runs, self._others
        sections += [section for part in parts for section in part()]
        return "\n\n".join(sections) + "\n"

    def _table(self, table: dict) -> str:
        legend, first, columns = Legend(), table["rows"][0], table["columns"]
        heads = [title for key, title in _LEFT.items() if key in first] + [column["name"] for column in columns]
        heads += [f"Speed {legend[self.paper['speed']]}"] if "speed" in first else []
        lines: list[list[str]] = []
        for row in table["rows"]:
            lines += self._lines(columns, row, legend)
            if "gains" in row:
                gain = {key: "" for key in ("iterations", "speed") if key in row} | {"name": f"{row['name']}: gain"}
                lines += self._lines(columns, row | gain | {"values": row["gains"]}, legend, is_gain=True)
        for name, answers in self._without_model(columns).items():
            row = dict.fromkeys(first, "") | {"name": name, "values": [None] * len(columns)}
            lines += self._lines(columns, row | ({"iterations": "0"} if "iterations" in first else {}), legend, answers)
        reasons = "\n".join(f"- {letter} {reason}" for reason, letter in legend.items())
        return f"{table['title']}:\n\n{markdown_table([*heads, 'Scored', 'Ours'], lines)}\n\n{reasons}".rstrip()

    def _lines(
        self, columns, row: dict, legend: Legend, answers: dict[str, list[Answer]] | None = None, is_gain: bool = False
    ) -> Iterator[list[str]]:
        """Yield the lines of one row: as many as the task with the most answers has."""
        sign, tasks = "+" if is_gain else "", dict.fromkeys(column["task"] for column in columns)
        answers = answers or {task: self._answers(row, task, legend, is_gain) for task in tasks}
        left = [row[key] for key in _LEFT if key in row]
        measured = self.speeds[columns[0]["task"]].get(row.get("latency", ""))
        times = "not run" if measured is None else f"{measured:.1f}×"
        speed = [row["speed"] and f"{row['speed']} → {times}"] if "speed" in row else []
        for line in _lines_of(list(answers.values())):
            scored = next((answer.scored for answer in line if answer and answer.scored), "")
            by_task = {task: answer for task, answer in zip(answers, line) if answer}
            notes, cells = {task: answer.note for task, answer in by_task.items()}, []
            for column, paper in zip(columns, row["values"]):
                answer = by_task.get(column["task"], Answer(""))
                metric = answer.metric(column["metric"])
                ours = answer.figure(metric, sign)
                shown = [] if paper is None else [f"{_round(paper):{sign}}"]
                if ours:
                    difference = "" if paper is None else f" ({answer.values[metric] - _round(paper):+})"
                    shown.append(f"→ {ours}{difference}")
                cells.append(" ".join(shown))
                if not ours and metric in answer.failed:
                    notes[column["task"]] += f", no {column['name']} {legend[answer.failed[metric]]}"
            if len(tasks) > 1:
                notes = {task: f"{self.paper['tasks'][task]}: {note}" for task, note in notes.items()}
            yield [*left, *cells, *speed, scored, "<br>".join(notes.values())]

    def _without_model(self, columns: list[dict]) -> dict[str, dict[str, list[Answer]]]:
        """Return by name and task what takes no model; equal figures are of the same test set, and come once."""
        found: dict[str, dict[str, dict[tuple, Answer]]] = {}
        for run in self.trivial + self.runs:
            metrics = [column["metric"] for column in columns if run.has(task=column["task"])]
            for entry in run.trivial if metrics else []:
                answer = Answer.of(entry, f"with {run.summary}" if "arm" in run.content else run.link, run.scored)
                figures = [answer.values.get(answer.metric(metric)) for metric in metrics]
                of_task = found.setdefault(entry["decoding"], {}).setdefault(run.content["task"], {})
                of_task.setdefault((run.scored, *figures), answer)
        return {name: {task: list(one.values()) for task, one in tasks.items()} for name, tasks in found.items()}

    def _matching(self, row: dict, task: str) -> list[Run]:
        labels = {key: value for key, value in row.get("run", {}).items() if key in ("arm", "init")}
        return [run for run in self.runs if labels and run.has(task=task, **labels)]

    def _answers(self, row: dict, task: str, legend: Legend, is_gain: bool) -> list[Answer]:
        """Return what the runs say to a row, or the one answer why there is none."""
        decoding = {key: value for key, value in row.get("run", {}).items() if key in ("decoding", "iterations")}
        runs, answers = self._matching(row, task), []
        for run in runs:
            entry = run.decoding(**decoding)
            if entry and not is_gain:
                answers.append(Answer.of(entry, run.summary, run.scored))
            for base in self.runs if is_gain else []:
                other = base.decoding(**decoding)
                if entry and other and base.has(arm="no-mixing") and base.is_alike(run):
                    answers.append(Answer.of(entry, run.link, run.scored).minus(Answer.of(other, base.link)))
        reasons, why = self.paper["not_run"], row.get("not_run")
        if runs:
            lack = "there is no run without mixing that is otherwise like" if is_gain else "this was not decoded with"
            why = f"{lack} {', '.join(dict.fromkeys(run.name for run in runs))}"
        elif not why and "run" in row:
            why = reasons.get(row["run"].get("init")) or reasons.get(task) or reasons["other"]
        why = (why or reasons["baseline"]).replace("{task}", task)
        return answers or [Answer(f"not run: {legend[why]}")]

    def _figure(self) -> Iterator[str]:
        yield "## Figure 2"
        yield "The paper's is of XSum, ROUGE-L on validation over updates with and without mixing. Ours:"
        paths = sorted(self.folder.glob("convergence-*.png"))
        yield from [f"`{path.stem}`\n\n![{path.stem}]({path.name})" for path in paths]
        if not paths:
            yield f"not run: {self.paper['not_run']['figure']}"

    def _latency(self) -> Iterator[str]:
        yield "## No cost at inference"
        paths, kinds = sorted(self.folder.glob("latency-*.json")), ["mean", "median", "p90"]
        for path in paths:
            content = _load(path)
            with _expecting(path, "a result of scripts/benchmark_latency.py"):
                yield f"[{path.name}]({path.name}), on {content['device']}, {content['threads']} threads:"
                for run in content["runs"]:
                    lines = []
                    for name, system in run["systems"].items():
                        times = [str(_round(system["milliseconds"][kind])) for kind in kinds]
                        ratio, (low, high) = system["speed_up"], system["speed_up_interval"]
                        lines.append([name, *times, f"{ratio:.2f} ({low:.2f} - {high:.2f})"])
                    heads = [f"Milliseconds, batches of {run['batch_size']}", *kinds]
                    yield markdown_table([*heads, f"Times as fast as {lines[0][0]}"], lines)
                yield f"Commit {content['commit']}:\n\n```bash\n{content['command']}\n```"
        if not paths:
            yield f"not run: {self.paper['not_run']['latency']}"

    def _beyond(self) -> Iterator[str]:
        """Yield tables of runs that no row of the paper asks for, beside those that differ in the arm alone."""
        tables = self.paper["tables"]
        asked = [(row, column["task"]) for table in tables for column in table["columns"] for row in table["rows"]]
        names = {run.name for row, task in asked for run in self._matching(row, task)}
        beyond = [run for run in self.runs if run.name not in names]
        if beyond:
            yield "## Beyond the paper: what is mixed in"
        for task in sorted({run.content["task"] for run in beyond}):
            alike = [run for run in self.runs if any(run.is_alike(one) and one.has(task=task) for one in beyond)]
            yield self._decodings(task, alike, {column["metric"]: column["name"] for column in self._columns(task)})

    def _columns(self, task: str) -> list[dict]:
        """Return the columns of the task's first table."""
        return next(table["columns"] for table in self.paper["tables"] if table["columns"][0]["task"] == task)

    def _hidden(self) -> Iterator[str]:
        """Yield a table a task of what outputs have to do with their sources."""
        sections = []
        for task in self.paper["tasks"]:
            runs = [run for run in self.runs + self.trivial if run.has(task=task)]
            measured = {name for run in runs for entry in run.content["decodings"] for name in entry["values"]}
            known = {name: f"`{name}`" for name in ["similarity", *AGAINST_SOURCE] if name in measured}
            have = [run for run in runs if any(known.keys() & entry["values"].keys() for entry in run.decodings)]
            main = self._columns(task)[1]  # BLEU-4 or ROUGE-2
            sections += [self._decodings(task, have, {main["metric"]: main["name"]} | known)] if known else []
        if sections:
            yield from ["## What BLEU hides", _HIDDEN, *sections]

    def _decodings(self, task: str, runs: list[Run], metrics: dict[str, str]) -> str:
        """Return a table of all decodings of runs, and of what takes no model; *metrics*: their titles."""
        found = [
            (run.content["arm"], f"{entry['decoding']} × {entry['iterations']}", Answer.of(entry, run.link, run.scored))
            for run in runs
            for entry in run.decodings
        ]
        trivial = self._without_model([{"task": task, "metric": metric} for metric in metrics])
        found += [("", name, answer) for name, answers in trivial.items() for answer in answers[task]]
        lines = []
        for arm, name, answer in found:
            cells = [answer.figure(answer.metric(metric)) or "-" for metric in metrics]
            lines.append([arm, name, *cells, answer.scored, answer.note])
        heads = ["Arm", "Decoding", *metrics.values(), "Scored", "Run"]
        return f"{self.paper['tasks'][task]}:\n\n{markdown_table(heads, lines)}"

    def _runs(self) -> Iterator[str]:
        yield "## Runs" if self.runs else "## Runs\n\nNone yet."
        for _, (run, *others) in groupby(self.runs, lambda run: run.path):
            given = {key: value for key, value in run.content.items() if value and key != "decodings"}
            labels = dict.fromkeys(_LABELS, "not recorded") | given
            labels["protocol"] = ", ".join([labels["protocol"], *(other.content["protocol"] for other in others)])
            commands = [labels.pop(key, "# not recorded") for key in ("training", "command")]
            lines = [f"- {key}: {value}" for key, value in labels.items()]
            yield "\n".join([f"### Run {run.name}\n", *lines, f"- [{run.path}]({run.path})"])
            yield "```bash\n# training\n{}\n# scoring\n{}\n```".format(*commands)
        if self.trivial:
            yield "### Without a model"
            yield "\n".join(f"- {run.link}, commit {run.content['commit']}" for run in self.trivial)
            yield "```bash\n{}\n```".format("\n".join(run.content["command"] for run in self.trivial))

    def _others(self) -> list[str]:
        kinds = ("convergence-*.json", "significance-*.json", "*.md")
        names = sorted({path.name for kind in kinds for path in self.folder.glob(kind)} - {"README.md", "findings.md"})
        return ["## More files", "\n".join(f"- [{name}]({name})" for name in names)] if names else []


def write(folder: Path) -> Path:
    """Write README.md whole or not at all, and return its path."""
    write_text(folder / "README.md", Report(folder).markdown())
    return folder / "README.md"


def check(folder: Path):
    """Raise ValueError if README.md is not what ``write`` would write."""
    out, text = folder / "README.md", Report(folder).markdown()
    if not out.exists() or out.read_text(encoding="utf-8") != text:
        raise ValueError(f"{out} is not what the result files say: run python scripts/report.py --results {folder}")


def _read_speeds(path: Path) -> dict[str, float]:
    """Return speed over the first system one sentence at a time, by system, of a result of benchmark_latency.py."""
    if not path.exists():
        return {}
    content = _load(path)
    with _expecting(path, "a result of scripts/benchmark_latency.py with --batch-size 1"):
        (run,) = [run for run in content["runs"] if run["batch_size"] == 1]
        return {name: float(system["speed_up"]) for name, system in run["systems"].items() if "speed_up" in system}


def _read_runs(folder: Path, paper: dict) -> list[Run]:
    """Read a run a protocol of each file."""
    runs, names = list[Run](), dict[str, Path]()
    for path in sorted((folder / "runs").rglob("*.json")):
        content = _load(path)
        with _expecting(path, "a decodings-test.json of scripts/compare_decodings.py"):
            others = content.pop("other_protocols", [])
            for one in [content, *({**content, **other} for other in others)]:
                runs.append(Run(path.stem, path.relative_to(folder).as_posix(), one))
                _check_run(one, paper)
        other = names.setdefault(_anchor(path.stem), path)
        if other is not path:
            raise ValueError(f"{path} and {other} have the same name: rename one of them")
    return runs


def _read_trivial(folder: Path, paper: dict) -> list[Run]:
    runs = []
    for path in sorted((folder / "trivial").glob("*.json")):
        content = _load(path)
        with _expecting(path, "a result of scripts/score.py --json"):
            task, known = content["protocol"].removeprefix("authors-"), paper["tasks"]
            if task not in known:
                raise ValueError(f"protocol is {content['protocol']}, expected that of {', '.join(known)}")
            entries = [{"decoding": name, "iterations": 0} | scores for name, scores in content["systems"].items()]
            labels = {key: content[key] for key in ("protocol", "command", "commit")}
            runs.append(Run(path.stem, path.relative_to(folder).as_posix(), {"task": task, **labels}))
            runs[-1].content["decodings"] = entries
            _check_scores(entries)
    return sorted(runs, key=lambda run: run.scored != "ours")


def _check_run(content: dict, paper: dict):
    labelled = {"protocol": content.get("task")} | content
    labels = {"task": list(paper["tasks"]), "arm": None, "init": paper["inits"], "protocol": list(PROTOCOLS)}
    for label, known in labels.items():
        given = labelled.get(label)
        expected = ", ".join(known or ["no-mixing", "static-mixing", "mist", "another name"])
        if not given or not isinstance(given, str) or (known and given not in known):
            raise ValueError(f"{label} is {given}, expected {expected} (compare_decodings.py --label {label}=NAME)")
    _check_scores(content["decodings"])


def _check_scores(entries: list[dict]):
    for entry in entries:
        answer = Answer.of(entry, f"{entry['decoding']} {entry['iterations']}")
        for metric, figure in [*answer.values.items(), *answer.widths.items()]:
            if metric not in METRICS or not figure.is_finite():
                raise ValueError(f"{metric} is {figure}, expected finite scores of {', '.join(METRICS)}")


def _lines_of(tasks: list[list[Answer]]) -> Iterator[tuple[Answer | None, ...]]:
    """Yield the answers of each task beside each other: lines of one way of scoring each, ours first."""
    kinds = {answer.scored: None for answers in tasks for answer in answers if answer.scored} or [""]
    for number, kind in enumerate(sorted(kinds, key=lambda kind: kind != "ours")):
        # What was not run has none, and stands in the first lines.
        taken = [[one for one in answers if one.scored == kind or not (one.scored or number)] for answers in tasks]
        yield from zip_longest(*taken)


def _load(path: Path) -> dict:
    with _expecting(path, "a JSON file"):
        return json.loads(path.read_text(encoding="utf-8"))


@contextmanager
def _expecting(path: Path, expected: str) -> Iterator[None]:
    """Turn whatever is wrong with the content into a ValueError that names the file."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        why = error if isinstance(error, ValueError) else repr(error)
        raise ValueError(f"{path} is not {expected}: {why}. Correct it or copy it again") from error


def _anchor(name: str) -> str:
    return re.sub(r"[^a-z0-9_-]", "", name.lower())


def _round(value: float) -> Decimal:
    return Decimal(f"{value:.2f}")
