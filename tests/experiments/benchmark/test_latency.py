import itertools

import numpy as np
import pytest

from mist_fairseq.engines.cuda_graph import CudaGraphEngine
from mist_fairseq.experiments.benchmark import latency, measuring
from mist_fairseq.experiments.benchmark.floor import COPIED, Rates, operations, products
from mist_fairseq.experiments.benchmark.inputs import write_data
from mist_fairseq.experiments.benchmark.latency import Benchmark, markdown, plot, summary
from tests.experiments.benchmark.conftest import SENTENCES
from tests.experiments.benchmark.helpers import MIST, TRANSFORMER, entry, watch


@pytest.fixture
def benchmark(data):
    return Benchmark([entry(data, MIST, name) for name in "ab"])


@pytest.mark.parametrize("mode, turns", [("warm", "a001 b001 b22 a22"), ("cold", "a0 b0 b1 a1 a2 b2")])
def test_all_systems_get_all_sentences_in_turn(benchmark, monkeypatch, mode, turns):
    """Warm, in stretches of two batches here, of which the first is answered once more."""
    monkeypatch.setattr(latency, "_STRETCH", 2)
    seen = []
    for name, system in benchmark.systems.items():
        watch(monkeypatch, system, "decode", lambda batch, name=name: seen.append((name, sorted(batch["id"].tolist()))))
    chosen = benchmark.choose(100)
    assert sorted(chosen) == list(range(SENTENCES))
    result = benchmark.time(chosen, 5, mode)
    batches = [sorted(chosen[at : at + 5].tolist()) for at in (0, 5, 10)]
    assert seen == [(name, batches[int(number)]) for name, *numbers in turns.split() for number in numbers]
    for actual in result["systems"].values():
        assert actual["passes_per_sentence"] == 1 and actual["passes"] == {1: SENTENCES}
        assert actual["cpu_milliseconds"] > 0
    assert result["mode"] == mode and result["sentences"] == SENTENCES and result["batch_size"] == 5


def test_no_graph_is_captured_while_the_clock_runs(data, monkeypatch):
    """Whatever the sizes are, and though larger ones replace all before."""
    benchmark = Benchmark([entry(data, MIST, "a"), entry(data, MIST, "b", options={"decoding": "mist"})])
    monkeypatch.setattr("torch.cuda.graph_pool_handle", object)
    running, captured = [], []

    def capture(self, function):
        captured.append(bool(running))
        return lambda: None, function()

    monkeypatch.setattr(CudaGraphEngine, "_capture", capture)
    for system in benchmark.systems.values():
        model = system.model
        model.engine = CudaGraphEngine(model.encoder, model.dictionary.tokenizer.special, "fp32")
    monkeypatch.setattr(measuring, "milliseconds", lambda work, *given: running.append(1) or (1.0, work(*given)))
    benchmark.time(benchmark.choose(100), batch_size=1)
    assert len(captured) > 4 and not any(captured) and running


def test_chosen_sentences_are_spread_and_sorted(benchmark):
    chosen = benchmark.choose(4)
    assert sorted(chosen) == [0, 3, 7, 11]
    sizes = [benchmark.systems["a"].dataset.size(i)[0] for i in chosen]
    assert sizes == sorted(sizes)


def test_a_slower_system_is_slower(benchmark, monkeypatch):
    benchmark.over, spent = ["b"], []
    monkeypatch.setattr(measuring.time, "perf_counter", lambda: sum(spent))
    for system, seconds in zip(benchmark.systems.values(), (0.01, 0.06)):
        watch(monkeypatch, system, "decode", lambda _, seconds=seconds: spent.append(seconds))
    actual = benchmark.time(benchmark.choose(6), 1)["systems"]
    assert actual["a"]["speed_up"] == 1 and actual["a"]["speed_up_interval"] == [1, 1]
    low, high = actual["b"]["speed_up_interval"]
    assert low <= actual["b"]["speed_up"] <= high < 1
    assert actual["b"]["milliseconds"]["mean"] == pytest.approx(60)
    assert actual["b"]["speed_up"] == pytest.approx(actual["a"]["milliseconds"]["mean"] / 60)
    assert actual["b"]["over"]["b"]["speed_up"] == 1
    assert actual["a"]["over"] == {"b": {"speed_up": pytest.approx(6), "speed_up_interval": pytest.approx([6, 6])}}


@pytest.mark.parametrize("mode, milliseconds", [("warm", 10), ("cold", 1000)])
def test_a_system_that_is_cold_after_another(benchmark, monkeypatch, mode, milliseconds):
    spent, turns = [], []
    monkeypatch.setattr(measuring.time, "perf_counter", lambda: sum(spent))
    for name, system in benchmark.systems.items():

        def note(_, name=name):
            spent.append(0.01 if turns[-1:] == [name] else 1.0)
            turns.append(name)

        watch(monkeypatch, system, "decode", note)
    monkeypatch.setattr(latency, "sleep", lambda _: turns.append("other"))  # so are rivals of one's own name
    for actual in benchmark.time(benchmark.choose(6), 1, mode)["systems"].values():
        assert actual["milliseconds"]["p90"] == pytest.approx(milliseconds)


def test_summary_weighs_the_last_smaller_batch():
    told = summary(np.array([40.0, 40.0, 30.0]), np.array([4, 4, 1]), np.array([80.0, 80.0, 60.0]))
    assert told["milliseconds"]["mean"] == pytest.approx(110 / 9)
    assert told["milliseconds"]["median"] == 10 and told["milliseconds"]["p99"] > 28
    assert told["sentences_per_second"] == pytest.approx(9000 / 110)
    assert told["speed_up"] == 2 and told["speed_up_interval"] == [2, 2]
    assert "speed_up" not in summary(np.array([1.0]), np.array([1]), None)


def test_systems_that_fail_do_not_stop_the_others(data, tmp_path, monkeypatch):
    fewer, others = tmp_path / "fewer", tmp_path / "others"
    for folder, sentences in ((fewer, 5), (others, SENTENCES)):
        folder.mkdir()
        write_data(folder, {"source": {30: 1}, "target": {5: 1}}, sentences)
    systems = [
        entry(data, MIST, "a"),
        entry(data, "--task mist --arch none", "no such model"),
        entry(str(fewer), MIST, "fewer sentences"),
        entry(str(others), MIST, "other sentences"),
        entry(data, MIST, "fails later"),
        entry(data, MIST, "leaves sentences out"),
    ]
    benchmark = Benchmark(systems)
    assert list(benchmark.systems) == ["a", "fails later", "leaves sentences out"]
    decode = benchmark.systems["leaves sentences out"].decode
    monkeypatch.setattr(benchmark.systems["leaves sentences out"], "decode", lambda sample: decode(sample)[1:])
    result = benchmark.time(benchmark.choose(6), 2)
    assert list(result["systems"]) == ["a", "fails later"]
    monkeypatch.setattr(benchmark.systems["fails later"], "decode", lambda sample: 1 / 0)
    assert list(benchmark.time(benchmark.choose(6), 2)["systems"]) == ["a"]
    assert list(benchmark.parts(benchmark.choose(2), 1)) == ["a"]
    told = benchmark.describe()
    described = told["described"]
    assert described["fails later"]["parameters"] == described["a"]["parameters"]
    assert "- fails later: ZeroDivisionError: division by zero" in markdown(told | {"runs": [result]})
    errors = {name: content["error"] for name, content in described.items() if "error" in content}
    assert "does not take the arguments" in errors["no such model"]
    assert errors["fewer sentences"].startswith(f"its data has 5 sentences, that of a {SENTENCES}")
    assert errors["other sentences"] == "its data has other sentences than that of a"
    assert errors["fails later"] == "ZeroDivisionError: division by zero"
    assert errors["leaves sentences out"] == "1 outputs for 2 sentences"
    assert set(errors) == {one.name for one in systems} - {"a"}


def test_what_needs_a_gpu_is_not_run_without(data):
    needs = entry(data, MIST, "graphs", {"accelerate": "cudagraph"})
    benchmark = Benchmark([entry(data, MIST, "a"), needs])
    result = benchmark.describe() | {"runs": [benchmark.time(benchmark.choose(2), 1)]}
    assert list(benchmark.systems) == ["a"] and "error" not in result["described"]["graphs"]
    text = markdown(result)
    assert "| NAR | graphs |  | not run: no GPU |" in text and "Failed" not in text


def test_what_needs_a_cpu_is_not_run_on_a_gpu(data, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    benchmark = Benchmark([entry(data, MIST, "exported", engine="onnx")])
    assert not benchmark.systems and not benchmark.errors and benchmark.not_run == {"exported": "on CPUs only"}


def test_first_system_fails(data):
    wrong = entry(data, "--task mist --arch none", "a")
    benchmark = Benchmark([wrong, entry(data, MIST, "b")])
    assert "speed_up" not in benchmark.time(benchmark.choose(2), 1)["systems"]["b"]
    with pytest.raises(ValueError, match="no system could be loaded.*does not take"):
        Benchmark([wrong]).choose(3)


def test_parts_make_the_whole(data, monkeypatch):
    """By a clock that ticks whenever it is read, so that a part takes as long as it has calls."""
    readings = itertools.count()
    monkeypatch.setattr(measuring.time, "perf_counter", lambda: next(readings) / 1000)
    options = {"decoding": "mist", "decoding_iterations": 3}
    benchmark = Benchmark([entry(data, MIST, "single"), entry(data, MIST, "mist", options=options)], forced=True)
    engine = benchmark.systems["single"].model.engine
    encode, fill = engine.encode, engine.fill
    (single, mist) = benchmark.parts(benchmark.choose(6), 2).values()
    # Half a tick a sentence for each call, and for the whole those between.
    assert single == pytest.approx({"source pass": 0.5, "length": 0.5, "target pass": 0.5, "overhead": 2.0})
    assert mist == pytest.approx({"source pass": 1.5, "length": 0.5, "target pass": 1.5, "overhead": 4.0})
    assert (engine.encode, engine.fill) == (encode, fill), "the clocks are gone"


def test_floor_of_our_own_systems(data):
    mist = {"decoding": "mist", "decoding_iterations": 2}
    entries = [entry(data, MIST, "single"), entry(data, MIST, "mist", mist), entry(data, TRANSFORMER, "other")]
    benchmark = Benchmark(entries, forced=True)
    chosen = benchmark.choose(2)
    actual = benchmark.floor(chosen, 1, dict.fromkeys(["single", "mist"], Rates(1e9, 1e12)))
    system = benchmark.systems["single"]
    seconds = 0.0
    for i in chosen:
        source, target = system.dataset.size(int(i))
        seconds += operations(products(system.model.encoder, int(source), int(target))) / 1e9
    assert list(actual) == ["single", "mist"] and actual["mist"] > actual["single"]
    assert actual["single"] == pytest.approx(1000 * seconds / 2)


def test_scores_are_those_of_the_outputs(benchmark):
    system = benchmark.systems["a"]
    sample = system.batch(range(SENTENCES))
    answers = system.read(sample, system.decode(sample))
    reference, source = [system.text(answers[i][0]) for i in range(SENTENCES)], [f"s {i}" for i in range(SENTENCES)]
    actual = benchmark.scores(reference, source, "plain", ["bleu-1", "sacrebleu"])["a"]
    assert actual["values"]["bleu-1"] == pytest.approx(100) and actual["outputs"] == reference
    copied = benchmark.scores(reference, source, "quora", ["copies"])
    assert list(copied)[-1] == "copy of the source"
    assert copied["copy of the source"]["values"] == {"copies": 100}
    assert benchmark.scores(reference[1:], source, "plain") == {}
    assert "12 sentences" in benchmark.errors["a"] and "11 references" in benchmark.errors["b"]


def test_memory_is_measured_apart(data, warm_processes):
    """Weights that nothing else comes near to."""
    options = {"accelerate": "none"}  # an engine keeps weights of its own
    benchmark = Benchmark([entry(data, f"{MIST} --max-positions 3000000", "large", options)])
    actual = benchmark.memory(benchmark.choose(2), 1)["large"]
    if actual is None:
        pytest.skip("this system does not tell")
    assert 0.8 < actual / (4 * benchmark.systems["large"].parameters) < 1.5


# -- tables ------------------------------------------------------------------------------------------------------


def timed(speed, passes=1.0):
    return {
        "milliseconds": {"mean": 100 / speed, "median": 90 / speed, "p90": 120 / speed, "p99": 150 / speed},
        "cpu_milliseconds": 180 / speed,
        "sentences_per_second": 10 * speed,
        "speed_up": speed,
        "speed_up_interval": [0.9 * speed, 1.1 * speed],
        "tokens_per_sentence": 11.25,
        "passes_per_sentence": passes,
    }


@pytest.fixture
def result():
    groups = {"Transformer": "AR", "ours | fast": "NAR", "LevT": "Semi-NAR", "broken": "NAR"}
    described = {name: dict(group=group, precision="fp32", parameters=60_000_000) for name, group in groups.items()}
    described["broken"]["error"] = "OSError: no such file"
    systems = {"Transformer": timed(1, 12), "ours | fast": timed(8), "LevT": timed(2, 3.25)}
    return dict(device="abacus", threads=2, torch="2", forced_lengths=False, described=described) | {
        "runs": [
            {"batch_size": 1, "sentences": 50, "systems": systems},
            {"batch_size": 16, "sentences": 50, "systems": {"Transformer": timed(1, 12), "ours | fast": timed(4)}},
        ],
        "scores": {"Transformer": {"values": {"bleu-4": 30.125, "meteor15": 25}}, "LevT": {"values": {"bleu-4": 20}}},
        "memory": {"Transformer": 300 * 2**20},
        "parts": {"ours | fast": {"source pass": 3.0, "overhead": 0.5}},
    }


def test_layout_of_the_paper(result):
    lines = markdown(result).splitlines()
    assert lines[0] == "|  | Models | BLEU-4 | METEOR | Iter. | Speed, batch 1 | Speed, batch 16 |"
    assert lines[2:6] == [
        "| AR | Transformer | 30.12 | 25.00 | N | 1.00× (0.90 - 1.10) | 1.00× (0.90 - 1.10) |",
        "| Semi-NAR | LevT | 20.00 |  | 3.2 | 2.00× (1.80 - 2.20) |  |",
        r"| NAR | ours \| fast |  |  | 1 | 8.00× (7.20 - 8.80) | 4.00× (3.60 - 4.40) |",
        "| NAR | broken |  |  |  | failed | failed |",
    ]
    assert "- broken: OSError: no such file" in lines
    detail = "| Transformer, fp32 | 100.0 | 90.0 | 120.0 | 150.0 | 180.0 | 10.0 | 11.2 | 12.0 | 60.0 M | 300 MiB |"
    assert detail in lines and r"| ours \| fast | 3.00 | 0.50 | 14.3% |" in lines
    assert "abacus, 2 threads" in lines[-1] and "as long as the systems make them" in lines[-1]


def test_speed_over_others_than_the_first(result):
    for run in result["runs"]:
        for one in run["systems"].values():
            one["over"] = {"LevT": timed(one["speed_up"] / 2)} if "LevT" in run["systems"] else {}
    lines = markdown(result).splitlines()
    assert lines[0].endswith("| Speed, batch 1 | Speed, batch 16 | Over LevT, batch 1 | Over LevT, batch 16 |")
    assert lines[4].endswith("| 8.00× (7.20 - 8.80) | 4.00× (3.60 - 4.40) | 4.00× (3.60 - 4.40) |  |")
    assert lines[5].endswith("| failed | failed | failed | failed |")


def test_scores_of_what_takes_no_time(result):
    result["scores"]["copy of the source"] = {"values": {"bleu-4": 32.6, "ibleu": 6.08}}
    lines = markdown(result).splitlines()
    assert lines[0].startswith("|  | Models | BLEU-4 | METEOR | iBLEU | Iter. |")
    assert lines[6] == "|  | copy of the source | 32.60 |  | 6.08 | 0 |  |  |"


def test_a_system_that_failed_later_keeps_its_row_and_one_batch_has_no_interval(result):
    result["described"]["LevT"]["error"] = "RuntimeError: out of memory"
    result["runs"][1]["sentences"] = 16
    lines = markdown(result).splitlines()
    assert "| Semi-NAR | LevT | 20.00 |  | 3.2 | 2.00× (1.80 - 2.20) |  |" in lines
    assert "- LevT: RuntimeError: out of memory" in lines
    assert "| AR | Transformer | 30.12 | 25.00 | N | 1.00× (0.90 - 1.10) | 1.00× |" in lines


def test_median_over_the_floor(result):
    result["runs"][0]["floor"] = {"ours | fast": 5.0}
    result["rates"] = {"warm": {"ours | fast": {"operations": 180e9, "bandwidth": 40e9}}}
    text = markdown(result)
    assert "| ours \\| fast | 5.00 | 11.25 | 2.25 |" in text and "| ours \\| fast | 180 | 40 |" in text


def test_rates_of_weights_that_a_cache_holds(data, monkeypatch):
    """Warm, bytes are read as fast as so many are; cold, as from memory."""
    read = []
    monkeypatch.setattr(latency, "machine_rates", lambda precision, device, size: read.append(size) or Rates(1, size))
    benchmark = Benchmark([entry(data, MIST, "a"), entry(data, MIST, "b"), entry(data, TRANSFORMER, "other")])
    size = 4 * benchmark.systems["a"].parameters
    assert benchmark.rates("warm") == {"a": Rates(1, size), "b": Rates(1, size)}
    assert benchmark.rates("cold") == {"a": Rates(1, COPIED), "b": Rates(1, COPIED)} and read == [size, COPIED]


def test_modes_have_their_columns(result):
    result["runs"][1]["mode"] = "cold"
    assert markdown(result).splitlines()[0].endswith("| Speed, batch 1 | Speed, batch 16, cold |")


def test_plot(result, tmp_path):
    result["scores"]["copy of the source"] = {"values": {"bleu-4": 32.6}}
    plot(result, "bleu-4", tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["plot.png"]
    with pytest.raises(ValueError, match="no scores of rouge-l"):
        plot(result, "rouge-l", tmp_path / "none.png")
