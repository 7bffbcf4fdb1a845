"""A benchmark's result as Markdown, in the layout of the paper's tables, and as a plot."""

from pathlib import Path

from mist_fairseq.experiments.benchmark.systems import GROUPS
from mist_fairseq.files.output import markdown_table, new_figure, whole_file

_METRICS = {
    "bleu-1": "BLEU-1",
    "bleu-4": "BLEU-4",
    "meteor15": "METEOR",
    "rouge155-1": "R-1",
    "rouge155-2": "R-2",
    "rouge155-l": "R-L",
    "rouge-l": "ROUGE-L",
    "sacrebleu": "sacrebleu",
}


def markdown(result: dict) -> str:
    """All tables of a result of ``scripts/benchmark_latency.py``."""
    sections = [_summary(result)]
    for run in result["runs"]:
        sections += [f"Batches of {run['batch_size']}, {run['sentences']} sentences:", _details(result, run)]
        if run.get("floor"):
            sections += ["Over the floor, what the matrix products take at least at the machine's rates:", _floor(run)]
    if result.get("rates"):
        rates = ", ".join(f"{key} {value['operations'] / 1e9:.0f} G/s" for key, value in result["rates"].items())
        bandwidth = max(value["bandwidth"] for value in result["rates"].values()) / 1e9
        sections.append(
            f"Rates of a product of 2048 x 2048 matrices (256 x 256 where those take seconds): {rates}; of copying, "
            f"{bandwidth:.0f} GB/s."
        )
    if result.get("parts"):
        sections += ["Milliseconds a sentence by part:", _parts(result)]
    lengths = "as long as their references" if result["forced_lengths"] else "as long as the systems make them"
    sections.append(
        f"{result['device']}, {result['threads']} threads, torch {result['torch']}; outputs {lengths}. Speed is over "
        "the first system, in the same run, with a 95 % bootstrap interval. Memory: weights and computation, of the "
        "longest sentences. `N` passes are as many as there are tokens."
    )
    return "\n\n".join(sections) + "\n"


def _rows(result: dict) -> list[tuple[str, str]]:
    """Groups and names, in the paper's order of groups."""
    described = result["described"]
    return [(group, name) for group in GROUPS for name, content in described.items() if content["group"] == group]


def _summary(result: dict) -> str:
    """The paper's layout: group, model, scores, iterations, speed."""
    scores, runs = result.get("scores", {}), result["runs"]
    metrics = [key for key in _METRICS if any(key in one.get("values", {}) for one in scores.values())]
    heads = ["", "Models", *(_METRICS[key] for key in metrics), "Iter."]
    heads += [f"Speed, batch {run['batch_size']}" for run in runs]
    lines = []
    for group, name in _rows(result):
        values = scores.get(name, {}).get("values", {})
        cells = [f"{values[key]:.2f}" if key in values else "" for key in metrics]
        found = [run["systems"].get(name) for run in runs]
        if not any(found):
            lines.append([group, name, *cells, "", *(["failed"] * len(runs))])
            continue
        passes = next(one["passes_per_sentence"] for one in found if one)
        cells.append("N" if group == "AR" else f"{passes:.1f}".removesuffix(".0"))
        lines.append([group, name, *cells, *map(_speed, found, runs)])
    failures = [f"- {name}: {content['error']}" for name, content in result["described"].items() if "error" in content]
    return "\n\n".join([markdown_table(heads, lines), *(["Failed:\n\n" + "\n".join(failures)] if failures else [])])


def _speed(found: dict | None, run: dict) -> str:
    if not found or "speed_up" not in found:
        return ""
    low, high = found["speed_up_interval"]
    one_batch = run["sentences"] <= run["batch_size"]  # whose interval has no width
    return f"{found['speed_up']:.2f}×" + ("" if one_batch else f" ({low:.2f} - {high:.2f})")


def _details(result: dict, run: dict) -> str:
    heads = ["Models", "ms mean", "median", "p90", "p99", "sentences/s", "tokens", "passes", "parameters", "memory"]
    lines = []
    for _, name in _rows(result):
        found = run["systems"].get(name)
        if found is None:
            continue
        content = result["described"][name]
        memory = result.get("memory", {}).get(name)
        lines.append(
            [
                f"{name}, {content['precision']}",
                *(f"{found['milliseconds'][key]:.1f}" for key in ("mean", "median", "p90", "p99")),
                f"{found['sentences_per_second']:.1f}",
                f"{found['tokens_per_sentence']:.1f}",
                f"{found['passes_per_sentence']:.1f}",
                f"{content['parameters'] / 1e6:.1f} M",
                "" if memory is None else f"{memory / 2**20:,.0f} MiB",
            ]
        )
    return markdown_table(heads, lines)


def _floor(run: dict) -> str:
    lines = []
    for name, least in run["floor"].items():
        found = run["systems"][name]["milliseconds"]["median"]
        lines.append([name, f"{least:.2f}", f"{found:.2f}", f"{found / least:.2f}"])
    return markdown_table(["Models", "floor, ms", "median, ms", "median ÷ floor"], lines)


def _parts(result: dict) -> str:
    parts = list(next(iter(result["parts"].values())))
    lines = []
    for name, spent in result["parts"].items():
        share = spent["overhead"] / sum(spent.values())
        lines.append([name, *(f"{spent[part]:.2f}" for part in parts), f"{share:.1%}"])
    return markdown_table(["Models", *parts, "share of overhead"], lines)


def plot(result: dict, metric: str, path: Path):
    """Quality over latency at the first batch size, milliseconds on a logarithmic scale.

    Raises:
        ValueError: there are no scores of this metric.
    """
    run = result["runs"][0]
    points = {
        name: (run["systems"][name]["milliseconds"]["mean"], result["scores"][name]["values"][metric], group)
        for group, name in _rows(result)
        if name in run["systems"] and metric in result.get("scores", {}).get(name, {}).get("values", {})
    }
    if not points:
        raise ValueError(f"no scores of {metric}: there is nothing to plot")
    figure = new_figure(11, 6)
    axes = figure.add_subplot()
    style = dict(zip(GROUPS, (("o", "tab:blue"), ("s", "tab:orange"), ("^", "tab:green"))))
    for number, (name, (x, y, group)) in enumerate(points.items(), 1):
        marker, colour = style[group]
        axes.scatter(x, y, marker=marker, color=colour, s=40, label=f"{number}  {name} ({group})")
        axes.annotate(str(number), (x, y), xytext=(4, 4), textcoords="offset points", fontsize=9)
    axes.set_xscale("log")
    for axis_formatter in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        axis_formatter("{x:g}")
    axes.set_xlabel(f"milliseconds a sentence, batches of {run['batch_size']}")
    axes.set_ylabel(_METRICS.get(metric, metric))
    axes.grid(color="0.9", which="both")
    axes.set_axisbelow(True)
    figure.legend(loc="outside right upper", frameon=False, fontsize=9)
    with whole_file(path) as partial:
        figure.savefig(partial, dpi=150, format=path.suffix[1:])
