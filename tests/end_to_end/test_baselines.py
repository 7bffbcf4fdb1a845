"""examples/baselines/run.sh: systems of all kinds trained, scored and timed side by side."""

import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from mist_fairseq.files.torch_files import load_torch_file
from tests.end_to_end.conftest import ROOT
from tests.end_to_end.test_recipes import shell
from tests.helpers import WORDS

SMALL = ["--encoder-embed-dim", 32, "--encoder-ffn-embed-dim", 64, "--encoder-attention-heads", 2]
FAIRSEQ = ["--decoder-embed-dim", 32, "--decoder-ffn-embed-dim", 64, "--decoder-attention-heads", 2]
SIZES = {
    "transformer-12-1": FAIRSEQ,
    "levt": ["--encoder-layers", 1, "--decoder-layers", 1, *FAIRSEQ],
    "mist": ["--encoder-layers", 1, "--max-positions", 120, "--max-source-positions", 60],
}
TRAINING = ["--max-update", 40, "--warmup-updates", 1, "--lr", 0.01, "--batch-size", 8, "--cpu"]


def baselines(*arguments, **how) -> str:
    return shell("bash", ROOT / "examples/baselines/run.sh", *arguments, **how)


def write_text(folder: Path, test=10) -> Path:
    folder.mkdir()
    for split, size in (("train", 30), ("valid", 6), ("test", test)):
        words = [[WORDS[i * k % len(WORDS)] for k in (1, 3, 5, 7)] for i in range(size)]
        (folder / f"{split}.src").write_text("".join(f"What is {' '.join(row)} {i}?\n" for i, row in enumerate(words)))
        (folder / f"{split}.tgt").write_text("what is best?\n" * size)  # learned in no time
    return folder


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> list:
    """Options under which a system of each group is trained and has generated."""
    folder = tmp_path_factory.mktemp("baselines")
    options = ["--data", write_text(folder / "data"), "--out", folder / "run"]

    def all_stages(system):
        return baselines("--system", system, *options, *SMALL, *SIZES[system], *TRAINING)

    first, *others = SIZES
    with ThreadPoolExecutor(2) as pool:  # the first makes the vocabulary and the binarized data of all
        for printed in [all_stages(first), *pool.map(all_stages, others)]:
            assert re.search(r"Generate test with beam=\d.*BLEU", printed), printed
    return options


def test_one_table_of_scores(given):
    printed = baselines("score", *given, "--metrics", "bleu-1", "rouge-l")
    out = given[-1]
    systems = json.loads((out / "scores.json").read_text())["systems"]
    assert set(systems) == {*SIZES, "copy of the source"}
    assert all(set(one["values"]) == {"bleu-1", "rouge-l"} for one in systems.values())
    header, row = (re.search(rf"^{start} +\S.*$", printed, re.MULTILINE)[0] for start in ("", "bleu-1"))
    assert set(re.split("  +", header.strip())) == set(systems) and len(re.findall(r"[\d.]+ ± ", row)) == len(systems)
    # One vocabulary for all.
    assert len(list(out.glob("data-bin-*"))) == 1 and (out / "sp.model").exists()


def test_a_teachers_answers_become_targets(given, tmp_path):
    data, run = given[1], given[-1]
    teacher = run / "transformer-12-1"
    paths = ["--binarized", (teacher / "data-bin").read_text().strip(), "--out", tmp_path / "distilled"]
    paths += ["--path", teacher / "checkpoints/checkpoint_best.pt"]
    options = ["--task", "mist_translation", "--beam", 2, "--nbest", 2, "--batch-size", 8, "--cpu"]
    shell("python", ROOT / "scripts/distill.py", "--data", data, "--originals", *paths, *options)
    made, own = (
        {name: (folder / name).read_text().splitlines() for name in ("train.src", "train.tgt", "test.tgt")}
        for folder in (tmp_path / "distilled", data)
    )
    assert made["test.tgt"] == own["test.tgt"] and made["train.tgt"][:30] == own["train.tgt"]
    assert set(made["train.src"]) == set(own["train.src"]) and "what is best?" in made["train.tgt"][30:]
    assert 30 < len(made["train.tgt"]) == len(made["train.src"]) <= 90


def test_latency_goes_on_without_the_systems_that_fail(given, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(given[-1], out)
    for name in ("damaged", "other words"):
        shutil.copytree(out / "levt", out / name)
    shutil.copytree(out / "transformer-12-1", out / "transformer")
    (out / "transformer/system").write_text("transformer\n")
    (out / "damaged/checkpoints/checkpoint_best.pt").write_bytes(b"no checkpoint")
    checkpoint = load_torch_file(out / "other words/checkpoints/checkpoint_best.pt")
    checkpoint["task_state"]["dictionary"] = "another"
    torch.save(checkpoint, out / "other words/checkpoints/checkpoint_best.pt")
    arguments = [*given[:2], "--out", out, "--sentences", 2, "--no-memory"]
    printed = baselines("latency", *arguments, fails=True)
    result = json.loads((out / "latency.json").read_text())
    errors = {name: content["error"] for name, content in result["described"].items() if "error" in content}
    errors = {name: error for name, error in errors.items() if "CTranslate2 is not installed" not in error}
    assert set(errors) == {"damaged", "other words"}, errors
    assert "another vocabulary than the checkpoint" in errors["other words"] and "Traceback" not in printed
    rows = {"transformer, greedy", "mist × 3", "mist, bf16", "mist, ONNX int8", "mist, Mask-Predict × 3"}
    rows |= {*SIZES, "transformer", "transformer-12-1, greedy"}
    assert rows < set(result["described"]) and next(iter(result["described"])) == "transformer"
    for run, size in zip(result["runs"], (1, 16), strict=True):
        assert (run["batch_size"], run["sentences"]) == (size, 2)
        assert rows < set(run["systems"]) and not set(run["systems"]) & set(errors)
    timed = result["runs"][0]["systems"]
    engines = {"transformer, Hugging Face generate", "transformer, CTranslate2 fp32, greedy"}
    online = "transformer-12-1, CTranslate2 int8, greedy"
    assert engines | {online, "transformer-12-1, CTranslate2 int8"} < set(result["described"])
    deep = load_torch_file(out / "transformer-12-1/checkpoints/checkpoint_best.pt")["cfg"]["model"]
    assert (deep.encoder_layers, deep.decoder_layers) == (12, 1)
    assert online not in timed or set(timed["mist"]["over"]) == {online}
    assert {result["described"][name]["group"] for name in timed} == {"AR", "Semi-NAR", "NAR"}
    assert timed["mist"]["passes_per_sentence"] == 1 < timed["levt"]["passes_per_sentence"]
    assert set(result["scores"]) == {*timed, "copy of the source"} and "source pass" in result["parts"]["mist"]
    table = (out / "latency.md").read_text()
    assert all(f"| {name} |" in table for name in rows | set(errors))
    assert len(re.findall(r"\| failed \|$", table, re.MULTILINE)) == 2
    assert f"- other words: {errors['other words']}" in table and (out / "latency.png").stat().st_size > 1000


def test_what_is_wrong_is_said(given, tmp_path):
    data = given[:2]
    assert "--data is missing" in baselines("--system", "mist", fails=True)
    for wrong in (["--system", "bert"], []):
        assert "expected one of those that --help lists" in baselines("train", *wrong, *data, fails=True)
    assert "expected numbers from 1" in baselines("train", "--max-update=5e4", *data, fails=True)
    empty = [*data, "--out", tmp_path / "run"]
    for stage, before in (("train", "binarize"), ("generate", "train")):
        assert f"run the stage {before} first" in baselines(stage, "--system", "mist", *empty, fails=True)
    assert "run the stage generate first" in baselines("score", *empty, fails=True)
    assert "run the stage train first" in baselines("latency", *empty, fails=True)
    copy = tmp_path / "data"
    shutil.copytree(data[1], copy)
    (copy / "test.src").write_text((copy / "test.src").read_text().replace("guitar", "piano"))
    message = baselines("generate", "--system", "levt", "--data", copy, "--out", given[-1], fails=True)
    assert "run the stages binarize and train again" in message
    with (copy / "valid.tgt").open("a") as file:
        file.write("one more\n")
    message = baselines("--system", "levt", "--data", copy, "--out", tmp_path / "run", fails=True)
    assert "valid.src has 6 lines and valid.tgt has 7" in message
