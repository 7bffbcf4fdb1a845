"""Awkward texts through every command and interface: one line in, one line out, and the i-th belongs to the i-th."""

import contextlib
import json
import re
import runpy
import subprocess
import sys
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import pytest

from mist_fairseq.checkpoints.loading import load_checkpoint
from mist_fairseq.data.dictionary import load_dictionary
from mist_fairseq.experiments.evaluation import read_generation, read_lines
from mist_fairseq.generate.decoding import DECODINGS
from mist_fairseq.hub.onnx_generator import OnnxGenerator
from mist_fairseq.release.onnx_folder import save_onnx
from mist_fairseq.scoring.scores import AGAINST_SOURCE, METRICS, NEEDS_ENCODER, score
from tests.awkward import LONGEST, NOT_UTF8, PIECES, as_file, is_one_line, long_texts, shown, texts
from tests.end_to_end.conftest import LIMITS, ROOT, SMALL, TRAINING, preprocess, run
from tests.end_to_end.warm import environment
from tests.helpers import tiny_dictionary, tiny_generator, tiny_released, tiny_vocab
from tests.serve.helpers import FakeGenerator, serving
from tests.text.helpers import write_bart_dictionary

KINDS = ["wordpiece", "sentencepiece", "byte-level-bpe"]
SIZES = {"train": 120, "valid": 30, "test": 150}
LONG = ("x" * LONGEST, ("\u4e2d\u0301 ' " * LONGEST)[:LONGEST])
DECODING = ["--decoding", "mist", "--decoding-iterations", "2"]


@pytest.fixture(scope="module")
def sides() -> dict[str, tuple[list[str], list[str]]]:
    """Sources and targets of each split."""
    found = {}
    for seed, (split, size) in enumerate(SIZES.items()):
        source, target = texts(size, seed), texts(size, seed + 10)[::-1]
        found[split] = ([*source, LONG[0], "how"], [*target, LONG[1], "why"])
    return found


@pytest.fixture(scope="module")
def raw(sides, tmp_path_factory) -> Path:
    r"""Folder of raw text, lines ending in \n and \r\n and the last one in nothing."""
    folder = tmp_path_factory.mktemp("awkward")
    for split, pair in sides.items():
        for side, lines in zip(("src", "tgt"), pair):
            (folder / f"{split}.{side}").write_bytes(as_file(lines))
    return folder


@pytest.fixture(scope="module")
def vocabularies(bert_folder, sentencepiece_model, tmp_path_factory) -> dict[str, Path]:
    bart = write_bart_dictionary(tmp_path_factory.mktemp("bart"))
    return dict(zip(KINDS, (bert_folder / "vocab.txt", sentencepiece_model, bart / "dict.txt")))


@dataclass
class Trained:
    """A checkpoint and the data that it comes from."""

    data: Path
    checkpoint: Path


@pytest.fixture(scope="module")
def trained(raw, vocabularies, tmp_path_factory) -> Trained:
    """By two workers and two updates, with a tokenizer that loses nothing of a text."""
    folder = tmp_path_factory.mktemp("trained")
    preprocess(raw, vocabularies["byte-level-bpe"], folder / "bin", "--workers", "2")
    run(
        "train",
        folder / "bin",
        *("--arch", "mist_tiny", *SMALL, *LIMITS, *TRAINING, "--max-update", "2", "--eval-bleu", "--eval-rouge"),
        *("--no-epoch-checkpoints", "--save-dir", folder),
    )
    return Trained(folder / "bin", folder / "checkpoint_last.pt")


# -- tokenizers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_tokenizers_take_every_text_and_give_lines(kind, vocabularies):
    dictionary = load_dictionary(str(vocabularies[kind]))
    for text in [*texts(500), *(long_texts() if kind == "wordpiece" else LONG)]:
        ids = dictionary.encode_line(text).tolist()
        assert ids[-1] == dictionary.eos() and min(ids) >= 0 and max(ids) < len(dictionary)
        line = dictionary.string(ids)
        assert is_one_line(line) and line == dictionary.tokenizer.decode(ids)
        if kind == "byte-level-bpe" and "[SEP]" not in text:
            assert line == shown(text.rstrip())
    halves = "a \ud83d b \ude00\ud83d\udc00c"
    assert (
        dictionary.encode_line(halves).tolist() == dictionary.encode_line("a \ufffd b " + "\ufffd" * 3 + "c").tolist()
    )
    for index in range(len(dictionary)):
        assert is_one_line(dictionary.string([index], include_eos=True))


def test_a_vocabulary_with_ends_of_lines_gives_lines():
    odd = ["a\u2028b", "\x0bc", "d\te", "f\x00g", "##\x85", "##h\ri", "\x1c"]
    dictionary = tiny_dictionary([*tiny_vocab(), *odd])
    line = dictionary.string([dictionary.index(symbol) for symbol in odd])
    assert is_one_line(line) and line.split() == ["a", "b", "c", "d", "e", "f", "g", "h", "i"]


# -- preprocess, train, generate, interactive, the Python interfaces, score ---------------------------------------


def test_counts_match_line_for_line(trained, sides):
    log = (trained.data / "preprocess.log").read_text(encoding="utf-8")
    for split, (source, target) in sides.items():
        for side, lines in (("src", source), ("tgt", target)):
            assert re.search(rf"\[{side}\] \S*/{split}\.{side}: {len(lines)} sents", log)


def script(name: str, monkeypatch, capsys, *arguments) -> tuple[object, str]:
    """Run one of the scripts here: with what it exits, and what it printed."""
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    try:
        runpy.run_path(str(ROOT / "scripts" / name), run_name="__main__")
    except SystemExit as end:
        return end.code, capsys.readouterr().out
    return None, capsys.readouterr().out


@pytest.fixture(scope="module")
def generated(trained, raw, tmp_path_factory) -> Path:
    """What fairseq-generate prints with ``DECODING``, under scripts/compare_decodings.py."""
    out = tmp_path_factory.mktemp("generated")
    with pytest.MonkeyPatch.context() as patch:
        arguments = [trained.data, "--path", trained.checkpoint, "--decodings", "mist:2", "--out", out, "--cpu"]
        arguments += [
            "--source",
            raw / "test.src",
            "--reference",
            raw / "test.tgt",
            "--metrics",
            "sacrebleu",
            "rouge-l",
        ]
        arguments += ["--protocol", "plain", "xsum", "--examples", "1000", "--batch-size", "16"]
        patch.setattr(sys, "argv", ["compare_decodings.py", *map(str, arguments)])
        patch.setattr(sys, "executable", environment()["WARM_PYTHON"])  # which runs fairseq-generate
        with (
            pytest.raises(SystemExit) as end,
            open(out / "printed.txt", "w", encoding="utf-8", newline="") as printed,
            contextlib.redirect_stdout(printed),
        ):
            runpy.run_path(str(ROOT / "scripts/compare_decodings.py"), run_name="__main__")
        assert not end.value.code
    return out / "generate-test-mist-2.txt"


def test_examples_do_nothing_to_a_terminal(generated, sides):
    content = (generated.parent / "printed.txt").read_bytes().decode()
    assert len(re.findall("^reference  ", content, re.MULTILINE)) == len(sides["test"][0])
    assert {char for char in content if unicodedata.category(char) in ("Cc", "Zl", "Zp")} == {"\n"}


def test_several_protocols_in_one_file(generated):
    found = json.loads((generated.parent / "decodings-test.json").read_text())
    (other,) = found["other_protocols"]
    assert (found["protocol"], other["protocol"]) == ("plain", "xsum")
    (ours,), (theirs, lead) = found["decodings"], other["decodings"]
    assert ours.keys() == theirs.keys() and (lead["decoding"], lead["iterations"]) == ("lead-1", 0)
    assert ours["values"].keys() == lead["values"].keys() == {"sacrebleu", "rouge-l"}
    assert ours["values"]["sacrebleu"] == theirs["values"]["sacrebleu"] != lead["values"]["sacrebleu"]
    assert ours["values"]["rouge-l"] != theirs["values"]["rouge-l"]  # other steps
    printed = (generated.parent / "printed.txt").read_text(encoding="utf-8")
    assert re.search(r"^plain:\n +mist:2\n(.|\n)*^xsum:\n +mist:2 +lead-1\n", printed, re.MULTILINE)


def test_generate_prints_a_line_of_each_kind_for_each_text(generated, sides):
    content = generated.read_bytes().decode()
    lines = content.split("\n")
    assert [line for line in lines if line] == [line for line in content.splitlines() if line] and "\0" not in content
    sources, targets = sides["test"]
    for kind, tabs in (("S", 1), ("T", 1), ("H", 2), ("D", 2), ("P", 1)):
        found = [line for line in lines if re.match(rf"{kind}-\d+\t", line)]
        assert sorted(int(line.split("\t")[0][2:]) for line in found) == list(range(len(sources)))
        assert {line.count("\t") for line in found} == {tabs}
    # The tokenizer loses nothing, so each line shows whose it is.
    generation = read_generation(content)
    for source, target, S, T in zip(sources, targets, generation.sources, generation.references):
        if "[SEP]" not in source:
            assert shown(source).startswith(S.rstrip("\ufffd")) and bool(S.strip()) == bool(shown(source).strip())
        if "[SEP]" not in target:
            assert shown(target.rstrip()) == T
    assert (
        subprocess.run(["grep", "-c", "^D-", generated], capture_output=True, text=True).stdout == f"{len(sources)}\n"
    )


def test_interactive_answers_line_by_line(trained, raw, generated, sides):
    """What fairseq-generate answers, from stdin; files are read by the same lines."""
    # A long line has more tokens than a batch, and one is cut.
    options = ["--cpu", *DECODING, "--buffer-size", "16", "--max-tokens", "40"]
    given = (raw / "test.src").read_bytes().decode()
    printed = run("interactive", trained.data, "--path", trained.checkpoint, *options, text=given)
    answers = re.findall(r"^D-(\d+)\t\S+\t(.*)$", printed, re.MULTILINE)
    outputs = read_generation(generated.read_text(encoding="utf-8")).outputs
    assert answers == [(str(i), output) for i, output in enumerate(outputs)]
    assert "have more than the 40 tokens of a batch" in printed
    assert " sources are longer than the model reads, and cut to 50 tokens (--max-source-positions)" in printed
    assert len(outputs) == len(sides["test"][0])


def test_generator_answers_as_fairseq_generate(trained, generated, sides):
    released, _, _ = load_checkpoint(str(trained.checkpoint), str(trained.data))
    given = sides["test"][0]
    answers = tiny_generator(released, accelerate="auto").generate(given, decoding="mist", iterations=2)
    expected = read_generation(generated.read_text(encoding="utf-8")).outputs
    different = [text for text, answer, output in zip(given, answers, expected, strict=True) if answer != output]
    # fairseq-generate has something to say to an empty text, too, and [SEP] in a text is a mark to it.
    assert all(not text.strip() or "[SEP]" in text for text in different)


@pytest.mark.parametrize("kind", KINDS)
def test_python_interfaces_answer_text_by_text(kind, vocabularies, tmp_path):
    released = tiny_released(load_dictionary(str(vocabularies[kind])))
    save_onnx(released, str(tmp_path / "onnx"))
    given = [*texts(150), *LONG]
    answers = []
    for generator in (
        tiny_generator(released, accelerate="auto"),
        OnnxGenerator.from_pretrained(tmp_path / "onnx", threads=1),
    ):
        for decoding in DECODINGS:
            outputs = generator.generate(given, decoding=decoding, return_scores=True)
            assert len(outputs) == len(given) and all(is_one_line(output.text) for output in outputs)
            assert all(is_one_line(text) for output in outputs for text in output.history)
            answers.append([output.text for output in outputs])
        assert generator.generate(["how \ud83d you", "\ud83d"]) == generator.generate(["how \ufffd you", "\ufffd"])
    half = len(DECODINGS)
    assert answers[:half] == answers[half:] and len(set(answers[0])) > 50


def test_server_answers_text_by_text():
    """And refuses one in which there is nothing to read."""
    fake = FakeGenerator()
    given = [text.replace("guitar", "best") for text in texts(200)]  # at guitar the fake fails
    given += ["how \ud83d you", ["how", "\ud83d\x00"]]
    empty = [text for text in given if fake.is_empty(fake.encode(text))]
    full = [text for text in given if text not in empty]
    with serving(fake, max_texts=len(full)) as running:
        status, answer = running.post({"texts": full})
        assert status == 200
        assert [ranked[0]["text"] for ranked in answer["outputs"]] == FakeGenerator().generate(full)
        assert empty and {running.post({"texts": ["how", text]})[0] for text in empty} == {422}


def test_scores_are_of_all_lines(generated, raw, tmp_path, monkeypatch, capsys):
    # Seconds of Java, a package that refuses long texts, and an encoder.
    metrics = METRICS.keys() - {"meteor15", *NEEDS_ENCODER, *(f"rouge-package-{kind}" for kind in "12l")}
    files = ["--source", raw / "test.src", "--reference", raw / "test.tgt", "--metrics", *metrics]
    same = tmp_path / "same"
    same.write_bytes((raw / "test.tgt").read_bytes())
    status, printed = script("score.py", monkeypatch, capsys, generated, f"same={same}", *files, "--protocol", "xsum")
    assert not status and re.search(rf"texts( +{SIZES['test'] + 2}){{3}}\n", printed)  # lead-1, too
    assert re.search(r"sacrebleu +[\d.]+ +100\.00 +[\d.]+\n", printed)
    for wrong in ("outputs", "source", "reference"):
        paths = dict.fromkeys(("outputs", "source", "reference"), same) | {wrong: tmp_path / f"{wrong}.txt"}
        paths[wrong].write_bytes(b"a\n" * 7 + NOT_UTF8["Latin-1"])
        status, _ = script(
            *("score.py", monkeypatch, capsys, paths["outputs"], "--source", paths["source"]),
            *("--reference", paths["reference"], "--metrics", "sacrebleu"),
        )
        assert f"{wrong}.txt, line 8 is not UTF-8: " in status
    same.write_bytes((raw / "test.tgt").read_bytes() + b"\n\n")
    assert "same has 153 lines but there are 152 references" in script("score.py", monkeypatch, capsys, same, *files)[0]


def test_what_takes_no_model_is_scored_alone(raw, tmp_path, monkeypatch, capsys):
    files = ["--source", raw / "test.src", "--reference", raw / "test.tgt", "--metrics", "sacrebleu"]
    assert not script("score.py", monkeypatch, capsys, *files, "--protocol", "xsum", "--json", tmp_path / "out.json")[0]
    content = json.loads((tmp_path / "out.json").read_text())
    assert list(content["systems"]) == ["lead-1"] and " --protocol xsum " in content["command"]
    assert script("score.py", monkeypatch, capsys, *files)[0] == "error: nothing to score: give an OUTPUT"


# Java, Perl, slow; in need of an encoder or sources
OTHERS = ("meteor", "rouge155", "rouge-package", *NEEDS_ENCODER, *AGAINST_SOURCE)


@pytest.mark.parametrize("metric", [metric for metric in METRICS if not metric.startswith(OTHERS)])
def test_a_text_is_scored_by_itself(metric):
    """An awkward one shifts no other: half of the corpus is all right, and counts as that."""
    plain = [f"how can I learn the guitar, number {i}?" for i in range(len(PIECES))]
    awkward = list(PIECES.values())
    systems = {"all": [*plain, *awkward], "half": [*plain, *awkward[1:], ""]}
    found = score(systems, [*plain, *awkward], metrics=[metric])
    assert not found["all"].failed and found["all"].values[metric] > 90
    assert found["all"].values[metric] > found["half"].values[metric] > 40


# -- refusals -----------------------------------------------------------------------------------------------------


def test_preprocess_names_both_files(vocabularies, tmp_path):
    for split in SIZES:
        for side in ("src", "tgt"):
            (tmp_path / f"{split}.{side}").write_bytes(b"how\ncan\nlearn\n" * 5)
    (tmp_path / "valid.src").write_bytes(b"how\rcan\n" * 14)
    printed = preprocess(tmp_path, vocabularies["wordpiece"], tmp_path / "bin", "--workers", "2", fails=True)
    assert re.search(r"/valid\.src has 14 lines and \S*/valid\.tgt has 15: line i of one must belong", printed)


COMMON = 'set -euo pipefail; source "$0/examples/common.sh"; data=$1 vocab=; check_data; echo fine'


def test_recipes_count_lines_as_python_does(raw, tmp_path):
    def check(fails=False):
        done = subprocess.run(["bash", "-c", COMMON, ROOT, tmp_path], capture_output=True, text=True)
        assert (done.returncode != 0) == fails
        return done.stdout + done.stderr

    for path in raw.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    assert check() == "fine\n"
    (tmp_path / "test.tgt").write_bytes(as_file(["\x00"] * len(read_lines(raw / "test.src"))))
    assert check() == "fine\n"
    (tmp_path / "test.tgt").write_bytes(b"a\rb\x00c\n" * 151)
    assert "test.src has 152 lines and test.tgt has 151: line i of one" in check(fails=True)
    for side in ("src", "tgt"):
        (tmp_path / f"valid.{side}").write_bytes(b"")
    assert "valid.src and valid.tgt are empty, expected at least one line" in check(fails=True)


def test_sentencepiece_is_not_trained_on_what_is_no_text(tmp_path, monkeypatch, capsys):
    good, bad, blank = tmp_path / "good", tmp_path / "bad", tmp_path / "blank"
    blank.write_bytes(b"\n \n\n")
    good.write_bytes(as_file([*texts(300), LONG[0]]))
    bad.write_bytes(b"a\n" + NOT_UTF8["half a character"])
    arguments = ["--vocab-size", "500", "--out", tmp_path / "sp.model"]
    status, _ = script("train_sentencepiece.py", monkeypatch, capsys, good, bad, *arguments)
    assert "bad, line 2 is not UTF-8: " in status and not (tmp_path / "sp.model").exists()
    status, _ = script("train_sentencepiece.py", monkeypatch, capsys, blank, *arguments)
    assert f"no model can be made of {blank}: " in status and not (tmp_path / "sp.model").exists()
    assert script("train_sentencepiece.py", monkeypatch, capsys, good, *arguments)[0] is None
    dictionary = load_dictionary(str(tmp_path / "sp.model"))
    assert all(is_one_line(dictionary.string(dictionary.encode_line(text))) for text in texts(300))
