"""The commands as a user types them."""

import re
import signal

import pytest
import sacrebleu
import torch

from mist_fairseq.evaluation import read_generation
from mist_fairseq.scoring.rouge155 import rouge155
from tests.end_to_end.conftest import LIMITS, SMALL, TRAINING, preprocess, run, start
from tests.helpers import bert_state, tiny_vocab, write_bert_folder
from tests.scoring.conftest import needs_perl


def lines(output: str, kind: str) -> dict[int, list[str]]:
    """The H-, D-, ... lines of each sentence."""
    found: dict[int, list[str]] = {}
    for number, rest in re.findall(rf"^{kind}-(\d+)\S*\t(.*)$", output, flags=re.MULTILINE):
        found.setdefault(int(number), []).append(rest)
    return found


def test_two_workers_give_the_same_binaries(text, bert_folder, data, tmp_path):
    preprocess(text, bert_folder / "vocab.txt", tmp_path / "bin", "--workers", "2")
    names = {path.name for path in data.iterdir()} - {"preprocess.log"}
    assert names == {path.name for path in (tmp_path / "bin").iterdir()} - {"preprocess.log"}
    for name in names:
        assert (data / name).read_bytes() == (tmp_path / "bin" / name).read_bytes(), name


def test_training_reports_what_it_does(trained):
    checkpoint, log = trained
    assert "train: 1 of 80 sources are cut to 50 tokens, 1 targets to 20" in log
    assert log.count("are cut to 50 tokens") == 2  # once for train, once for valid
    for name in ("nat_loss", "mist_loss", "length_loss", "revealed", "accuracy", "length_accuracy", "valid_bleu|bleu"):
        assert re.search(rf"\b({name})\b", log), name
    losses = [float(value) for value in re.findall(r"train_inner .*? loss=([\d.]+)", log)]
    assert len(losses) == 150 and losses[-1] < losses[0] * 0.6
    state = torch.load(checkpoint)  # safe loading: there is nothing in it but tensors and plain values
    assert state["cfg"]["model"]["encoder_embed_dim"] == 32 and state["cfg"]["model"]["max_positions"] == 80


@pytest.fixture(scope="module")
def generated(trained, data):
    return run("generate", data, "--path", trained[0], "--gen-subset", "test", "--scoring", "sacrebleu", "--cpu")


def test_the_checkpoint_stands_alone(generated, text):
    """Generated after the pre-trained folder had moved away; raw text in, readable text out."""
    result = read_generation(generated)
    raw = (text / "test.src").read_text().split("\n")
    for number, (source, printed) in enumerate(zip(raw, result.sources)):
        if number not in (2, 3, 4):
            assert printed == source.lower()
    assert len(result.outputs) == 20 and not any("[" in line or "##" in line for line in result.outputs)
    assert result.references[3] == "don't" and result.references[2] == " ".join(["why"] * 60)  # not cut
    score = float(re.search(r"^Generate test .*BLEU = ([\d.]+)", generated, flags=re.MULTILINE).group(1))
    expected = sacrebleu.corpus_bleu(result.outputs, [result.references]).score
    assert score == pytest.approx(expected, abs=0.01) and score > 10


@needs_perl
def test_rouge_as_fairseqs_scoring(trained, data):
    output = run("generate", data, "--path", trained[0], "--gen-subset", "test", "--scoring", "rouge", "--cpu")
    # In the order in which they are printed, on which ROUGE's bootstrap depends.
    outputs, references = (
        [text.lower() for text in re.findall(pattern, output, re.MULTILINE)]
        for pattern in (r"^D-\d+\t\S+\t(.*)$", r"^T-\d+\t(.*)$")
    )
    rouge = rouge155(outputs, [[text] for text in references])
    expected = ", ".join(f"{kind} = {own.score:.2f} ({own.low:.2f} - {own.high:.2f})" for kind, own in rouge.items())
    assert re.search(rf"^Generate test .*{re.escape(expected)}$", output, re.MULTILINE) and rouge["ROUGE-1"].score > 10


def test_trained_limits_win_over_the_command_line(trained, data, generated):
    output = run(
        "generate", data, "--path", trained[0], "--cpu", "--max-source-positions", "9", "--max-target-positions", "5"
    )
    assert lines(output, "H") == lines(generated, "H")


def test_validate(trained, data):
    options = ["--valid-subset", "valid", "--batch-size", "8", "--cpu", "--log-format", "simple"]
    output = run("validate", data, "--path", trained[0], *options)
    trained_loss = re.findall(r"valid on 'valid' subset \| loss ([\d.]+)", trained[1])
    found = re.search(r"valid.* loss ([\d.]+)", output).group(1)
    assert any(float(found) == pytest.approx(float(loss), abs=0.002) for loss in trained_loss)


@pytest.mark.parametrize("decoding", ["mist", "mask-predict"])
def test_iterative_decoding(trained, data, generated, decoding):
    output = run(
        *("generate", data, "--path", trained[0], "--cpu", "--batch-size", "7"),
        *("--decoding", decoding, "--decoding-iterations", "3", "--print-step", "--retain-iter-history"),
        *("--length-beam", "2", "--nbest", "2"),
    )
    hypotheses, steps, history = lines(output, "H"), lines(output, "I"), lines(output, "E")
    assert sorted(hypotheses) == list(range(20)) and all(len(best) == 2 for best in hypotheses.values())
    for number, best in hypotheses.items():
        scores = [float(line.split("\t")[0]) for line in best]
        assert scores[0] >= scores[1]
        counts = [int(step) for step in steps[number]]
        assert all(count <= 3 for count in counts) and sum(counts) == len(history[number])
        assert decoding == "mist" or counts == [3, 3]
    assert lines(output, "S") == lines(generated, "S")


def test_interactive_takes_raw_text(trained, data, text, generated):
    raw = (text / "test.src").read_text()
    output = run(
        *("interactive", data, "--path", trained[0], "--cpu", "--buffer-size", "50", "--batch-size", "4"), text=raw
    )
    assert {n: best[0].split("\t")[1] for n, best in lines(output, "D").items()} == {
        n: best[0].split("\t")[1] for n, best in lines(generated, "D").items()
    }


def test_sentencepiece_from_random_weights(text, sentencepiece_model, tmp_path):
    preprocess(text, sentencepiece_model, tmp_path / "bin")
    arguments = [tmp_path / "bin", "--arch", "mist_tiny", *SMALL, *LIMITS, *TRAINING]
    run("train", *arguments, "--precision", "bf16", "--max-update", "12", "--save-dir", tmp_path / "checkpoints")
    path = tmp_path / "checkpoints" / "checkpoint_last.pt"
    result = read_generation(run("generate", tmp_path / "bin", "--path", path, "--cpu", "--precision", "bf16"))
    assert result.sources[0] == (text / "test.src").read_text().split("\n")[0]  # case and all


def test_a_killed_training_resumes_to_the_same_parameters(data, tmp_path):
    """SIGKILL after a checkpoint; the limits of the resuming command line differ and do not matter."""

    def arguments(name, *more):
        saving = ["--save-interval-updates", "9", "--no-epoch-checkpoints", "--save-dir", tmp_path / name]
        common = [data, "--arch", "mist_tiny", *SMALL, *TRAINING, "--max-update", "25", "--disable-validation"]
        return [*common, *saving, *more]

    run("train", *arguments("whole", *LIMITS))
    process = start("train", *arguments("killed", *LIMITS))
    for line in process.stdout:
        if "num_updates=15" in line:
            process.send_signal(signal.SIGKILL)
            break
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    log = run("train", *arguments("killed", "--max-source-positions", "40", "--max-target-positions", "30"))
    assert 9 <= int(re.search(r"Loaded checkpoint .* @ (\d+) updates", log).group(1)) <= 15
    assert "trained with --max-source-positions 50 --max-target-positions 20" in log
    whole, resumed = (torch.load(tmp_path / name / "checkpoint_last.pt")["model"] for name in ("whole", "killed"))
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name


def test_bad_input_is_refused_in_one_line(text, data, trained, bert_folder, sentencepiece_model, tmp_path):
    def last_line(command, *arguments):
        return run(command, *arguments, fails=True).strip().split("\n")[-1]

    splits = ["--source-lang", "src", "--target-lang", "tgt", "--trainpref", text / "train"]
    assert "--joined-dictionary --srcdict FILE" in last_line("preprocess", *splits, "--destdir", tmp_path / "bin")

    assert "invalid choice: 'beam'" in last_line("generate", data, "--path", trained[0], "--decoding", "beam")
    assert "--sampling does not work" in last_line(
        "generate", data, "--path", trained[0], "--cpu", "--sampling", "--beam", "1"
    )

    other = write_bert_folder(tmp_path / "other", bert_state(len(tiny_vocab())), vocab=[*tiny_vocab()[:-1], "other"])
    arch = ["--arch", "mist_base", *TRAINING, "--max-update", "1", "--save-dir", tmp_path / "checkpoints"]
    assert "another vocabulary" in last_line("train", data, *arch, *LIMITS, "--pretrained", other)
    preprocess(text, other / "vocab.txt", tmp_path / "other-bin")
    message = last_line("generate", tmp_path / "other-bin", "--path", trained[0], "--cpu")
    assert "another vocabulary than the checkpoint was trained with" in message

    too_long = ["--max-source-positions", "70", "--max-target-positions", "20"]
    assert "= 90 exceed the model's 80 positions" in last_line(
        "train", data, *arch, *too_long, "--pretrained", bert_folder
    )
    assert not (tmp_path / "checkpoints").exists() or not list((tmp_path / "checkpoints").iterdir())
