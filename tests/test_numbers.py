"""The shapes at the edge of what the model reads and writes, and numbers at the edge of what a computer has."""

import math
import random

import pytest
import torch
import torch.nn.functional as F
from fairseq.data import ListDataset

from mist_fairseq.data.dataset import MistDataset
from mist_fairseq.generate.decoding import Decoding
from mist_fairseq.mist.config import PositionLimits
from mist_fairseq.mist.kernels import argmax
from mist_fairseq.mist.objective import Batch, Objective
from tests.generate.plain import DECODINGS, Runner, assert_equals_plain
from tests.helpers import batch, decode, encode, indices, sources, targets, tiny_encoder_decoder, tiny_released
from tests.mist.test_objective import plain_predictions, watch_logits

# Limits of source and target, within 512 positions, and tokens of sources and targets with their final [SEP]: some
# exactly as long, some longer, some of one token.
SHAPES = {
    "the paper's": ((464, 48), [(463, 48), (464, 49), (1, 1), (600, 100), (2, 48), (463, 1), (20, 47)]),
    "outputs that fill the source": ((20, 48), [(19, 48), (1, 1), (30, 60), (10, 20), (10, 19), (10, 18), (10, 17)]),
}


@pytest.fixture(params=SHAPES.values(), ids=SHAPES)
def shapes(request):
    return request.param


def edge_model(dictionary, limits, build=tiny_released, **changes):
    sizes = dict(max_positions=512, length_classes=512, dropout=0.0, attention_dropout=0.0)
    return build(dictionary, *limits, **{**sizes, **changes})


@pytest.mark.parametrize("ratio", [0.0, 0.5])
def test_training_equals_a_plain_loop(dictionary, shapes, ratio):
    """Logits, loss and gradients of a batch, from the collater on, against sentence by sentence without padding."""
    limits, lengths = shapes
    random.seed(0)
    model, other = (edge_model(dictionary, limits) for _ in range(2))
    model.encoder.train()
    rows = [
        [random.choices(range(40, len(dictionary)), k=size - 1) + [dictionary.eos()] for size in side]
        for side in zip(*lengths, strict=True)
    ]
    data = [ListDataset([torch.tensor(row) for row in side], [len(row) for row in side]) for side in rows]
    dataset = MistDataset(*data, dictionary, PositionLimits(*limits))
    pairs = Batch(**dataset.collater([dataset[i] for i in range(len(dataset))])["net_input"])
    assert pairs.src_lengths.max() == limits[0] and pairs.target_lengths.max() == limits[1]
    objective = Objective(glancing_ratio=ratio, length_loss_factor=0.0)
    logits = watch_logits(model)
    found = objective.predict(model.encoder, pairs, model.tokenizer.special, model.limits.source)
    nat_logits, mist_logits = logits[-2:]
    nat, mist, revealed = plain_predictions(other, pairs, ratio)
    torch.testing.assert_close(nat_logits, nat, atol=1e-4, rtol=0)
    torch.testing.assert_close(mist_logits, mist, atol=1e-4, rtol=0)
    assert int(found.revealed) == revealed and (revealed > 0) == (ratio > 0)

    loss, _ = objective.losses(found, pairs)
    gold = torch.cat([row[:n] for row, n in zip(pairs.target_tokens, pairs.target_lengths.tolist())])
    expected = sum(F.cross_entropy(logits, gold, label_smoothing=0.1, reduction="sum") for logits in (nat, mist))
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    (loss / len(gold)).backward()
    (expected / len(gold)).backward()
    for (name, one), two in zip(model.encoder.named_parameters(), other.encoder.parameters(), strict=True):
        if two.grad is not None:
            torch.testing.assert_close(one.grad, two.grad, atol=1e-5, rtol=1e-3, msg=name)


@pytest.mark.parametrize(
    "accelerate, changes",
    [
        ("none", {}),
        ("none", {"rel_pos_bins": 8}),
        ("onnxruntime", {}),
        ("none", {"build": tiny_encoder_decoder}),
    ],
    ids=["pytorch", "relative positions", "onnxruntime", "encoder-decoder"],
)
def test_all_decodings_equal_a_plain_loop(dictionary, shapes, accelerate, changes):
    limits, pairs = shapes
    run = Runner(edge_model(dictionary, limits, **changes), accelerate)
    tokens, source_lengths = sources([min(S + 1, limits[0]) for S, _ in pairs], dictionary)
    rows = [row[:length].tolist() for row, length in zip(tokens, source_lengths)]
    lengths = [min(T, limits[1]) for _, T in pairs]
    assert {1, 48} <= set(lengths)
    for decoding in DECODINGS:
        for source, length, (best,) in zip(rows, lengths, run(rows, Decoding(*decoding), lengths), strict=True):
            assert_equals_plain(best, run.model, source, *decoding, length, given=True)


# -- nothing but padding ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "build, changes",
    [(tiny_released, {}), (tiny_released, {"rel_pos_bins": 8}), (tiny_encoder_decoder, {"activation_dropout": 0.0})],
    ids=["encoder", "relative positions", "encoder-decoder"],
)
@pytest.mark.parametrize("training", [False, True])
def test_rows_of_padding_leave_the_others_alone(dictionary, build, changes, training):
    """A source without tokens, and a target without: no other row sees them, and nothing is NaN, nor a gradient."""
    model = build(dictionary, dropout=0.0, attention_dropout=0.0, **changes)
    model.encoder.train(training)
    src, src_lengths = sources([9, 4, 13, 7], dictionary)
    tgt, tgt_lengths = targets([3, 6, 5, 2], dictionary)
    src_lengths[1] = tgt_lengths[2] = 0
    state = encode(model, src, src_lengths)
    hidden = decode(model, tgt, tgt_lengths, state)
    lengths = model.encoder.length_logits(state)
    assert all(part.isfinite().all() for part in (*hidden, lengths, state.hidden, *state.keys, *state.values))
    for row in (0, 3):
        one = slice(row, row + 1)
        alone = encode(model, src[one, : src_lengths[row]], src_lengths[one])
        (expected,) = decode(model, tgt[one, : tgt_lengths[row]], tgt_lengths[one], alone)
        torch.testing.assert_close(hidden[row], expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(lengths[one], model.encoder.length_logits(alone), atol=1e-5, rtol=0)
    (torch.cat(hidden).square().sum() + lengths.square().sum()).backward()
    gradients = [parameter.grad for parameter in model.encoder.parameters() if parameter.grad is not None]
    assert len(gradients) > 20 and all(gradient.isfinite().all() for gradient in gradients)


def test_training_with_a_source_of_padding(dictionary):
    """The whole computation; a target has at least its [SEP]."""
    model = tiny_released(dictionary)
    model.encoder.train()
    inputs = batch([9, 4, 13], [3, 1, 4], dictionary)["net_input"]
    inputs["src_lengths"][1] = 0
    pairs, objective = Batch(**inputs | indices(inputs["src_lengths"], inputs["target_lengths"])), Objective()
    loss, _ = objective.losses(objective.predict(model.encoder, pairs, model.tokenizer.special, 40), pairs)
    loss.backward()
    assert loss.isfinite() and all(parameter.grad.isfinite().all() for parameter in model.encoder.parameters())


# -- extreme values -----------------------------------------------------------------------------------------------

EXTREME = {
    "large": lambda logits: logits * 1e4,
    "one far above": lambda logits: logits.index_fill(1, torch.tensor([3]), 1e4),
    "one far below": lambda logits: logits.index_fill(1, torch.tensor([3]), -1e4),
    "all equal": lambda logits: torch.full_like(logits, 7.0),
    "impossible tokens": lambda logits: logits.index_fill(1, torch.tensor([0, 3, 36]), float("-inf")),
    "only one possible": lambda logits: torch.full_like(logits, float("-inf")).index_fill(1, torch.tensor([5]), 2.0),
}


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16, torch.float16])
def test_argmax_of_extreme_logits(precision):
    """The first of the largest, and NaN before all, as torch has it."""
    generator = torch.Generator().manual_seed(0)
    for width in (37, 128, 300):
        for change in EXTREME.values():
            if width == 37:
                scores = change(torch.randn(9, 37, generator=generator))
            else:
                scores = change(torch.randn(9, width, generator=generator))
            scores = scores.to(precision)
            assert torch.equal(argmax(scores), scores.argmax(1))
            scores[2, 30] = scores[4, 1] = float("nan")
            assert torch.equal(argmax(scores), scores.argmax(1))


@pytest.mark.parametrize("accelerate", ["none", "onnxruntime"])
@pytest.mark.parametrize("bias", [1e4, -1e4, float("-inf")])
def test_generation_with_extreme_logits(dictionary, accelerate, bias):
    """A word that is certain, and one that is all but or quite impossible."""
    model, word = tiny_released(dictionary), dictionary.index("guitar")
    model.encoder.head.bias.data[word] = bias
    run = Runner(model, accelerate)
    tokens, lengths = sources([9, 4, 13], dictionary)
    rows = [row[:length].tolist() for row, length in zip(tokens, lengths)]
    for decoding in DECODINGS:
        for (one,) in run(rows, Decoding(*decoding)):
            assert one["scores"].isfinite().all() and math.isfinite(one["score"])
            assert set(one["tokens"]) == {word} if bias > 0 else word not in one["tokens"]
