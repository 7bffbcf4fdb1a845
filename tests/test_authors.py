"""Training against the authors' two models, in fp64 but for our losses; docs/fidelity.md has what differs."""

import math
import re
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from fairseq import tasks
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
from tests.helpers import WORDS, batch, bert_state, decode, encode, tiny_model, tiny_vocab, write_bert_folder
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
    pairs = [(" ".join(WORDS[: 1 + 7 * i % 19]), WORDS[i % 19]) for i in range(24)]
    recipe = ["--task", "mist", "--arch", "mist_base", "--criterion", "mist_loss"]
    made = configuration(write_data(folder, pairs), *recipe, *shown_options())
    made.model.pretrained = str(write_bert_folder(folder / "bert", bert_state(V)))
    made.task.max_source_positions, made.task.max_target_positions = LIMITS
    made.task.train_subset = "valid"
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


def compare(model, weights, dictionary, cfg, biases, lengths=(SOURCES, TARGETS), **switches):
    """Logits, losses and gradients of a batch are equal; *biases* are added to the head's, by token.

    Some tokens of the targets are what the first look says, others what the MIST pass after it does.
    """
    model, special = deepcopy(model), dictionary.tokenizer.special
    weights = {name: value.double().requires_grad_() for name, value in weights.items()}
    if model.encoder.head.weight is None:  # tied
        weights["cls.predictions.decoder.weight"] = weights["bert.embeddings.word_embeddings.weight"]
    theirs = Authors(weights, 4, special, LIMITS[0], cfg.mist_loss_factor > 0, cfg.glancing_ratio, cfg.label_smoothing)
    theirs = replace(theirs, **switches)
    sample, criterion = batch(*lengths, dictionary), MistLoss(cfg, None)
    source, target, T = (sample["net_input"][name] for name in ("src_tokens", "target_tokens", "target_lengths"))
    real, last = target != special.pad, (torch.arange(len(T)), T - 1)
    with torch.no_grad():
        for token, added in biases.items():
            weights["cls.predictions.bias"][token] += added
            model.encoder.head.bias[token] += added
        inner = real.index_put(last, torch.tensor(False))
        for i, logits in enumerate(theirs.both(source, target.masked_fill(real, special.mask))[1 : 2 + theirs.mixing]):
            known = inner & (torch.arange(real.shape[1]) % 3 == i)
            target[known] = theirs.tokens(logits)[known]
    torch.manual_seed(3)
    noise = sentence_noise(sample["net_input"]["ids"], target.shape[1], torch.initial_seed())
    expected = theirs.losses(source, target, -noise.argsort(1).argsort(1))
    outputs = theirs.tokens(expected["nat_logits"])
    assert 0 < (outputs[last] == special.sep).sum() < len(T) and len(outputs[real].unique()) > 6

    logits = watch_logits(model)
    loss, size, found = criterion(model, sample)
    assert ("mist_loss" in found) == theirs.mixing
    for name, one in zip(["nat_logits", "mist_logits"], logits[-1 - theirs.mixing :]):
        torch.testing.assert_close(one, expected[name][real], atol=1e-12, rtol=0)
    parts = {"nat_loss": 1.0, "mist_loss": cfg.mist_loss_factor, "length_loss": cfg.length_loss_factor}
    parts = {name: factor for name, factor in parts.items() if factor}
    for name in parts:
        torch.testing.assert_close(found[name].double() / size, expected[name].detach(), atol=0, rtol=1e-6)
    (loss / size).backward()
    sum(factor * expected[name] for name, factor in parts.items()).backward()
    own = {name: parameter.grad for name, parameter in model.encoder.named_parameters()}
    gradients = {name.removeprefix("bert."): weight.grad for name, weight in weights.items()}
    for name, gradient in convert(gradients, own, NAMES, "gradients", "").items():
        atol = 2e-6 * float(gradient.abs().max()) + 1e-9
        torch.testing.assert_close(own[name], gradient, atol=atol, rtol=0, msg=name)
    return outputs[real], theirs.mix(source, outputs, target)


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
    model, folder = tiny_model(dictionary, *LIMITS, dropout=0.0, attention_dropout=0.0), tmp_path_factory.mktemp("ours")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    save_huggingface(model.released, str(folder))
    weights = load_file(folder / "model.safetensors")
    weights["embed_length.weight"] = model.encoder.length_head.weight.detach().clone()
    return model.train().double(), weights


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
    """Where special tokens are likely, and sources are cut when they are mixed."""
    special = dictionary.tokenizer.special
    never = (special.pad, special.unk, special.cls, special.mask, dictionary.index("[unused1]"))
    biases = {**dict.fromkeys([special.sep, *never], 2.0), special.unk: 5.0}
    outputs, mixed = compare(*tied, dictionary, options(**changes), biases, **ALWAYS, **switches, never=never)
    assert not set(outputs.tolist()) & set(never)
    assert 1 < (mixed[:, -1] == special.sep).sum() < len(mixed)


@pytest.mark.parametrize("mixing", [True, False])
def test_the_command_of_the_table_trains_as_theirs(shown, mixing, converted, weights, dictionary):
    """But for label smoothing; where nothing is cut, and no special token likely, which theirs may predict."""
    cfg, special = deepcopy(shown.criterion), dictionary.tokenizer.special
    assert (cfg.glancing_ratio, cfg.mist_loss_factor, cfg.length_loss_factor, cfg.label_smoothing) == (0.5, 1, 1, 0.1)
    cfg.mist_loss_factor = float(mixing)
    biases = {special.sep: 7.0, **dict.fromkeys(special.never_predicted, -50.0)}
    short = [min(length, 20) for length in SOURCES], TARGETS
    compare(converted, weights, dictionary, cfg, biases, short, smooths_all=True)


def test_the_command_of_the_table_starts_as_theirs(shown, weights):
    """Whatever head the encoder brings; and all of their weights are trained."""
    model = tasks.setup_task(shown.task).build_model(shown.model)
    found = dict(model.encoder.named_parameters())
    expected = convert({k.removeprefix("bert."): v for k, v in weights.items()}, found, NAMES, "theirs", "", (), ())
    words, head = found["word_embeddings.weight"], found["head.weight"]
    assert torch.equal(words, head) and words.data_ptr() != head.data_ptr()
    assert not found["head.bias"].any() and not found["head.norm.bias"].any() and (found["head.norm.weight"] == 1).all()
    assert not torch.isclose(found["head.transform.weight"], expected["head.transform.weight"]).any()
    for name, value in expected.items():
        assert name.startswith(("head.", "length_head.")) or torch.equal(found[name], value), name


def test_the_command_of_the_table_has_their_batches(shown):
    """Of any lengths, and in each epoch again; theirs only do not end with an epoch."""
    task = tasks.setup_task(shown.task)
    task.load_dataset("valid")
    dataset, seen = task.dataset("valid"), []
    epochs = task.get_batch_iterator(dataset, max_sentences=4)
    for _ in range(2):
        epoch = epochs.next_epoch_itr(shuffle=epochs.next_epoch_idx > shown.dataset.curriculum)  # as fairseq-train
        seen += [sample["id"].tolist() for sample in epoch]
    order = [number for ids in seen[:6] for number in ids]
    assert sorted(order) == list(range(24)) and seen == plain_authors.batches(order, 4, 12)
    assert all(dataset.size(ids)[0].std() > 1.5 for ids in seen)


@pytest.mark.parametrize("what, attribute", [("hidden", "dropout"), ("attention", "attention_dropout")])
def test_dropout_is_where_theirs_is(what, attribute, tied, dictionary):
    """Where all is dropped, what is left says where."""
    model, special = deepcopy(tied[0]), dictionary.tokenizer.special
    for part in (model.encoder.config, *model.encoder.layers):
        setattr(part, attribute, 1.0)
    weights = {name: value.double() for name, value in tied[1].items()}
    weights["cls.predictions.decoder.weight"] = weights["bert.embeddings.word_embeddings.weight"]
    given = batch(SOURCES, TARGETS, dictionary)["net_input"]
    source, target = given["src_tokens"], given["target_tokens"]
    lengths, logits = Authors(weights, 4, special, LIMITS[0], dropped=(what,)).look(source, target)
    with torch.no_grad():
        state = encode(model, source, given["src_lengths"])
        hidden = torch.cat(decode(model, target, given["target_lengths"], state))
        torch.testing.assert_close(model.encoder.token_logits(hidden), logits[target != special.pad])
        torch.testing.assert_close(model.encoder.length_logits(state).double(), lengths, atol=1e-5, rtol=1e-5)


def test_label_smoothing_differs_as_the_table_says(dictionary):
    """Ours is torch's; theirs a cross entropy with other shares, less their entropy."""
    pad, gold, e = dictionary.pad(), torch.arange(9) + 50, 0.1
    logits = torch.randn(9, V, dtype=torch.double, requires_grad=True)
    shares = torch.full((9, V), e / (V - 2), dtype=torch.double)
    shares[:, pad], shares[range(9), gold] = 0, 1 - e
    entropy = -(1 - e) * math.log(1 - e) - e * math.log(e / (V - 2))
    plain = Authors({}, 4, dictionary.tokenizer.special, LIMITS[0], label_smoothing=e)
    ours, theirs = (replace(plain, smooths_all=own).token_loss(logits[None], gold[None]) for own in (True, False))
    torch.testing.assert_close(ours, F.cross_entropy(logits, gold, label_smoothing=e, reduction="sum"))
    torch.testing.assert_close(theirs, F.cross_entropy(logits, shares, reduction="sum") - 9 * entropy)
    one, two = (torch.autograd.grad(loss, logits)[0] for loss in (ours, theirs))
    torch.testing.assert_close((one - two).abs().sum(1), torch.full((9,), 4 * e / V).double())
