import json

import pytest
import torch

from mist_fairseq.experiments.benchmark import scaling
from mist_fairseq.experiments.benchmark.scaling import Axis, Work, fit_line, make_axes, make_entries
from mist_fairseq.experiments.benchmark.systems import PARTS, System
from tests.experiments.benchmark.helpers import MIST, TRANSFORMER, watch
from tests.experiments.preparation import run_script

TINY = {"source": [5, 9], "target": [4, 7], "batch": [1, 3], "iterations": [1, 2, 3]}


@pytest.fixture(scope="module")
def axes():
    return make_axes(TINY)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, axes):
    folder = tmp_path_factory.mktemp("scaling")
    scaling.write_works(folder, axes)
    return folder


@pytest.fixture
def systems(folder, axes):
    given = [MIST, f"{MIST} --encoder-attention-heads 4"]
    return scaling.load_systems(make_entries(given, folder, accelerate="none"), axes)


@pytest.fixture
def result(systems, axes):
    actual = [scaling.measure(systems, axis, repeats=2, warm_up=0) for axis in axes]
    machine = {"device": "some CPU", "threads": 1, "torch": torch.__version__}
    return machine | {"described": scaling.describe_systems(systems), "axes": actual}


def test_one_number_changes_at_a_time(axes):
    assert axes == [
        Axis("source", [Work(5, 16), Work(9, 16)]),
        Axis("target", [Work(32, 4), Work(32, 7)]),
        Axis("batch", [Work(14, 14, 1), Work(14, 14, 3)]),
        *(Axis("iterations", [Work(14, 14, 1, how, n) for n in (1, 2, 3)]) for how in ("mist", "mask-predict")),
    ]


def test_values_of_an_axis():
    assert make_axes({"batch": [8, 2, 8], "source": []}) == [Axis("batch", [Work(batch=2), Work(batch=8)])]
    for values, message in [
        ({"batch": [4, 4]}, r"batch has the values \[4\], expected two or more from 1 on"),
        ({"source": [16, 2]}, r"source has the values \[2, 16\], expected two or more from 3 on"),
        ({"source": []}, "no values for any of source, target, batch, iterations"),
    ]:
        with pytest.raises(ValueError, match=message):
            make_axes(values)


def test_names_tell_models_apart(folder):
    given = ["--task mist --arch mist_base", "--task=mist --arch=mist_base --encoder-layers 6"]
    entries = make_entries(given, folder, "bf16", "compile")
    assert [entry.name for entry in entries] == ["mist_base", "mist_base --encoder-layers 6"]
    assert {(entry.precision, entry.options["accelerate"]) for entry in entries} == {("bf16", "compile")}
    with pytest.raises(ValueError, match="--arguments: two systems have the same name"):
        make_entries([given[0], given[0]], folder)


def test_models_that_cannot_do_it_are_refused(folder, axes):
    entries = make_entries([f"{MIST} --max-source-positions 20"], folder)
    with pytest.raises(ValueError, match="takes sources of 20 tokens, expected at least 32: .*--max-source-positions"):
        scaling.load_systems(entries, axes)
    entries[0].arguments, entries[0].options = TRANSFORMER, {}
    with pytest.raises(ValueError, match="generates with SequenceGenerator, expected a model of --task mist"):
        scaling.load_systems(entries, axes)


def test_the_work_is_as_prescribed(systems, axes, monkeypatch):
    """Shapes of what the engine gets."""
    system = next(iter(systems.values()))
    engine, seen = system.model.engine, []
    for name in ("encode", "fill"):
        watch(monkeypatch, engine, name, lambda tokens, *_, name=name: seen.append((name, *tokens.shape)))

    def run(work):
        seen.clear()
        system.load_data(work.split)
        scaling.run(system, work, system.batch(range(work.batch)))
        assert seen[: len(seen) // 2] == seen[len(seen) // 2 :], "with clocks and without"
        return seen[: len(seen) // 2]

    for work in [work for axis in axes[:3] for work in axis.works]:
        assert run(work) == [("encode", work.batch, work.source), ("fill", work.batch, work.target)]
    fill = ("fill", 1, 14)
    assert run(Work(decoding="mask-predict", iterations=3)) == [("encode", 1, 14), fill, fill, fill]
    (_, *first), one, (_, _, mixed), other = run(Work(decoding="mist", iterations=2))
    assert first == [1, 14] and one == other == fill and 14 < mixed <= 14 + 14 + 1


def test_values_and_models_take_turns(systems, axes, monkeypatch):
    order = []

    def run(system, work, sample):
        assert len(sample["id"]) == work.batch
        order.append((system.entry.name, work))
        return 10.0 * work.batch + len(order) % 2, {"head": 3.0, "overhead": 1.0}

    monkeypatch.setattr(scaling, "run", run)
    actual = scaling.measure(systems, axes[2], repeats=6, warm_up=1)
    rounds = [order[at : at + 4] for at in range(0, len(order), 4)]
    assert len(rounds) == 7 and len({tuple(one) for one in rounds}) > 1, "in different orders"
    jobs = {(name, work) for name in systems for work in axes[2].works}
    assert all(set(one) == jobs for one in rounds)
    order.clear()
    monkeypatch.setattr(System, "captures", True)
    scaling.measure(systems, axes[2], repeats=6, warm_up=1)
    assert len(order) == 4 * (6 + 2), "a large graph may have replaced others in the first round"
    assert actual["values"] == [1, 3] and actual["repeats"] == 6 and "batch" not in actual["fixed"]
    for model in actual["models"].values():
        point = model["points"][1]
        assert 30 <= point["milliseconds"]["median"] <= 31 and point["shares"] == {"head": 0.75, "overhead": 0.25}
        assert point["milliseconds_a_sentence"] == point["milliseconds"]["median"] / 3


def test_a_model_that_stops_early_is_refused(systems, axes, monkeypatch):
    for system in systems.values():
        monkeypatch.setattr(system, "decode", lambda _: [[{"tokens": torch.tensor([1]), "steps": 1}]])
    with pytest.raises(ValueError, match=r"made \[1\] passes, expected [23]"):
        scaling.measure(systems, axes[3], repeats=1)


def test_line_of_least_squares():
    assert fit_line([1, 2, 4], [7.0, 9.0, 13.0]) == pytest.approx({"intercept": 5, "slope": 2, "r_squared": 1})
    # By hand: means 2 and 2, covariance 2 over variance 2, residuals -1/3, 2/3, -1/3 against 8/3.
    line = fit_line([1, 2, 3], [1.0, 3.0, 3.0])
    assert line == pytest.approx({"intercept": 1 / 3, "slope": 1, "r_squared": 1 - (6 / 9) / (8 / 3)})
    assert fit_line([1, 2], [4.0, 4.0])["r_squared"] == 1


def test_what_is_fixed_and_where_a_line_has_no_fixed_share():
    lines = [(16.0, 1.0), (-1.0, 1.0), (1.0, -0.1)]
    models = {str(i): {"line": dict(intercept=low, slope=up, r_squared=0.99)} for i, (low, up) in enumerate(lines)}
    rows = scaling._lines_table({"axis": "source", "values": [16, 464], "models": models}).splitlines()
    assert rows[0].endswith("source token | R² | fixed at 16 source tokens | fixed at 464 source tokens |")
    assert rows[2] == "| 0 | 16.00 | 1.000 | 0.9900 | 50% | 3% |"
    assert rows[3].endswith("| -1.00 | 1.000 | 0.9900 |  |  |") and rows[4].endswith("| 1.00 | -0.100 | 0.9900 |  |  |")


def test_tables(result, systems):
    text = scaling.markdown(result)
    assert text.count("\n## ") == text.count("| R² |") == 5
    assert text.count("**") == 2 * 2 * sum(len(measured["values"]) for measured in result["axes"])
    heads = "ms a sentence | source pass | length | target pass | overhead |"
    assert f"| Models | source tokens | {heads}" in text and f"| Models | sentences | ms a batch | {heads}" in text
    fixed = "The same everywhere: 14 source tokens, 14 target tokens"
    assert f"{fixed}, 1 pass, single-pass." in text
    assert f"## Iterations of mask-predict\n\n{fixed}, 1 sentence." in text
    assert all(f"{name} (0.5 M parameters, fp32, PyTorchEngine)" in text for name in systems)
    for actual in result["axes"]:
        for model in actual["models"].values():
            for point in model["points"]:
                assert list(point["shares"]) == PARTS and sum(point["shares"].values()) == pytest.approx(1)


def test_script(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    out = tmp_path / "result.json"
    given = "--source 4 6 --target --batch --iterations 1 2 --repeats 1 --threads 1 --accelerate none"
    given = ["benchmark_scaling.py", "--arguments", MIST, *given.split(), "--out", out]
    assert run_script(monkeypatch, *given) is None
    result = json.loads(out.read_text())
    assert [actual["axis"] for actual in result["axes"]] == ["source", "iterations", "iterations"]
    assert result["threads"] == 1 and "benchmark_scaling.py" in result["command"]
    assert out.with_suffix(".md").read_text() in capsys.readouterr().out
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")  # the other panels stay empty
    assert run_script(monkeypatch, *given, "--source", "4").startswith("error: source has the values [4], expected two")
