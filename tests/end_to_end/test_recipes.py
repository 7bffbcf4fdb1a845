"""The recipes' stages, and the scripts around a trained checkpoint."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from mist_fairseq.scoring.scores import AGAINST_SOURCE, NEEDS_ENCODER
from tests.end_to_end.conftest import ROOT
from tests.end_to_end.warm import environment
from tests.helpers import WORDS, tiny_vocab


def shell(*arguments, fails=False) -> str:
    """Run a script of the repository from another folder and give back what it printed."""
    options = {"env": {**environment(), "KEEP_VENV": "1"}, "cwd": "/", "timeout": 300}
    done = subprocess.run(list(map(str, arguments)), capture_output=True, text=True, **options)
    output = done.stdout + done.stderr
    assert (done.returncode != 0) == fails, output
    return output


def quora(*arguments, **how) -> str:
    return shell("bash", ROOT / "examples/quora/run.sh", *arguments, **how)


@pytest.mark.parametrize(("keep", "installs"), [("1", False), ("", True)])
def test_an_environment_is_kept_if_asked_for(tmp_path, keep, installs):
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text('#!/bin/sh\necho "$@" > "$VENV/called"\n')
    python.chmod(0o755)
    variables = {**os.environ, "VENV": str(tmp_path), "KEEP_VENV": keep}
    script = f"set -euo pipefail; source {ROOT}/scripts/setup_env.sh scores; command -v python; echo $PYTHON"
    done = subprocess.run(["bash", "-c", script], env=variables, check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-2:] == [str(python)] * 2
    called = tmp_path / "called"
    assert called.exists() == installs
    if installs:
        asked = called.read_text()
        assert asked.startswith("-m pip install") and asked.endswith(f"-e {ROOT}[train,scores]\n")


@pytest.mark.parametrize("installed", [True, False])
def test_tcmalloc_is_taken_where_it_is_installed(tmp_path, installed):
    line = "\tlibtcmalloc_minimal.so.4 (libc6,x86-64) => /lib/libc.so.6"  # missing ones only warn
    (tmp_path / "ldconfig").write_text(f"#!/bin/sh\necho '{line if installed else 'none'}'\n")
    (tmp_path / "ldconfig").chmod(0o755)
    variables = {**environment(), "KEEP_VENV": "1", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    for name in ("LD_PRELOAD", "MALLOC_MMAP_MAX_"):
        variables.pop(name, None)
    script = f"set -euo pipefail; source {ROOT}/scripts/setup_env.sh; echo ${{LD_PRELOAD:-}} ${{MALLOC_MMAP_MAX_:-}}"
    done = subprocess.run(["bash", "-c", script], env=variables, check=True, capture_output=True, text=True)
    assert done.stdout.split() == (["/lib/libc.so.6"] if installed else ["0"])


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    """Prepared, binarized with a SentencePiece model, a no-mixing and a static-mixing model trained."""
    folder = tmp_path_factory.mktemp("recipe")
    rows = ["id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate"]
    for i in range(120):
        words = [WORDS[(i * k) % len(WORDS)] for k in (1, 3, 5, 7)]
        rows.append(f"{i}\t{2 * i}\t{2 * i + 1}\tWhat is {' '.join(words)} {i}?\thow {' '.join(words[::-1])} {i}?\t1")
    (folder / "pairs.tsv").write_text("\n".join(rows) + "\n")
    sizes = ["--train-size", 80, "--valid-size", 16, "--test-size", 16]
    assert re.search(r"train\s+80", quora("prepare", folder / "pairs.tsv", *sizes, "--out", folder))
    model = ["--pretrained", "random", "--max-update", "4", "--arch", "mist_tiny", "--warmup-updates", "1", "--cpu"]
    for arm, *more in (("no-mixing",), ("static-mixing", "--recipe", "best", "--copy-head")):
        for stage in ("binarize", "train"):
            quora(stage, *model, "--out", folder, "--arm", arm, *more)
    return folder


def test_static_mixing_trains_on_originals_and_mixed_pairs(out):
    original, mixed = (
        (folder / "train.src").read_text().split("\n") for folder in (out / "data", out / "static-mixing/data")
    )
    assert len(original) == 81 and mixed[:80] == original[:80] and len(mixed) == 161
    assert all(line.endswith(f" [SEP] {source}") for line, source in zip(mixed[80:160], original))
    log = (out / "static-mixing/train.log").read_text()
    assert '"valid_bleu"' in log and '"valid_rouge_l"' in log
    assert set(re.findall(r'"valid_num_updates": "(\d+)"', log)) == {"4"}  # not at the end of an epoch
    assert ": 160 sents" in (out / "static-mixing/data-bin/preprocess.log").read_text()


def test_a_recipe_sets_what_the_command_line_does_not(out):
    for arm, rate in (("no-mixing", "3e-05"), ("static-mixing", "0.0005")):
        log = (out / arm / "train.log").read_text()
        assert f"'lr': [{rate}]" in log and "'warmup_updates': 1," in log
        assert f"'copy_head': {arm == 'static-mixing'}," in log
    assert "expected paper or best" in quora("train", "--recipe", "worst", fails=True)


def test_generate_and_score(out):
    arguments = ["--out", out, "--arm", "static-mixing", "--decodings", "single-pass", "mist:2", "--cpu"]
    quora("generate", *arguments)
    printed = quora("score", *arguments, "--label", "init=random", "data=question pairs")
    found = json.loads((out / "static-mixing/generated/decodings-test.json").read_text())
    assert (found["task"], found["arm"], found["init"], found["data"]) == (
        "quora",
        "static-mixing",
        "random",
        "question pairs",
    )
    single, iterated, copy = found["decodings"]
    assert (iterated["decoding"], iterated["iterations"]) == ("mist", 2)
    assert set(single["values"]) | set(single.get("failed", {})) == {
        *(f"bleu-{n}" for n in (1, 2, 3, 4)),
        "meteor15",
        "rouge-l",
        "sacrebleu",
        *(AGAINST_SOURCE.keys() - NEEDS_ENCODER),
    }
    assert (copy["decoding"], copy["iterations"], copy["values"]["copies"]) == ("copy of the source", 0, 100)
    tested = {name for name in single["values"] if not name.startswith("distinct")}
    assert set(iterated["p_values"]) == tested and "p_values" not in single
    assert f"{single['values']['rouge-l']:.2f}" in printed and len(re.findall("^output", printed, re.MULTILINE)) == 5
    # scripts/score.py finds the same from the same files.
    generated = out / "static-mixing/generated/generate-test-single-pass.txt"
    score = ["python", ROOT / "scripts/score.py", generated, "--protocol", "quora", "--json", out / "scores.json"]
    shell(
        *score,
        "--source",
        out / "data/test.src",
        "--reference",
        out / "data/test.tgt",
        "--metrics",
        "bleu-1",
        "rouge-l",
    )
    values = json.loads((out / "scores.json").read_text())["systems"]["generate-test-single-pass"]["values"]
    assert values == {name: single["values"][name] for name in ("bleu-1", "rouge-l")}


def own_data(*arguments, **how) -> str:
    return shell("bash", ROOT / "examples/own_data/run.sh", *arguments, **how)


def test_a_table_of_ones_own(tmp_path):
    table, data = tmp_path / "pairs.tsv", tmp_path / "data"

    def write(number: int):
        rows = [f"{WORDS[i % 9]} is it {i}\t{WORDS[i % 7]} {i}\tu{i % 10}\n" for i in range(number)]
        table.write_text("".join(["query\trewrite\tuser\n", *rows]))

    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("\n".join(tiny_vocab()) + "\n")
    columns = ["--source-field", "query", "--target-field=rewrite", "--valid", 5]
    given = ["--pretrained", "random", "--vocab", vocabulary, "--out", tmp_path, "--data", table, *columns]

    def lines() -> int:
        return sum(len((data / f"{split}.src").read_text().splitlines()) for split in ("train", "valid", "test"))

    write(100)
    assert re.search(r"valid +5\n", own_data("binarize", *given)) and lines() == 100
    assert (tmp_path / "data-bin/.done").exists()
    assert "kept" not in own_data("binarize", *given)  # as it is there
    assert re.search(r"valid +10\n", own_data("binarize", *given, "--group-field", "user"))
    write(80)
    assert "kept" in own_data("binarize", *given) and lines() == 80

    prepared = ["prepare", "--out", tmp_path, "--data", table, *columns, "--max-source", 4, "--overwrite"]
    assert "lengths" in own_data(*prepared)
    message = own_data("binarize", *given, fails=True)
    assert f"{data} is not empty" in message and "Traceback" not in message  # what was prepared by hand stays


def test_own_data_is_scored_without_java_and_perl(out):
    arguments = ["--out", out, "--arm", "no-mixing", "--decodings", "single-pass"]
    own_data("generate", *arguments, "--cpu")
    own_data("score", *arguments)
    found = json.loads((out / "no-mixing/generated/decodings-test.json").read_text())
    assert (found["task"], found["protocol"]) == ("own_data", "plain")
    (single,) = found["decodings"]
    assert set(single["values"]) == set("sacrebleu rouge-l ibleu source-bleu copies novel-1 distinct-1".split())


def test_latency_side_by_side(out):
    systems = {
        name: f"{out}/{arm}/checkpoints/checkpoint_best.pt"
        for name, arm in (("a", "no-mixing"), ("b", "static-mixing"))
    }
    given = [item for name, path in systems.items() for item in ("--system", f"{name}={path}")]
    given += ["--system", f"b x 3={systems['b']}:decoding=mist,decoding_iterations=3"]
    script = ["python", ROOT / "scripts/benchmark_latency.py", out / "data-bin", *given]
    printed = shell(*script, "--sentences", "6", "--batch-size", "2", "--no-memory", "--out", out / "latency.json")
    result = json.loads((out / "latency.json").read_text())
    (run,) = result["runs"]
    assert list(run["systems"]) == ["a", "b", "b x 3"] and run["sentences"] == 6 and "b x 3" in printed
    assert run["systems"]["a"]["speed_up"] == 1 and run["systems"]["a"]["passes_per_sentence"] == 1
    assert 1 < run["systems"]["b x 3"]["passes_per_sentence"] <= 3
    for found in run["systems"].values():
        low, high = found["speed_up_interval"]
        assert low <= found["speed_up"] <= high and found["milliseconds"]["median"] <= found["milliseconds"]["p90"]


def test_recipes_say_what_is_missing(out, tmp_path):
    assert "there is no" in quora("train", "--pretrained", "random", "--out", tmp_path, fails=True)
    assert "expected mist, no-mixing or static-mixing" in quora("train", "--arm", "mixed", fails=True)
    assert "--pretrained is missing" in quora("binarize", "--out", out, fails=True)
    assert "expected a divisor of the batch" in quora(
        "train", "--pretrained", "random", "--out", out, "--gpus", 3, "--arm", "no-mixing", fails=True
    )
    for wrong in (["--gpus", "0"], ["--max-update=5e4"]):
        assert "expected a number from 1" in quora("train", *wrong, fails=True)
    no_mixing = ["--out", out, "--arm", "no-mixing"]
    assert "'foo' is not NAME=VALUE" in quora("generate", *no_mixing, "--label", "foo", fails=True)
    with open(out / "data/valid.src") as file:
        lines = file.readlines()
    broken = tmp_path / "data"
    broken.mkdir()
    for split in ("train", "valid", "test"):
        (broken / f"{split}.src").write_text("".join(lines))
        (broken / f"{split}.tgt").write_text("".join(lines[:-1] if split == "valid" else lines))
    message = quora("--data", broken, "--out", tmp_path / "out", "--pretrained", "random", fails=True)
    assert "valid.src has 16 lines and valid.tgt has 15" in message
    assert not list((tmp_path / "out").glob("*/*"))


def test_changed_data_is_noticed(out, tmp_path):
    copy = tmp_path / "data"
    copy.mkdir()
    for path in (out / "data").glob("*.*"):
        (copy / path.name).write_text(path.read_text().replace("guitar", "piano"))
    arguments = ["--out", out, "--arm", "no-mixing", f"--data={copy}"]
    assert "run the stages binarize and train again" in quora("score", *arguments, fails=True)


def test_static_mixing_needs_a_model(out, tmp_path):
    script = ["python", ROOT / "scripts/make_static_mix.py", "--data", out / "data", "--out", tmp_path / "mixed"]
    message = shell(*script, "--binarized", out / "data-bin", "--path", tmp_path / "none.pt", fails=True)
    log = tmp_path / "mixed.generate.txt"
    assert "error: fairseq-generate failed" in message and str(log) in message and "none.pt" in log.read_text()
    assert "Traceback" not in message and not (tmp_path / "mixed").exists()
