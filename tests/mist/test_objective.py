"""The training computation and its loss against plain loops over sentences and tokens."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from mist_fairseq.mist.copying import CopyHead, add_copies_
from mist_fairseq.mist.glancing import glance, sentence_noise
from mist_fairseq.mist.heads import likeliest_tokens
from mist_fairseq.mist.objective import Batch, Objective, Predictions, random_targets
from tests.helpers import (
    assert_same_gradients,
    batch,
    decode,
    encode,
    part,
    plain_logits,
    tiny_encoder_decoder,
    tiny_released,
)
from tests.mist.test_mixing import plain_mix

SOURCES, TARGETS = [9, 4, 13, 2, 7, 7], [5, 12, 1, 7, 2, 9]


def training(dictionary, build=tiny_released, **sizes):
    """Without dropout."""
    model = build(dictionary, dropout=0.0, attention_dropout=0.0, **sizes)
    model.encoder.train()
    return model


def some_batch(dictionary) -> Batch:
    return Batch(**batch(SOURCES, TARGETS, dictionary)["net_input"])


def predict(model, pairs: Batch, updates: int = 0, **options) -> Predictions:
    given = model.encoder, pairs, model.tokenizer.special, model.limits.source
    return Objective(**options).predict(*given, updates=updates)


def learn(model, pairs: Batch, **options):
    loss, parts = Objective(**options).losses(predict(model, pairs, **options), pairs)
    loss.backward()
    return loss, parts


def watch_logits(model) -> list[Tensor]:
    """What will hold the logits of each pass of training, *Shape:* (N, V)."""
    logits, output_layer = list[Tensor](), model.encoder.output_layer
    copy_head = getattr(model.encoder, "copy_head", None)

    def watched(hidden):
        layer = output_layer(hidden)
        logits.append(F.linear(*layer))
        return layer

    def watched_copies(*given):
        copies = CopyHead.copies(copy_head, *given)
        add_copies_(logits[-1], copies)
        return copies

    model.encoder.output_layer = watched
    if copy_head:
        copy_head.copies = watched_copies
    return logits


def plain_predictions(model, pairs: Batch, ratio, mixed_in=None):
    """Sentence by sentence, every pass from the start: the logits of equations 3 and 4, and how much was revealed."""
    special = model.tokenizer.special
    nat, mist, revealed = [], [], 0
    for row in range(len(pairs.src_tokens)):
        S, T = int(pairs.src_lengths[row]), int(pairs.target_lengths[row])
        src, target = pairs.src_tokens[row, :S].tolist(), pairs.target_tokens[row : row + 1, :T]

        def logits(tokens, source, T=T):
            state = encode(model, torch.tensor([source]), torch.tensor([len(source)]))
            return plain_logits(model, decode(model, tokens, torch.tensor([T]), state)[0], state)

        masked = torch.full_like(target, special.mask)
        if ratio:
            first_look = likeliest_tokens(logits(masked, src), special.never_predicted)[None]
            noise = sentence_noise(pairs.ids[row : row + 1], T, torch.initial_seed())
            masked, shown = glance(target, first_look, target == target, noise, ratio, special.mask)
            revealed += int(shown.sum())
        nat.append(logits(masked, src))
        output = likeliest_tokens(nat[-1].detach(), special.never_predicted) if mixed_in is None else mixed_in[row, :T]
        mixed = plain_mix(output.tolist(), src, model.limits.source, special.cls, special.sep)
        mist.append(logits(masked, mixed))
    return torch.cat(nat), torch.cat(mist), revealed


@pytest.mark.parametrize("ratio", [0.0, 0.5])
@pytest.mark.parametrize(
    "build, sizes", [(tiny_encoder_decoder, {"activation_dropout": 0.0}), (tiny_released, {"copy_head": True})]
)
def test_predictions_equal_a_plain_loop(dictionary, build, sizes, ratio):
    """Those of an encoder without a copy head equal the authors': tests/test_authors.py."""
    model, pairs = training(dictionary, build, **sizes), some_batch(dictionary)
    passes = watch_logits(model)
    with torch.no_grad():
        found = predict(model, pairs, glancing_ratio=ratio)
        nat_logits, mist_logits = passes[-2:]
        nat, mist, revealed = plain_predictions(model, pairs, ratio)
        lengths = model.encoder.length_logits(encode(model, pairs.src_tokens, pairs.src_lengths))
    torch.testing.assert_close(nat_logits, nat, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(mist_logits, mist, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.length_logits, lengths, atol=1e-4, rtol=1e-4)
    for tokens, logits in ((found.nat.tokens, nat), (found.mist.tokens, mist)):
        assert torch.equal(tokens, likeliest_tokens(logits, model.tokenizer.special.never_predicted))
    assert int(found.revealed) == revealed and (revealed > 0) == (ratio > 0)


def test_the_reference_can_be_mixed_in(dictionary):
    model, pairs = training(dictionary), some_batch(dictionary)
    passes = watch_logits(model)
    with torch.no_grad():
        predict(model, pairs, mist_targets="reference", glancing_ratio=0.0)
        found = passes[1]
        _, mist, _ = plain_predictions(model, pairs, 0.0, mixed_in=pairs.target_tokens)
    torch.testing.assert_close(found, mist, atol=1e-4, rtol=1e-4)


def test_random_tokens_can_be_mixed_in(dictionary):
    """As many as the target has, the last [SEP], the sentence's own, others at each update."""
    model, pairs, special = training(dictionary), some_batch(dictionary), dictionary.tokenizer.special
    drawn = []
    for seed in (1, 2, 1):
        torch.manual_seed(seed)
        drawn.append(random_targets(pairs, special, len(dictionary)))
    passes = watch_logits(model)
    with torch.no_grad():
        predict(model, pairs, mist_targets="random", glancing_ratio=0.0)
        found = passes[1]
        _, mist, _ = plain_predictions(model, pairs, 0.0, mixed_in=drawn[0])
    torch.testing.assert_close(found, mist, atol=1e-4, rtol=1e-4)
    assert torch.equal(drawn[0], drawn[2]) and not torch.equal(drawn[0], drawn[1])
    tokens = torch.cat([row[: length - 1] for row, length in zip(drawn[0], pairs.target_lengths)])
    assert (drawn[0].gather(1, pairs.target_lengths[:, None] - 1) == special.sep).all()
    # [UNK] stands in their place.
    never = set(special.never_predicted) - {special.unk}
    assert len(tokens.unique()) > len(tokens) / 2 and not set(tokens.tolist()) & never
    some = Batch(**part({"net_input": vars(pairs)}, [1, 3])["net_input"])
    assert torch.equal(random_targets(some, special, len(dictionary)), drawn[0][[1, 3]])


def test_evaluation_does_not_glance(dictionary):
    model, pairs = tiny_released(dictionary), some_batch(dictionary)
    with torch.no_grad():
        found, without = (predict(model, pairs, glancing_ratio=ratio) for ratio in (0.5, 0.0))
    assert found.revealed == 0 and torch.equal(found.nat.loss, without.nat.loss)


@pytest.mark.parametrize("factor, passes", [(1.0, 2), (0.0, 1)])
def test_glancing_and_nat_share_one_source_encoding(dictionary, monkeypatch, factor, passes):
    model, calls = training(dictionary), []
    encode = model.encoder.encode_source
    monkeypatch.setattr(model.encoder, "encode_source", lambda *args: calls.append(1) or encode(*args))
    found = predict(model, some_batch(dictionary), mist_loss_factor=factor)
    assert len(calls) == passes and (found.mist is None) == (factor == 0)


@pytest.mark.parametrize("targets, copy_head", [("pseudo", False), ("random", False), ("pseudo", True)])
def test_training_never_waits_for_a_value(dictionary, targets, copy_head):
    """On fake tensors whatever reads a value, as a host-device synchronisation would, raises."""
    pairs = some_batch(dictionary)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        model = tiny_released(dictionary, copy_head=copy_head)
        model.encoder.train()
        learn(
            model, Batch(**{name: mode.from_tensor(value) for name, value in vars(pairs).items()}), mist_targets=targets
        )


@pytest.mark.parametrize("glancing", [0.0, 0.5])
@pytest.mark.parametrize("rows", [[[0, 1, 2], [3, 4, 5]], [[2], [0, 1, 3, 4, 5]]])
@pytest.mark.parametrize("copy_head", [False, True])
def test_a_batch_gives_the_gradients_of_its_parts(dictionary, rows, glancing, copy_head):
    """As with --update-freq 2. Glancing included: its noise belongs to the sentences."""
    whole, parts = (training(dictionary, copy_head=copy_head) for _ in range(2))
    torch.manual_seed(7)  # fairseq does so before each update
    sample = batch(SOURCES, TARGETS, dictionary)
    learn(whole, Batch(**sample["net_input"]), glancing_ratio=glancing)
    for some in rows:
        learn(parts, Batch(**part(sample, some)["net_input"]), glancing_ratio=glancing)
    assert_same_gradients(parts.encoder, whole.encoder)


@pytest.mark.parametrize("copy_head", [False, True])
def test_an_order_agnostic_loss_is_that_of_the_likeliest_order(dictionary, copy_head):
    """Of all orders of a target's tokens but the final [SEP], in the NAT pass and in the MIST pass."""
    model = training(dictionary, copy_head=copy_head)
    pairs = Batch(**batch([9, 4, 7, 3], [5, 1, 4, 6], dictionary)["net_input"])
    passes = watch_logits(model)
    options = {"label_smoothing": 0.0, "glancing_ratio": 0.0, "order_agnostic_from": 3}
    found = predict(model, pairs, updates=3, **options)
    for logits, loss in zip(passes[:], (found.nat.loss, found.mist.loss), strict=True):
        expected, rows = 0.0, iter(-logits.log_softmax(-1))
        for target, T in zip(pairs.target_tokens, pairs.target_lengths.tolist()):
            nll = torch.stack([row[target] for row in itertools.islice(rows, T)])
            places = list(range(T))
            orders = itertools.permutations(places[:-1])
            expected += min(nll[places, [*order, T - 1]].sum() for order in orders)
        torch.testing.assert_close(loss, expected, atol=1e-4, rtol=1e-5)
    loss, _ = Objective(**options).losses(found, pairs)
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.encoder.parameters())


def test_when_targets_keep_their_order(dictionary):
    """Before that update, where all is revealed, and in evaluation."""
    model, pairs = training(dictionary), some_batch(dictionary)
    for ratio, updates in ((0.0, 2), (1.0, 3)):  # of an untrained model no token is right
        found = predict(model, pairs, updates, glancing_ratio=ratio, order_agnostic_from=3)
        assert torch.equal(found.nat.loss, predict(model, pairs, glancing_ratio=ratio).nat.loss)
    options = {"glancing_ratio": 0.0, "order_agnostic_from": 3}
    assert predict(model, pairs, 3, **options).nat.loss < predict(model, pairs, 2, **options).nat.loss
    model.encoder.eval()
    assert torch.equal(predict(model, pairs, 3, **options).nat.loss, predict(model, pairs, 2, **options).nat.loss)


def test_counts_of_what_is_right(dictionary):
    model, pairs = training(dictionary), some_batch(dictionary)
    optimizer = torch.optim.Adam(model.encoder.parameters(), lr=5e-3)
    for _ in range(60):
        optimizer.zero_grad()
        _, parts = learn(model, pairs, glancing_ratio=0.0, label_smoothing=0.0)
        for parameter in model.encoder.parameters():
            parameter.grad /= sum(TARGETS)
        optimizer.step()
    assert int(parts["correct"]) == int(parts["mist_correct"]) == sum(TARGETS)
    assert int(parts["length_correct"]) == len(SOURCES)


def test_bf16_gives_gradients_to_all_weights_and_keeps_them_in_fp32(dictionary):
    model, other = (training(dictionary, untie_head=True) for _ in range(2))
    pairs = some_batch(dictionary)
    learn(model, pairs, glancing_ratio=0.0)
    with torch.autocast("cpu", torch.bfloat16):
        passes = watch_logits(other)
        learn(other, pairs, glancing_ratio=0.0)
    assert passes[0].dtype == torch.bfloat16
    for (name, expected), found in zip(model.encoder.named_parameters(), other.encoder.parameters()):
        assert found.dtype == torch.float32 and found.grad is not None, name
        if expected.grad.norm() > 1e-2:
            similarity = torch.cosine_similarity(expected.grad.flatten(), found.grad.flatten(), dim=0)
            assert similarity > 0.9, (name, float(similarity))


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"glancing_ratio": 1.5}, "--glancing-ratio is 1.5, expected a number from 0 to 1"),
        ({"label_smoothing": 1.0}, "--label-smoothing is 1.0, expected"),
        ({"mist_loss_factor": -1.0}, "must not be negative"),
        ({"glancing_by": "luck"}, "--glancing-by is luck, expected one of first-look, mist"),
        ({"length_loss_per": "batch"}, "--length-loss-per is batch, expected one of token, sentence"),
        ({"length_loss_factor": -0.1}, "must not be negative"),
        ({"order_agnostic_from": -1}, "--order-agnostic-from is -1, expected 0 or more updates"),
        ({"mist_targets": "gold"}, "--mist-targets is gold, expected one of pseudo, reference, random"),
    ],
)
def test_impossible_options_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Objective(**wrong)
