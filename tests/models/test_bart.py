"""fairseq's BART through --task mist_translation, started from a folder like the released bart.base."""

import json
from argparse import Namespace

import pytest
import torch
from fairseq import tasks
from fairseq.data import Dictionary
from fairseq.models.bart.model import BARTModel, bart_base_architecture
from fairseq.trainer import Trainer
from transformers import BartConfig, BartForConditionalGeneration

import mist_fairseq.tasks  # noqa: F401 # registers with fairseq
from mist_fairseq.data.dictionary import load_dictionary
from mist_fairseq.files.torch_files import load_torch_file
from tests.configurations import configuration
from tests.helpers import ragged
from tests.text.helpers import write_bart_dictionary

SIZES = dict(encoder_layers=1, encoder_embed_dim=32, encoder_ffn_embed_dim=64, encoder_attention_heads=4)
SIZES |= dict(decoder_layers=1, decoder_attention_heads=4, max_source_positions=40, max_target_positions=40)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """dict.txt, encoder.json, vocab.bpe and model.pt, made by fairseq's own code and dictionary."""
    folder = write_bart_dictionary(tmp_path_factory.mktemp("bart.base"))
    dictionary = Dictionary.load(str(folder / "dict.txt"))
    dictionary.add_symbol("<mask>")  # as fairseq's denoising task does
    args = Namespace(arch="bart_base", task="denoising", criterion="cross_entropy", **SIZES)
    bart_base_architecture(args)
    torch.manual_seed(0)
    model = BARTModel.build_model(args, Namespace(source_dictionary=dictionary, target_dictionary=dictionary))
    for parameter in model.parameters():
        parameter.data.add_(0.2 * torch.randn_like(parameter))
    history = {"criterion_name": "CrossEntropyCriterion", "optimizer_name": "FairseqAdam", "num_updates": 500000}
    checkpoint = {
        "args": args,
        "model": model.state_dict(),
        "optimizer_history": [{**history, "lr_scheduler_state": {"best": 1.0}}],
        "extra_state": {"train_iterator": {"epoch": 5, "iterations_in_epoch": 10}, "best": 1.0},
        "last_optimizer_state": {},
    }
    torch.save(checkpoint, folder / "model.pt")
    return folder


@pytest.fixture
def restore(folder, tmp_path):
    """Task and model as fairseq-train has them when training starts, given more of its options."""

    def build(*more):
        for lang in ("src", "tgt"):
            load_dictionary(str(folder / "dict.txt")).save(str(tmp_path / f"dict.{lang}.txt"))
        line = ["--task", "mist_translation", "--arch", "bart_base", "--cpu", "--optimizer", "adam"]
        line += ["--source-lang", "src", "--target-lang", "tgt", "--lr", "1e-3", "--batch-size", "4", *more]
        line += [word for name, size in SIZES.items() for word in ("--" + name.replace("_", "-"), str(size))]
        config = configuration(tmp_path, *line)
        task = tasks.setup_task(config.task)
        model = task.build_model(config.model)
        trainer = Trainer(config, task, model, task.build_criterion(config.criterion))
        trainer.load_checkpoint(str(folder / "model.pt"), reset_optimizer=True, reset_meters=True)
        return task, model.eval()

    return build


def pairs(dictionary, seed=0):
    """Left-padded sources and right-padded decoder inputs."""
    generator = torch.Generator().manual_seed(seed)
    sources = ragged([9, 4, 1, 6, 3], 4, len(dictionary), dictionary.pad(), generator)
    lengths = sources.ne(dictionary.pad()).sum(1)
    previous = ragged([5, 7, 2, 1, 7], 4, len(dictionary), dictionary.pad(), generator)
    previous[:, 0] = dictionary.eos()
    left = torch.stack([row.roll(int(9 - length)) for row, length in zip(sources, lengths)])
    return left, lengths, previous, sources


def huggingface_twin(state, dictionary) -> BartForConditionalGeneration:
    sizes = dict(d_model=32, max_position_embeddings=40, activation_function="gelu", scale_embedding=False)
    for side in ("encoder", "decoder"):
        sizes |= {f"{side}_layers": 1, f"{side}_ffn_dim": 64, f"{side}_attention_heads": 4}
    config = BartConfig(vocab_size=len(dictionary), **sizes)
    twin = BartForConditionalGeneration(config).eval()
    renamed = {f"model.{name}": value for name, value in state.items() if not name.endswith("version")}
    renamed["lm_head.weight"] = renamed.pop("model.decoder.output_projection.weight")
    renamed["model.shared.weight"] = renamed["model.encoder.embed_tokens.weight"]
    result = twin.load_state_dict(renamed, strict=False)
    assert result.missing_keys == ["final_logits_bias"] and not result.unexpected_keys
    return twin


def test_restored_weights_compute_what_hugging_face_computes(folder, restore):
    task, model = restore()
    saved = load_torch_file(folder / "model.pt")["model"]
    assert model.state_dict().keys() == saved.keys()
    assert all(torch.equal(value, saved[name]) for name, value in model.state_dict().items())
    assert len(saved["encoder.embed_tokens.weight"]) == len(task.source_dictionary)

    dictionary = task.source_dictionary
    left, lengths, previous, sources = pairs(dictionary)
    twin = huggingface_twin(saved, dictionary)
    with torch.no_grad():
        ours = model(left, lengths, previous)[0]
        theirs = twin(
            input_ids=sources, attention_mask=sources.ne(dictionary.pad()).long(), decoder_input_ids=previous
        ).logits
    real = previous.ne(dictionary.pad())
    torch.testing.assert_close(ours[real], theirs[real], rtol=1e-4, atol=1e-4)
    assert theirs[real].std() > 0.5


@pytest.mark.parametrize("beam", [1, 5])
def test_validating_by_bleu_leaves_training_alone(beam, restore):
    """With a beam, fairseq's generator makes BART's attention drop all but one of each --beam sources."""
    task, plain = restore()
    scored_task, scored = restore("--eval-bleu", "--eval-bleu-args", json.dumps({"beam": beam, "max_len_b": 5}))
    left, lengths, previous, _ = pairs(task.source_dictionary)
    with torch.no_grad():
        expected = plain(left, lengths, previous)[0]
        assert torch.equal(scored(left, lengths, previous)[0], expected)
        sample = {"net_input": {"src_tokens": left, "src_lengths": lengths, "prev_output_tokens": previous}}
        found = scored_task.sequence_generator.generate([scored], sample)
        fast = task.build_generator([plain], Namespace(beam=beam, max_len_b=5)).generate([plain], sample)
        assert torch.equal(scored(left, lengths, previous)[0], expected)
    for ours, theirs in zip(found, fast):
        for one, other in zip(ours, theirs, strict=True):
            assert torch.equal(one["tokens"], other["tokens"])
