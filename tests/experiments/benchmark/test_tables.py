import pytest

from mist_fairseq.experiments.benchmark.tables import markdown, plot


def timed(speed, passes=1.0):
    return {
        "milliseconds": {"mean": 100 / speed, "median": 90 / speed, "p90": 120 / speed, "p99": 150 / speed},
        "sentences_per_second": 10 * speed,
        "speed_up": speed,
        "speed_up_interval": [0.9 * speed, 1.1 * speed],
        "tokens_per_sentence": 11.25,
        "passes_per_sentence": passes,
    }


@pytest.fixture
def result():
    described = {
        "Transformer": {"group": "AR", "precision": "fp32", "parameters": 60_000_000},
        "ours | fast": {"group": "NAR", "precision": "bf16", "parameters": 110_000_000},
        "LevT": {"group": "Semi-NAR", "precision": "fp32", "parameters": 1_000_000},
        "broken": {"group": "NAR", "precision": "fp32", "error": "OSError: no such file"},
    }
    systems = {"Transformer": timed(1, 12), "ours | fast": timed(8), "LevT": timed(2, 3.25)}
    return {
        "device": "abacus",
        "threads": 2,
        "torch": "2",
        "forced_lengths": False,
        "described": described,
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
    detail = "| Transformer, fp32 | 100.0 | 90.0 | 120.0 | 150.0 | 10.0 | 11.2 | 12.0 | 60.0 M | 300 MiB |"
    assert detail in lines and r"| ours \| fast | 3.00 | 0.50 | 14.3% |" in lines
    assert "abacus, 2 threads" in lines[-1] and "as long as the systems make them" in lines[-1]


def test_a_system_that_failed_later_keeps_its_row(result):
    result["described"]["LevT"]["error"] = "RuntimeError: out of memory"
    lines = markdown(result).splitlines()
    assert "| Semi-NAR | LevT | 20.00 |  | 3.2 | 2.00× (1.80 - 2.20) |  |" in lines
    assert "- LevT: RuntimeError: out of memory" in lines


def test_one_batch_has_no_interval(result):
    result["runs"][1]["sentences"] = 16
    assert "| AR | Transformer | 30.12 | 25.00 | N | 1.00× (0.90 - 1.10) | 1.00× |" in markdown(result)


def test_median_over_the_floor(result):
    result["runs"][0]["floor"] = {"ours | fast": 5.0}
    result["rates"] = {"fp32": {"operations": 180e9, "bandwidth": 40e9}}
    text = markdown(result)
    assert "| ours \\| fast | 5.00 | 11.25 | 2.25 |" in text and "fp32 180 G/s; of copying, 40 GB/s" in text


def test_every_row_of_a_table_has_all_its_cells(result):
    table = None
    for line in markdown(result).splitlines():
        if not line.startswith("|"):
            table = None
            continue
        cells = line.replace(r"\|", "").count("|")
        table = table or cells
        assert cells == table


def test_plot(result, tmp_path):
    plot(result, "bleu-4", tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["plot.png"]
    with pytest.raises(ValueError, match="no scores of rouge-l"):
        plot(result, "rouge-l", tmp_path / "none.png")
