"""Training against the authors' two models, in fp64 but for the losses, which are fp32; docs/fidelity.md has the rows."""

import math
import re
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from fairseq import tasks
from fairseq.data import iterators
from safetensors.torch import load_file
from torch import Tensor

from mist_fairseq.checkpoints.authors import convert_checkpoint
from mist_fairseq.criterions.mist_loss import MistLoss, MistLossConfig
from mist_fairseq.mist.glancing import sentence_noise
from mist_fairseq.pretrained.bert import BERT
from mist_fairseq.pretrained.names import convert
from mist_fairseq.release.huggingface import save_huggingface
from tests import plain_authors
from tests.checkpoints.test_authors import load, released_state, write
from tests.configurations import configuration
from tests.data.test_dataset import make
from tests.helpers import batch, bert_state, tiny_model, tiny_vocab, write_bert_folder
from tests.mist.test_objective import watch_logits
from tests.plain_authors import Authors
from tests.tasks.test_mist_task import write_data

V, LIMITS = len(tiny_vocab()), (40, 20)
SOURCES, TARGETS = [9, 38, 4, 13, 40, 2, 7, 36], [5, 12, 11, 1, 7, 9, 2, 3]
NAMES = {**BERT.names, "length_head": "embed_length"}
FIDELITY = Path(__file__).parent.parent / "docs" / "fidelity.md"


def shown_options() -> list[str]:
    """Of the command in docs/fidelity.md that trains as the authors did."""
    command = re.search(r"run\.sh train --pretrained DIR (.*?)\n\n", FIDELITY.read_text(), re.DOTALL)[1]
    return command.replace("\\\n", "").split()


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """fairseq-train's configuration of that command, with data and an encoder that brings a head."""
    folder = tmp_path_factory.mktemp("shown")
    made = configuration(write_data(folder), *"--task mist --arch mist_base --criterion mist_loss".split(), *shown_options())
    made.model.pretrained = str(write_bert_folder(folder / "bert", bert_state(V)))
    made.task.max_source_positions, made.task.max_target_positions = LIMITS
    return made


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    """Under their names."""
    unused = ("pooler", "one_hot", "position_ids", "decoder.bias")
    return {k: v for k, v in released_state(bert_state(V), "").items() if not any(part in k for part in unused)}


@pytest.fixture(scope="module")
def converted(weights, dictionary, tmp_path_factory):
    """Our model of their checkpoint, without dropout."""
    folder = tmp_path_factory.mktemp("authors")
    checkpoint, config, out = write(folder, {f"module.{name}": value for name, value in weights.items()})
    convert_checkpoint(checkpoint, config, out, *LIMITS)
    return load(out, dictionary, folder, dropout=0.0, attention_dropout=0.0).train().double()


def compare(model, weights, dictionary, cfg, lengths=(SOURCES, TARGETS), special_bias=0.0, **switches):
    """A batch's logits, losses and gradients are equal; gives back both sides' results of the loss.

    Some tokens of the targets are what the first look says, others what the MIST pass after it does; special tokens
    have *special_bias* more in the head.
    """
    model, special = deepcopy(model), dictionary.tokenizer.special
    tied = model.encoder.head.weight is None
    sample, criterion = batch(*lengths, dictionary), MistLoss(cfg, None)
    source, target, T = (sample["net_input"][f"{name}"] for name in ("src_tokens", "target_tokens", "target_lengths"))
    weights = {name: value.double().requires_grad_() for name, value in weights.items()}
    if tied:
        weights["cls.predictions.decoder.weight"] = weights["bert.embeddings.word_embeddings.weight"]
    theirs = Authors(weights, 4, special, LIMITS[0], label_smoothing=cfg.label_smoothing, **switches)
    theirs.mixing, theirs.glancing_ratio = cfg.mist_loss_factor > 0, cfg.glancing_ratio
    with torch.no_grad():
        for bias in (weights["cls.predictions.bias"], model.encoder.head.bias):
            bias[list(special.never_predicted)] += special_bias
        looks = theirs.both(source, target.masked_fill(target != special.pad, special.mask))[1:]
        right = target != special.pad
        right[torch.arange(len(T)), T - 1] = False
        for i, logits in enumerate(looks[: 1 + theirs.mixing]):
            some = right & (torch.arange(right.shape[1]) % 3 == i)
            target[some] = theirs.tokens(logits)[some]
    torch.manual_seed(3)
    noise = sentence_noise(sample["net_input"]["ids"], target.shape[1], torch.initial_seed())
    expected = theirs.losses(source, target, -noise.argsort(1).argsort(1))
    logits = watch_logits(model)
    loss, size, found = criterion(model, sample)
    real = target != special.pad
    for one, two in zip(logits[-1 - theirs.mixing :], expected["logits"], strict=False):
        torch.testing.assert_close(one, two[real], atol=1e-12, rtol=0)
    for name in ("nat_loss", "mist_loss", "length_loss"):
        if name in expected:
            torch.testing.assert_close(found[name].double() / size, expected[name].detach(), atol=1e-5, rtol=1e-6)
    mist = cfg.mist_loss_factor * expected.get("mist_loss", 0)
    (expected["nat_loss"] + mist + cfg.length_loss_factor * expected["length_loss"]).backward()
    (loss / size).backward()
    own = {name: parameter.grad for name, parameter in model.encoder.named_parameters()}
    gradients = {name.removeprefix("bert."): weight.grad for name, weight in weights.items()}
    for name, gradient in convert(gradients, own, NAMES, "gradients", "").items():
        scale = max(1e-3, float(gradient.abs().max()))
        torch.testing.assert_close(own[name] / scale, gradient / scale, atol=2e-6, rtol=0, msg=name)
    return found, expected, theirs


def options(**changes) -> MistLossConfig:
    cfg = MistLossConfig()
    for name, value in changes.items():
        setattr(cfg, name, value)
    return cfg


# What ours does otherwise unless an option says so, and what in any case.
DEFAULTS = {"first_look": True, "length_by_token": True}
ALWAYS = {"keeps_sep": True, "smooths_all": True}
AS_THEIRS = {"glancing_by": "mist", "length_loss_per": "sentence"}


@pytest.fixture(scope="module")
def tied(dictionary, tmp_path_factory):
    """A model of ours, tied and without dropout, and its weights under their names."""
    model = tiny_model(dictionary, *LIMITS, dropout=0.0, attention_dropout=0.0)
    folder = tmp_path_factory.mktemp("ours")
    save_huggingface(model.released, str(folder))
    lengths = {"embed_length.weight": model.encoder.length_head.weight.detach()}
    return model.train().double(), load_file(folder / "model.safetensors") | lengths


@pytest.mark.parametrize(
    "changes, switches",
    [
        ({}, DEFAULTS),
        ({"glancing_by": "mist"}, {"length_by_token": True}),
        ({"length_loss_per": "sentence"}, {"first_look": True}),
        ({"mist_loss_factor": 0.0}, DEFAULTS),
        ({"glancing_ratio": 0.0, "label_smoothing": 0.0}, DEFAULTS),
        ({"glancing_ratio": 0.7, "mist_loss_factor": 0.5, "length_loss_factor": 0.1}, DEFAULTS),
    ],
    ids=str,
)
def test_ours_is_theirs_but_for_what_the_table_says(changes, switches, tied, dictionary):
    """On special tokens that are likely, outputs with a last [SEP] and without, and sources that are cut if mixed."""
    never = dictionary.tokenizer.special.never_predicted
    switches = {**ALWAYS, **switches, "never": never}
    _, expected, theirs = compare(*tied, dictionary, options(**changes), special_bias=2.0, **switches)
    nat = expected["logits"][0].argmax(-1)
    assert set(never) & set(nat.flatten().tolist())


@pytest.mark.parametrize("mixing", [True, False])
def test_the_command_of_the_table_trains_as_theirs(shown, mixing, converted, weights, dictionary):
    """But for label smoothing; where nothing is cut and no special token is likely, which theirs may predict."""
    cfg = deepcopy(shown.criterion)
    assert (cfg.glancing_ratio, cfg.mist_loss_factor, cfg.length_loss_factor, cfg.label_smoothing) == (0.5, 1, 1, 0.1)
    cfg.mist_loss_factor = float(mixing)
    short = [min(length, 20) for length in SOURCES], TARGETS
    compare(converted, weights, dictionary, cfg, short, special_bias=-50.0, smooths_all=True)
