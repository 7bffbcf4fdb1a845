"""The task in one process; tests/end_to_end runs the commands."""

import re
import sys
from argparse import Namespace

import pytest
import sacrebleu
import torch
from fairseq import tasks
from fairseq.data import indexed_dataset
from fairseq.logging import metrics
from omegaconf import OmegaConf
from pycocoevalcap.rouge.rouge import Rouge

import mist_fairseq.tasks
from mist_fairseq.criterions.mist_loss import MistLoss, MistLossConfig
from mist_fairseq.generate.decoding import Decoding
from mist_fairseq.tasks.mist_task import MistTask, MistTaskConfig
from tests.helpers import bert_state, spread, tiny_config, tiny_dictionary, tiny_vocab, write_bert_folder

LINES = [("How can I learn the guitar?", "what is the best way"), ("", "it"), ("who", "why when"), ("a b c", "c b a")]


def write_data(folder, pairs=LINES, dictionary=None, extra_target=()):
    dictionary = dictionary or tiny_dictionary()
    folder.mkdir(parents=True, exist_ok=True)
    sides = [pair[0] for pair in pairs], [pair[1] for pair in pairs] + list(extra_target)
    for lang, lines in zip(("src", "tgt"), sides):
        dictionary.save(str(folder / f"dict.{lang}.txt"))
        prefix = str(folder / f"valid.src-tgt.{lang}")
        builder = indexed_dataset.make_builder(prefix + ".bin", "mmap", vocab_size=len(dictionary))
        for line in lines:
            builder.add_item(dictionary.encode_line(line))
        builder.finalize(prefix + ".idx")
    return folder


def make_task(folder, **options) -> MistTask:
    cfg = OmegaConf.structured(MistTaskConfig)
    plain = {"train_subset": "train", "dataset_impl": None, "data": str(folder)}
    for name, value in {**plain, "max_source_positions": 40, "max_target_positions": 20, **options}.items():
        cfg[name] = value
    return MistTask.setup_task(cfg)


def make_model(task, **changes):
    cfg = OmegaConf.structured(tiny_config(precision="fp32", **changes))
    OmegaConf.set_struct(cfg, False)
    cfg._name = "mist_base"
    torch.manual_seed(0)
    return task.build_model(cfg), cfg


def test_a_fairseq_too_old_or_missing_is_named(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(tasks.FairseqTask, "build_model", lambda self, cfg: None)
        with pytest.raises(ImportError, match=r"pip install 'mist-fairseq\[train\]' .* \(this is 0\.12\.3\)"):
            mist_fairseq.tasks._register()
    monkeypatch.setitem(sys.modules, "fairseq", None)
    with pytest.raises(ImportError, match=r"pip install 'mist-fairseq\[train\]' .* \(importing fairseq failed: "):
        mist_fairseq.tasks._register()


def validate(task, model, criterion, batches):
    """The validation's meters, outputs and references."""
    task.load_dataset("valid")
    dataset = task.dataset("valid")
    generator = task.generator if isinstance(task, MistTask) else task.sequence_generator
    logs, hypotheses, references = [], [], []
    for ids in batches:
        sample = dataset.collater([dataset[i] for i in ids])
        logs.append(task.valid_step(sample, model, criterion)[2])
        best = task.inference_step(generator, [model], sample)
        hypotheses += [task.target_dictionary.string(ranked[0]["tokens"]) for ranked in best]
        references += [LINES[i][1] for i in sample["id"]]
    with metrics.aggregate(new_root=True) as logged:
        task.reduce_metrics(logs, criterion)
    return logged, hypotheses, references


def corpus_bleu(hypotheses, references) -> float:
    return sacrebleu.corpus_bleu(hypotheses, [references]).score


def test_validation_bleu_is_sacrebleu_on_text(tmp_path):
    task = make_task(write_data(tmp_path), eval_bleu=True)
    logged, *texts = validate(task, make_model(task)[0], MistLoss(MistLossConfig(), task), [[0, 1], [2, 3]])
    assert logged.get_smoothed_values()["bleu"] == pytest.approx(corpus_bleu(*texts), abs=0.01)


def test_validation_rouge_is_coco_captions(tmp_path):
    """On words and punctuation marks, the mean over all sentences of all batches."""
    task = make_task(write_data(tmp_path), eval_rouge=True)
    model, _ = make_model(task)
    texts = iter([["is it?", "the way"], ["why who"]])
    task._generate_text = lambda sample, model: (next(texts), [LINES[i][1] for i in sample["id"]])
    logged, _, references = validate(task, model, MistLoss(MistLossConfig(), task), [[0, 1], [2]])
    outputs = [["is it ?"], ["the way"], ["why who"]]
    references = [[" ".join(re.findall(r"\w+|\S", reference))] for reference in references]
    expected, _ = Rouge().compute_score(dict(enumerate(references)), dict(enumerate(outputs)))
    values = logged.get_smoothed_values()
    assert values["rouge_l"] == pytest.approx(100 * expected, abs=0.01) and values["rouge_l"] > 10
    assert "bleu" not in values


def test_pretrained_sizes_go_into_the_configuration(tmp_path):
    task = make_task(write_data(tmp_path / "data"))
    folder = write_bert_folder(tmp_path / "bert", bert_state(len(tiny_vocab())))
    model, cfg = make_model(task, pretrained=str(folder), encoder_embed_dim=768, encoder_layers=12)
    assert cfg.encoder_embed_dim == 32 and cfg.encoder_layers == 2 and len(model.encoder.layers) == 2
    # A checkpoint's configuration needs the folder no more.
    (folder / "config.json").unlink()
    again = task.build_model(cfg, from_checkpoint=True)
    again.load_state_dict(model.state_dict())


def test_mismatched_line_counts_are_refused(tmp_path):
    task = make_task(write_data(tmp_path, extra_target=["one more"]))
    with pytest.raises(ValueError, match=r"src has 4 lines and .*tgt has 5"):
        task.load_dataset("valid")


def test_sources_are_enough_to_generate_from(tmp_path, monkeypatch):
    """As fairseq-preprocess --only-source writes them: one dictionary, no targets."""
    folder = write_data(tmp_path)
    for name in ("dict.tgt.txt", "valid.src-tgt.tgt.bin", "valid.src-tgt.tgt.idx"):
        (folder / name).unlink()
    task = make_task(folder)
    task.load_dataset("valid")
    dataset = task.dataset("valid")
    assert len(dataset) == len(LINES) and dataset.collater([dataset[0]])["target"] is None
    for command in ("train", "validate"):
        monkeypatch.setattr("sys.argv", [f"fairseq-{command}"])
        with pytest.raises(ValueError, match=f"the split valid of .* has no targets, which fairseq-{command} needs"):
            task.load_dataset("valid")


@pytest.mark.parametrize("languages", [{"source_lang": "tgt", "target_lang": "src"}, {"source_lang": "tgt"}])
def test_the_pair_is_found_in_either_order(tmp_path, languages):
    task = make_task(write_data(tmp_path), **languages)
    task.load_dataset("valid")
    first = task.dataset("valid")[0]
    texts = (LINES[0][1], LINES[0][0].lower())
    assert (task.dictionary.string(first["source"]), task.dictionary.string(first["target"])) == texts


def test_half_a_data_set_and_several_are_refused(tmp_path):
    task = make_task(write_data(tmp_path))
    (tmp_path / "valid.src-tgt.tgt.bin").unlink()
    with pytest.raises(ValueError, match=r"tgt\.bin is missing: run fairseq-preprocess again"):
        task.load_dataset("valid")
    with pytest.raises(ValueError, match="'valid,test' are several splits: give one at a time"):
        task.load_dataset("valid,test")


def test_output_is_what_is_printed(tmp_path):
    """One line a sentence, in the order of the data; written with the last one."""
    path = tmp_path / "new" / "output.txt"
    task = make_task(write_data(tmp_path / "data"), output=str(path), length_beam=3)
    task.load_dataset("valid")
    model = spread(make_model(task)[0])
    generator = task.build_generator([model], Namespace(nbest=2))
    iterator = task.get_batch_iterator(task.dataset("valid"), max_sentences=2).next_epoch_itr(shuffle=False)
    printed = {}
    for batch in iterator:
        assert not path.exists()
        for number, ranked in zip(batch["id"].tolist(), task.inference_step(generator, [model], batch)):
            printed[number] = task.dictionary.string(ranked[0]["tokens"])
    assert list(printed) != sorted(printed) and len(set(printed.values())) > 1
    assert path.read_text().split("\n") == [*(printed[number] for number in range(len(LINES))), ""]


def test_missing_data_is_named(tmp_path):
    with pytest.raises(ValueError, match="run fairseq-preprocess"):
        make_task(tmp_path / "nothing")
    task = make_task(write_data(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"no data at .*test\.src-tgt\.src: .*--testpref"):
        task.load_dataset("test")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="give --source-lang and --target-lang"):
        make_task(tmp_path / "empty")


def test_different_dictionaries_are_refused(tmp_path):
    folder = write_data(tmp_path)
    (folder / "dict.tgt.txt").write_text("\n".join([*tiny_vocab()[:-1], "another"]) + "\n")
    with pytest.raises(ValueError, match="dict.src.txt and dict.tgt.txt of .* differ"):
        make_task(folder)


def test_dictionaries_are_not_built_from_data():
    with pytest.raises(ValueError, match="--joined-dictionary --srcdict FILE"):
        MistTask.build_dictionary(["train.src"])


def test_limits_that_hold_nothing_are_refused(tmp_path):
    with pytest.raises(ValueError, match="--max-target-positions is 2, expected at least 3"):
        make_task(write_data(tmp_path), max_target_positions=2)


def test_training_in_int8_is_refused(tmp_path):
    """Training alone: to generate, the same data may be read."""
    folder = write_data(tmp_path)
    training, generating = (make_task(folder, precision="int8", train_subset=name) for name in ("valid", "train"))
    for task in (training, generating):
        make_model(task)
    with pytest.raises(ValueError, match="--precision int8 is for generation: train with fp32 or bf16"):
        training.load_dataset("valid")
    generating.load_dataset("valid")


def test_the_generator_gets_the_options(tmp_path):
    task = make_task(write_data(tmp_path), decoding="mist", decoding_iterations=2, banned="it, new york")
    generator = task.build_generator([make_model(task)[0]], None)
    assert generator.decoding == Decoding("mist", iterations=2, length_beam=1, banned=["it", "new york"])


def test_guessed_lengths_are_refused_but_not_in_a_checkpoint(tmp_path):
    cfg = make_task(write_data(tmp_path)).cfg
    cfg.length_guesses = 3
    with pytest.raises(ValueError, match="--length-guesses is gone since version 0.2"):
        MistTask.setup_task(cfg)
    assert MistTask.setup_task(cfg, from_checkpoint=True).dictionary == tiny_dictionary()


@pytest.mark.parametrize("name", ["transformer", "lstm", "prophetnet"])
def test_a_checkpoint_of_another_architecture_is_refused(tmp_path, name):
    """fairseq would build it, of whatever size the checkpoint says."""
    cfg = OmegaConf.create({"_name": name, "encoder_hidden_size": 10**9})
    with pytest.raises(ValueError, match=f"{name} is no model of --task mist but of another task: give --task"):
        make_task(write_data(tmp_path / "bin")).build_model(cfg, from_checkpoint=True)
