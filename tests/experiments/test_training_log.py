"""Logs as fairseq writes them, read and drawn."""

import json
import sys

import pytest
from fairseq.logging import progress_bar
from fairseq.logging.meters import StopwatchMeter

from mist_fairseq.experiments.training_log import Curve, TrainingLog, draw, summary, table
from tests.experiments.preparation import run_script

STAMP = "2026-11-22 18:48:40 | INFO | "


def training(update, seconds):
    figures = {"epoch": 1, "update": 0.1, "loss": "21.5", "num_updates": str(update), "train_wall": str(seconds)}
    return f"{STAMP}train_inner | {json.dumps({**figures, 'wall': str(10 * seconds)})}"


def validation(update, bleu, **more):
    figures = {"epoch": 1, "valid_loss": "15.2", "valid_bleu": str(bleu), **more, "valid_num_updates": str(update)}
    return f"{STAMP}valid | {json.dumps(figures)}"


def loaded(update):
    return f"{STAMP}fairseq.trainer | Loaded checkpoint run/checkpoint_last.pt (epoch 1 @ {update} updates)"


def write(path, *lines) -> str:
    path.write_text("\n".join(["Please install tensorboardX", *lines]) + "\n")
    return str(path)


def curve(tmp_path, *lines, metric="bleu") -> Curve:
    return TrainingLog([write(tmp_path / "train.log", *lines)]).curve("run", metric)


def test_time_is_what_training_took_between_training_lines_in_proportion(tmp_path):
    lines = [training(20, 80), training(40, 40), validation(50, 1.5), training(60, 40), validation(60, 2)]
    actual = curve(tmp_path, *lines, validation(65, 1.0))
    assert actual.updates == [50, 60, 65] and actual.scores == [1.5, 2.0, 1.0] and actual.best == 1
    assert actual.seconds == [140, 160, 170]  # the last one goes on at the speed of the last interval


def test_lines_of_fairseqs_own_progress_bars_are_read(tmp_path, caplog):
    """Both formats, with the meters that fairseq logs, and a log file's bare and repeated lines."""
    watch = StopwatchMeter()
    watch.sum = 30.4
    for name in ("json", "simple"):
        caplog.clear()
        bar = progress_bar.progress_bar(range(40), log_format=name, log_interval=20, epoch=1, prefix=None)
        with caplog.at_level("INFO", logger="fairseq.logging.progress_bar"):
            for _ in bar:
                pass
            bar.log({"loss": 2.0, "num_updates": 20, "train_wall": watch}, tag="train_inner", step=20)
            bar.print({"loss": 2.0, "train_wall": watch, "num_updates": 20}, tag="train", step=20)
            bar = progress_bar.progress_bar(range(3), log_format=name, epoch=1, prefix="valid on 'valid' subset")
            bar.print({"loss": 1.0, "bleu": 7.25, "num_updates": 20}, tag="valid", step=20)
        lines = [record.getMessage() for record in caplog.records]
        actual = curve(tmp_path, *lines, *lines)
        assert (actual.updates, actual.seconds, actual.scores) == ([20], [30.0], [7.25]), name


@pytest.mark.parametrize("files", [1, 2])
@pytest.mark.parametrize("told", [True, False])
def test_a_resumed_training_replaces_what_it_repeats(tmp_path, files, told):
    """*told*: the log has fairseq's message, which a --log-file lacks."""
    before = [training(20, 10), training(40, 10), validation(40, 1), training(60, 10), validation(60, 9)]
    before += [training(80, 9), training(100, 5)[:-30]]  # cut off by the kill
    after = [loaded(40)] * told + [training(60, 20), validation(60, 3), training(80, 20), validation(80, 4)]
    parts = [before + after] if files == 1 else [before, after]
    paths = [write(tmp_path / f"{number}.log", *lines) for number, lines in enumerate(parts)]
    actual = TrainingLog(paths).curve("run", "bleu")
    assert (actual.updates, actual.seconds, actual.scores) == ([40, 60, 80], [20, 40, 60], [1, 3, 4])


def test_metrics_by_either_name_and_losses_the_other_way_round(tmp_path):
    lines = [training(20, 8), validation(20, 1, valid_loss="9.0"), validation(40, 2, valid_loss="8.0")]
    assert curve(tmp_path, *lines, metric="valid_bleu") == curve(tmp_path, *lines)
    actual = curve(tmp_path, *lines, validation(60, "nan"), metric="loss")
    assert actual.best == 1 and actual.scores == [9.0, 8.0, 15.2]
    assert curve(tmp_path, *lines, validation(60, "nan")).updates == [20, 40]


def test_errors_say_what_is_there(tmp_path):
    for lines, message in [
        ([training(20, 8), validation(20, 1)], r"run: validation has no 'rouge', but bleu, loss$"),
        ([validation(20, 1)], r"train\.log: no training lines.*--log-interval"),
        ([training(20, 8)], r"train\.log: no validation lines. Train with --log-format json"),
    ]:
        with pytest.raises(ValueError, match=message):
            curve(tmp_path, *lines, metric="rouge")
    with pytest.raises(ValueError, match="adds up to 0.*larger --log-interval"):
        summary([Curve("run", [20], [0.0], [1.0], 0)], "bleu")


CURVES = [
    Curve("no mixing", [100, 200, 300, 400], [100.0, 200.0, 300.0, 400.0], [5.0, 9.0, 12.0, 11.0], 2),
    Curve("MIST", [100, 200, 300, 400], [180.0, 360.0, 540.0, 720.0], [7.0, 12.0, 14.0, 15.5], 3),
    Curve("bad", [100, 200], [50.0, 100.0], [1.0, 2.0], 1),
]


def test_summary_tells_when_a_run_reaches_the_first_ones_best():
    rows = summary(CURVES, "bleu")
    assert rows[1]["best"] == {"update": 400, "score": 15.5, "seconds": 720.0}
    assert rows[1]["reaches"] == {
        "update": 200,
        "seconds": 360.0,
        "share_of_updates": pytest.approx(2 / 3),
        "share_of_seconds": pytest.approx(1.2),
    }
    assert rows[2]["reaches"] is None
    lines = table(rows, "bleu").split("\n")
    assert lines[0].endswith("reaches the best of 'no mixing'")
    assert "12.00        300    5.0 min   at update 300: 100% of the updates, 100% of the time" in lines[1]
    assert lines[2].endswith("at update 200: 67% of the updates, 120% of the time") and lines[3].endswith("never")
    assert summary(CURVES[1:], "loss")[1]["reaches"]["update"] == 100  # for a loss lower is better


def test_the_script_draws_and_writes_json(tmp_path, monkeypatch, capsys):
    log = write(tmp_path / "a.log", training(20, 8), validation(20, 1), training(40, 8), validation(40, 2))
    script = "plot_convergence.py", "--out", tmp_path / "out" / "c.png", "--json", tmp_path / "c.json"
    assert "No such file" in run_script(monkeypatch, *script, "--run", f"a = c={log}")
    assert run_script(monkeypatch, *script, "--run", f"a={log}", "--run", f"b={log},{log}") is None
    assert (tmp_path / "out" / "c.png").read_bytes().startswith(b"\x89PNG")
    actual = json.loads((tmp_path / "c.json").read_text())
    assert actual["metric"] == "bleu" and actual["runs"][1]["name"] == "b" and actual["runs"][0]["seconds"] == [8, 16]
    assert "best bleu" in capsys.readouterr().out


def test_a_missing_matplotlib_is_an_error_that_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'mist-fairseq\[plot\]'"):
        draw(CURVES, "bleu", str(tmp_path / "c.png"))
