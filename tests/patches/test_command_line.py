"""What is typed for another task than the data's."""

import pytest
from fairseq import options
from fairseq.data import Dictionary
from fairseq.tasks.translation import TranslationTask

import mist_fairseq.tasks  # noqa: F401
from tests.configurations import configuration
from tests.helpers import tiny_dictionary


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--task", "mist"], "no --arch is given: --task mist takes mist, mist_base, mist_small, mist_tiny, nat_mass"),
        ([], "--task translation takes transformer, for one; data of this plugin need --task mist, or for the base"),
        (["--task", "mist_translation"], "--task mist_translation takes transformer"),
        (["--arch", "mist_base"], "mist_base does not go with --task translation, fairseq's default: add --task mist"),
        (["--arch", "nat_mass", "--task", "mist_translation"], "with --task mist_translation: add --task mist"),
        (
            ["--arch", "mist_base", "--task", "mist", "--lr-scheduler", "polynomial_decay"],
            "--lr-scheduler polynomial_decay needs --total-num-update, as a rule that of --max-update",
        ),
    ],
)
def test_training(words, message):
    with pytest.raises(ValueError, match=message):
        configuration("DATA", *words)


def test_validation_without_a_task():
    with pytest.raises(ValueError, match="no --task is given: add --task mist, or for the baselines"):
        options.parse_args_and_arch(options.get_validation_parser(), ["DATA", "--path", "checkpoint.pt"])


def test_our_data_in_a_task_of_fairseq(tmp_path):
    path = tmp_path / "dict.src.txt"
    tiny_dictionary().save(path)
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n")
    for name in ("dict.src.txt", "vocab.txt", "."):
        with pytest.raises(ValueError, match="no dictionary of fairseq's: .* need --task mist, or for the baselines"):
            TranslationTask.load_dictionary(str(tmp_path / name))
    with pytest.raises(FileNotFoundError):
        Dictionary.load(str(tmp_path / "nowhere"))


def test_dictionaries_of_fairseq(tmp_path):
    (tmp_path / "dict.txt").write_text("a 3\nb 2\n")
    assert Dictionary.load(str(tmp_path / "dict.txt")).symbols[-2:] == ["a", "b"]
