"""fairseq's translation tasks over our dictionaries, in one process."""

from argparse import Namespace

import numpy as np
import pytest
import torch
from fairseq import tasks
from omegaconf import OmegaConf

from tests.configurations import configuration as made_configuration
from tests.helpers import tiny_dictionary, tiny_vocab
from tests.tasks.test_mist_task import LINES, corpus_bleu, validate, write_data
from tests.tasks.test_mist_task import make_task as make_mist_task

SIZES = dict(encoder_layers=1, encoder_embed_dim=32, encoder_ffn_embed_dim=64, encoder_attention_heads=2)
SIZES |= dict(decoder_layers=1, decoder_embed_dim=32, decoder_ffn_embed_dim=64, decoder_attention_heads=2)
MODELS = {
    "mist_translation": ["--arch", "transformer", "--criterion", "label_smoothed_cross_entropy"],
    "mist_translation_lev": [
        *("--arch", "nonautoregressive_transformer", "--criterion", "nat_loss", "--noise", "full_mask"),
    ],
}
LONG = [*LINES, ("how " * 100, "why"), ("[SEP] the guitar", "it"), ("the guitar [SEP]", "it")]


def configuration(folder, name, *more):
    """What fairseq-train makes of its command line."""
    sizes = [word for size in SIZES.items() for word in ("--" + size[0].replace("_", "-"), str(size[1]))]
    line = ["--task", name, *MODELS[name], *sizes, "--share-all-embeddings", "--batch-size", "4"]
    return made_configuration(folder, *line, *more)


def make_task(folder, name, *more):
    return tasks.setup_task(configuration(folder, name, *more).task)


@pytest.fixture(params=MODELS)
def name(request):
    return request.param


def test_sentences_are_those_of_the_mist_task(tmp_path, name):
    folder = write_data(tmp_path, LONG)
    dictionary = tiny_dictionary()
    starts = name == "mist_translation_lev"
    # One token less where [CLS] is not there to be counted.
    task = make_task(folder, name, "--max-source-positions", "10" if starts else "9")
    ours, theirs = task, make_mist_task(folder, max_source_positions=10)
    for one in (ours, theirs):
        one.load_dataset("valid")
    ours, theirs = ours.dataset("valid"), theirs.dataset("valid")
    assert len(ours) == len(theirs) == len(LONG)
    for i in range(len(LONG)):
        found, expected = ours[i], theirs[i]
        first = [] if starts else [dictionary.bos()]
        assert found["id"] == expected["id"] == i
        assert [*first, *found["source"].tolist()] == expected["source"].tolist()
        assert found["target"].tolist() == [dictionary.bos()] * starts + expected["target"].tolist()
        assert ours.size(i) == (len(found["source"]), len(found["target"]))
    how = dictionary.index("how")
    assert ours[4]["source"].tolist() == [dictionary.bos()] * starts + 8 * [how] + [dictionary.eos()]
    batch = ours.collater([ours[i] for i in (4, 1)])
    assert batch["id"].tolist() == [4, 1] and batch["net_input"]["src_lengths"].tolist() == [9 + starts, 1 + starts]


@pytest.mark.parametrize(
    ("architecture", "noise"),
    [
        ("cmlm_transformer", "random_mask"),
        ("nonautoregressive_transformer", "full_mask"),
        ("iterative_nonautoregressive_transformer", "full_mask"),
        ("insertion_transformer", "random_delete"),
    ],
)
def test_noise_is_one_that_the_model_learns_from(tmp_path, architecture, noise):
    """By default fairseq deletes words: CMLM ends in an IndexError."""
    words = ("--arch", architecture, "--noise", "random_delete")
    config = configuration(write_data(tmp_path), "mist_translation_lev", *words)
    task = tasks.setup_task(config.task)
    model, criterion = task.build_model(config.model), task.build_criterion(config.criterion)
    assert task.cfg.noise == noise
    task.load_dataset("valid")
    dataset = task.dataset("valid")
    loss, _, _ = task.valid_step(dataset.collater([dataset[i] for i in (0, 2, 3)]), model, criterion)
    assert torch.isfinite(loss)
    with pytest.raises(ValueError, match="--lenpen does not work with iterative refinement: see the --iter-decode"):
        task.build_generator([model], Namespace(lenpen=0.5))


@pytest.mark.parametrize("command", ["generate", "interactive"])
def test_output_is_in_the_order_of_the_input(tmp_path, name, command, monkeypatch):
    """fairseq sorts the sentences of a batch; fairseq-interactive does not tell the task which they are."""
    path = tmp_path / "output.txt"
    task = make_task(write_data(tmp_path / "data", LONG), name, "--output", str(path))
    monkeypatch.setattr("sys.argv", [f"fairseq-{command}"])
    task.load_dataset("valid")
    dataset, generator = task.dataset("valid"), Namespace(eos=task.target_dictionary.eos())

    def generate(models, sample, **how):  # the source
        rows = [row[row != task.source_dictionary.pad()] for row in sample["net_input"]["src_tokens"]]
        return [[{"tokens": row}] for row in rows]

    generator.generate = generate
    for batch in task.get_batch_iterator(dataset, max_sentences=4).next_epoch_itr(shuffle=False):
        sample = batch if command == "generate" else {"net_input": batch["net_input"]}
        task.inference_step(generator, [], sample)
    expected = [task.source_dictionary.string(dataset[i]["source"]) for i in range(len(LONG))]
    assert path.read_text().split("\n") == [*expected, ""]


def test_what_does_not_fit_is_refused(tmp_path, name):
    task = make_task(write_data(tmp_path / "more", extra_target=["one more"]), name)
    with pytest.raises(ValueError, match=r"src has 4 lines and .*tgt has 5"):
        task.load_dataset("valid")
    with pytest.raises(FileNotFoundError, match=r"no data at .*test\.src-tgt\.src: .*--testpref"):
        task.load_dataset("test")
    folder = write_data(tmp_path / "different")
    (folder / "dict.tgt.txt").write_text("\n".join([*tiny_vocab()[:-1], "another"]) + "\n")
    with pytest.raises(ValueError, match="differ. One is damaged, or .*--joined-dictionary"):
        make_task(folder, name)
    with pytest.raises(ValueError, match="--joined-dictionary --srcdict FILE"):
        tasks.TASK_REGISTRY[name].build_dictionary(["train.src"])


@pytest.mark.parametrize(
    "option",
    [
        *("batch_size", "batch_size_valid", "max_tokens", "max_tokens_valid", "required_batch_size_multiple"),
        "update_freq",
    ],
)
def test_batches_of_nothing_are_refused(tmp_path, option):
    """fairseq would take all data for one batch, and divides by the last."""
    cfg = configuration(write_data(tmp_path), "mist_translation")
    if option == "update_freq":
        cfg.optimization.update_freq = [2, 0]
    else:
        cfg.dataset[option] = 0
    with pytest.raises(ValueError, match=f"--{option.replace('_', '-')} is 0, expected at least 1"):
        tasks.setup_task(cfg.task)


def test_a_checkpoint_with_another_vocabulary_is_refused(tmp_path, name):
    task = make_task(write_data(tmp_path / "data"), name)
    saved = dict(task.state.state_dict)
    make_task(tmp_path / "data", name).load_state_dict(saved)
    other = tiny_dictionary([*tiny_vocab()[:-1], "another"])
    other = make_task(write_data(tmp_path / "other", dictionary=other), name)
    with pytest.raises(ValueError, match="other was binarized with another vocabulary than the checkpoint"):
        other.load_state_dict(saved)


def test_no_sentence_is_lost_in_batches(tmp_path, name):
    task = make_task(write_data(tmp_path, 5 * LINES), name)
    task.load_dataset("valid")
    dataset = task.dataset("valid")
    batches = dataset.batch_by_size(dataset.ordered_indices(), max_sentences=16, required_batch_size_multiple=8)
    assert [len(batch) for batch in batches] == [16, 4]
    assert sorted(np.concatenate(batches)) == list(range(20))
    iterator = task.get_batch_iterator(dataset, max_sentences=16, required_batch_size_multiple=8)
    found = [i for batch in iterator.next_epoch_itr(shuffle=False) for i in batch["id"].tolist()]
    assert sorted(found) == list(range(20))


@pytest.mark.parametrize(
    ("given", "arch", "other"),
    [
        ("mist_translation", "mist_tiny", "mist"),
        ("mist_translation_lev", "nat_mass", "mist"),
        ("mist_translation_lev", "transformer", "mist_translation"),
        ("mist_translation", "cmlm_transformer", "mist_translation_lev"),
    ],
)
def test_a_model_of_another_task_is_refused(tmp_path, given, arch, other):
    task = make_task(write_data(tmp_path), given)
    with pytest.raises(ValueError, match=f"{arch} is a model of --task {other}: give that, or another"):
        task.build_model(OmegaConf.create({"_name": arch}), from_checkpoint=True)


def test_validation_bleu_is_sacrebleu_on_text(tmp_path, name, monkeypatch):
    arguments = '{"iter_decode_max_iter": 0}' if name.endswith("lev") else '{"beam": 2, "max_len_b": 10}'
    config = configuration(write_data(tmp_path), name, "--eval-bleu", "--eval-bleu-args", arguments)
    task = tasks.setup_task(config.task)
    torch.manual_seed(3)
    model = task.build_model(config.model)
    criterion = task.build_criterion(config.criterion)
    logged, *texts = validate(task, model, criterion, [[0, 1], [2, 3]])
    assert any(texts[0]) and logged.get_smoothed_values()["bleu"] == pytest.approx(corpus_bleu(*texts), abs=0.01)
    # Random weights hardly find a word. Outputs with some in common with the references:
    written = {0: "what is the best", 1: "it is", 2: "why when", 3: "who"}

    def inference_step(generator, models, sample, **how):
        return [[{"tokens": task.target_dictionary.encode_line(written[i])}] for i in sample["id"].tolist()]

    monkeypatch.setattr(task, "inference_step", inference_step)
    logged, *texts = validate(task, model, criterion, [[0, 1], [2, 3]])
    values = logged.get_smoothed_values()
    assert values["bleu"] == pytest.approx(corpus_bleu(*texts), abs=0.01) and values["bleu"] > 10
    assert values["loss"] > 0
    states = [meter.state_dict() for key, meter in logged.items() if key.startswith("_bleu")]
    numbers = [value for state in states for value in state.values()]
    assert len(states) == 10 and all(value is None or type(value) in (int, float) for value in numbers)


def test_interactive_cuts_to_what_the_model_was_trained_for(tmp_path, name, caplog):
    """fairseq-interactive does not give the task the limits of the checkpoint."""
    folder = write_data(tmp_path)
    trained = configuration(folder, name).model
    trained.max_source_positions = 10
    task = make_task(folder, name)
    task.build_model(trained, from_checkpoint=True)
    tokens = [task.source_dictionary.encode_line(line).long() for line in ("how " * 600, "how", "can i learn")]
    dataset = task.build_dataset_for_inference(tokens, [len(line) for line in tokens])
    assert "1 of 3 sources are longer than the model reads, and cut to 10 tokens" in caplog.text
    batches = task.get_batch_iterator(dataset, max_tokens=6, max_positions=(10, 1024)).next_epoch_itr(shuffle=False)
    found = {i: batch for batch in batches for i in batch["id"].tolist()}
    assert sorted(found) == [0, 1, 2] and found[0]["net_input"]["src_tokens"].shape == (1, 10)
    assert found[0]["net_input"]["src_tokens"][0, -1] == task.source_dictionary.eos()
