"""What scripts/gpu_check.sh does in Python; the script itself is tried by hand, without a GPU in tiny sizes."""

import pytest

from mist_fairseq.experiments import gpu_check
from mist_fairseq.experiments.benchmark.inputs import write_data
from mist_fairseq.generate.decoding import Decoding
from tests.experiments.benchmark.helpers import MIST, entry, load, save_checkpoint


def save(folder, *updates):
    folder.mkdir()
    for number in updates:
        (folder / f"checkpoint_1_{number}.pt").touch()
    (folder / "checkpoint_last.pt").touch()


def test_both_arms_are_decoded_at_equal_updates(tmp_path, monkeypatch):
    save(tmp_path / "mist", 1000, 2000, 3000, 4000, 5000)
    save(tmp_path / "no-mixing", *range(1000, 8000, 1000))
    decoded = []

    def generate(path, data, sentences, files, outputs):
        decoded.append((path.parent.name, int(path.stem.rpartition("_")[2])))
        for name in ("sources.txt", "references.txt", *(file.name for file in files)):
            (outputs / name).write_text("what is the best way to learn ?\n" * sentences)

    monkeypatch.setattr(gpu_check, "_generate", generate)
    gpu_check.decode(tmp_path, "data", 2)
    assert decoded[:2] == [("mist", 5000), ("no-mixing", 5000)] and decoded[-1] == ("no-mixing", 7000)
    assert len(decoded) == 7 and len({updates for _, updates in decoded[:-1]}) == 3
    table = (tmp_path / "decode.md").read_text()
    assert table.count("\n") == 2 + 3 * 7 and "| 5,000 | mist | single pass | 100.00 | 100.00 |" in table
    gpu_check.decode(tmp_path, "data", 2)
    assert len(decoded) == 7, "what is there is not decoded again"


def test_arms_without_an_equal_checkpoint_are_refused(tmp_path):
    save(tmp_path / "mist", 1000)
    save(tmp_path / "no-mixing", 2000)
    with pytest.raises(SystemExit, match=r"no checkpoint of equal updates: \[\[1000\], \[2000\]\]"):
        gpu_check.decode(tmp_path, "data", 2)


def test_outputs_are_those_of_the_decoding(tmp_path):
    write_data(tmp_path, {"source": {4: 1, 9: 1}, "target": {3: 1, 12: 1}}, 5)
    system = load(entry(str(tmp_path), MIST, options={"accelerate": "none"}), larger=5)
    save_checkpoint(system, tmp_path / "checkpoint_1_10.pt")
    gpu_check._generate(tmp_path / "checkpoint_1_10.pt", str(tmp_path), 5, {tmp_path / "out.txt": Decoding()}, tmp_path)
    sample = system.batch(range(5))
    answers = system.read(sample, system.decode(sample))
    assert (tmp_path / "out.txt").read_text().splitlines() == [system.text(answers[i][0]) for i in range(5)]
    assert len((tmp_path / "references.txt").read_text().splitlines()) == 5


def test_report_is_of_what_there_is(tmp_path):
    (tmp_path / "latency-xsum.md").write_text("| speed |\n")
    (tmp_path / "tests.log").write_text("tests/gpu/x.py::a PASSED\n===== 3 passed, 1 failed in 4.00s =====\n")
    text = gpu_check.report(tmp_path)
    assert "## Latency\n\n### latency-xsum\n\n| speed |" in text and "===== 3 passed, 1 failed in 4.00s =====" in text
    assert "PASSED" not in text and "## Training" not in text
    (tmp_path / "tests.log").write_text("tests/gpu/x.py::a PASSED\ntests/gpu/x.py::b FAILED\ntests/gpu/x.py::c ")
    assert "not finished: 1 PASSED, 1 FAILED, 0 SKIPPED" in gpu_check.report(tmp_path)
