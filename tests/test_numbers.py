"""The shapes at the edge of what the model reads and writes, and numbers at the edge of what a computer has."""

import math
import random

import pytest
import torch
import torch.nn.functional as F

from mist_fairseq.criterions.mist_loss import MistLoss, smoothed_nll
from mist_fairseq.data.dataset import MistDataset
from mist_fairseq.generate.generator import Decoding, Source
from mist_fairseq.hub.onnx_generator import OnnxGenerator
from mist_fairseq.mist.encoder import argmax
from mist_fairseq.mist.mixing import mix_source
from mist_fairseq.models.generator import NARGenerator
from mist_fairseq.models.mist import PositionLimits
from mist_fairseq.release.onnx_folder import save_onnx
from tests import test_generator
from tests.engines.helpers import DECODINGS, prepare
from tests.helpers import batch, decode, encode, indices, sources, targets, tiny_model
from tests.models.baselines.test_nat_mass import build as nat_mass
from tests.models.test_generator import assert_same, plain_fill, plain_mask_predict, plain_mist
from tests.models.test_mist import plain_forward

# Limits of source and target, within 512 positions, and tokens of sources and targets with their final [SEP]: some
# exactly as long, some longer, some of one token.
SHAPES = {
    "the paper's": ((464, 48), [(463, 48), (464, 49), (1, 1), (600, 100), (2, 48), (463, 1), (20, 47)]),
    "outputs that fill the source": ((20, 48), [(19, 48), (1, 1), (30, 60), (10, 20), (10, 19), (10, 18), (10, 17)]),
}


@pytest.fixture(params=SHAPES.values(), ids=SHAPES)
def shapes(request):
    return request.param


def edge_model(dictionary, limits, **changes):
    sizes = dict(max_positions=512, length_classes=512, dropout=0.0, attention_dropout=0.0)
    return tiny_model(dictionary, *limits, **{**sizes, **changes})


@pytest.mark.parametrize("ratio", [0.0, 0.5])
def test_training_equals_a_plain_loop(dictionary, shapes, ratio):
    """Logits, loss and gradients of a batch, from the collater on, against sentence by sentence without padding."""
    limits, lengths = shapes
    random.seed(0)
    model, other = (edge_model(dictionary, limits).train() for _ in range(2))
    rows = [
        [random.choices(range(40, len(dictionary)), k=size - 1) + [dictionary.eos()] for size in side]
        for side in zip(*lengths, strict=True)
    ]
    data = [item for side in rows for item in ([torch.tensor(row) for row in side], [len(row) for row in side])]
    dataset = MistDataset(*data, dictionary, PositionLimits(*limits))
    sample = dataset.collater([dataset[i] for i in range(len(dataset))])
    inputs = sample["net_input"]
    assert inputs["src_lengths"].max() == limits[0] and inputs["target_lengths"].max() == limits[1]
    output = model(**inputs, glancing_ratio=ratio)
    nat, mist, revealed = plain_forward(other, inputs, ratio)
    torch.testing.assert_close(output["nat_logits"], nat, atol=1e-4, rtol=0)
    torch.testing.assert_close(output["mist_logits"], mist, atol=1e-4, rtol=0)
    assert int(output["revealed"]) == revealed and (revealed > 0) == (ratio > 0)

    model.zero_grad()
    loss, size, _ = MistLoss(None, ratio, 1.0, 0.0, 0.1)(model, sample)
    gold = torch.cat([row[:n] for row, n in zip(inputs["target_tokens"], inputs["target_lengths"].tolist())])
    expected = sum(F.cross_entropy(logits, gold, label_smoothing=0.1, reduction="sum") for logits in (nat, mist))
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    (loss / size).backward()
    (expected / size).backward()
    for (name, one), (_, two) in zip(model.named_parameters(), other.named_parameters(), strict=True):
        if two.grad is not None:
            torch.testing.assert_close(one.grad, two.grad, atol=1e-5, rtol=1e-3, msg=name)


def test_a_mixed_source_of_outputs_that_fill_it_is_the_plain_one(dictionary, shapes):
    limits, lengths = shapes
    src, src_lengths = sources([min(S + 1, limits[0]) for S, _ in lengths], dictionary)
    pseudo, pseudo_lengths = targets([min(T, limits[1]) for _, T in lengths], dictionary)
    pseudo[::2] = pseudo[::2].where(pseudo[::2] != dictionary.eos(), 50)  # [SEP] is added or is there
    marks = dict(limit=limits[0], sep=dictionary.eos(), pad=dictionary.pad())
    mixed, found = mix_source(pseudo, pseudo_lengths, src, src_lengths, **marks)
    full = 0
    for row, length in enumerate(found.tolist()):
        one, other = pseudo[row, : pseudo_lengths[row]].tolist(), src[row, : src_lengths[row]].tolist()
        ends = [*one, dictionary.eos()] if one[-1] != dictionary.eos() else one
        expected = [dictionary.bos(), *ends, *other[1:]]
        if len(expected) > limits[0]:
            expected = [*expected[: limits[0] - 1], dictionary.eos()]
            full += 1
        assert mixed[row, :length].tolist() == expected
        assert (mixed[row, length:] == dictionary.pad()).all()
    assert full >= 3


def by_fairseq(model, folder):
    def generate(rows, lengths, decoding):
        own = NARGenerator([model], model.dictionary, decoding=decoding[0], iterations=decoding[1], keep_repeats=True)
        tokens = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], True, model.dictionary.pad())
        inputs = {"src_tokens": tokens, "src_lengths": torch.tensor(list(map(len, rows)))}
        return [ranked[0] for ranked in own.generate(None, {"net_input": inputs, "lengths": torch.tensor(lengths)})]

    return generate


def by_onnx(model, folder):
    save_onnx(model, str(folder / "onnx"))
    own = OnnxGenerator.from_pretrained(str(folder / "onnx"), threads=1)

    def generate(rows, lengths, decoding):
        given = [Source(row, length - 1) for row, length in zip(rows, lengths)]
        found = own.generate_ids(given, Decoding(*decoding, keep_repeats=True))
        return [
            {"tokens": torch.tensor(one.ids), "positional_scores": torch.tensor(one.scores), "score": one.score}
            for (one,), _ in found
        ]

    return generate


SYSTEMS = {
    "pytorch": (edge_model, by_fairseq),
    "relative positions": (lambda *given: edge_model(*given, rel_pos_bins=8), by_fairseq),
    "onnx engine": (lambda *given: prepare(edge_model(*given), "onnxruntime"), by_fairseq),
    "onnx folder": (edge_model, by_onnx),
    "nat_mass": (lambda dictionary, limits: nat_mass(dictionary, None, *limits), by_fairseq),
}


@pytest.mark.parametrize("system", SYSTEMS.values(), ids=SYSTEMS)
def test_all_decodings_equal_a_plain_loop(dictionary, shapes, system, tmp_path, monkeypatch):
    limits, pairs = shapes
    model, door = system[0](dictionary, limits), system[1]
    generate = door(model, tmp_path)
    tokens, source_lengths = sources([min(S + 1, limits[0]) for S, _ in pairs], dictionary)
    rows = [row[:length].tolist() for row, length in zip(tokens, source_lengths)]
    lengths = [min(T, limits[1]) for _, T in pairs]
    wanted = {tuple(row): length for row, length in zip(rows, lengths)}
    assert len(wanted) == len(rows) and {1, 48} <= set(lengths)
    monkeypatch.setattr(test_generator, "plain_length", lambda model, source: wanted[tuple(source)])
    plain = {
        "single-pass": lambda row, _: plain_fill(model, [dictionary.mask()] * wanted[tuple(row)], row),
        "mist": lambda row, iterations: plain_mist(model, row, iterations)[:2],
        "mask-predict": lambda row, iterations: plain_mask_predict(model, row, iterations),
    }
    for decoding in DECODINGS:
        for row, found in zip(rows, generate(rows, lengths, decoding), strict=True):
            assert_same(found, *plain[decoding[0]](row, decoding[1]), dictionary)


# -- nothing but padding ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "build, changes",
    [(tiny_model, {}), (tiny_model, {"rel_pos_bins": 8}), (nat_mass, {"activation_dropout": 0.0})],
    ids=["mist", "relative positions", "nat_mass"],
)
@pytest.mark.parametrize("training", [False, True])
def test_rows_of_padding_leave_the_others_alone(dictionary, build, changes, training):
    """A source without tokens, and a target without: no other row sees them, and nothing is NaN, nor a gradient."""
    model = build(dictionary, dropout=0.0, attention_dropout=0.0, **changes).train(training)
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
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert len(gradients) > 20 and all(gradient.isfinite().all() for gradient in gradients)


def test_training_with_a_source_of_padding(dictionary):
    """The whole computation; a target has at least its [SEP]."""
    model = tiny_model(dictionary).train()
    sample = batch([9, 4, 13], [3, 1, 4], dictionary)
    inputs = sample["net_input"]
    inputs["src_lengths"][1] = 0
    inputs.update(indices(inputs["src_lengths"], inputs["target_lengths"]))
    loss, _, _ = MistLoss(None, 0.5, 1.0, 1.0, 0.1)(model, sample)
    loss.backward()
    assert loss.isfinite() and all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("guesses", [0, 2])
def test_generation_refuses_rows_of_padding(dictionary, guesses):
    own = NARGenerator([tiny_model(dictionary)], dictionary, guesses=guesses)
    src, src_lengths = sources([9, 4, 13], dictionary)
    none = torch.tensor([9, 0, 13])
    for lengths, asked, message in ((none, None, "a source has 0"), (src_lengths, none, "an output is to have 0")):
        sample = {"net_input": {"src_tokens": src, "src_lengths": lengths}, "lengths": asked}
        with pytest.raises(ValueError, match=f"{message} tokens, expected at least 1"):
            own.generate(None, sample)


def test_an_exported_model_refuses_a_source_without_tokens(dictionary, tmp_path):
    save_onnx(tiny_model(dictionary), str(tmp_path / "onnx"))
    own = OnnxGenerator.from_pretrained(str(tmp_path / "onnx"), threads=1)
    for given in ([[]], [[dictionary.bos(), 50, dictionary.eos()], []]):
        with pytest.raises(ValueError, match=r"a source has no tokens, expected \[CLS\] X \[SEP\]"):
            own.generate_ids([Source(ids) for ids in given], Decoding())


# -- extreme values -----------------------------------------------------------------------------------------------

EXTREME = {
    "large": lambda logits: logits * 1e4,
    "one far above": lambda logits: logits.index_fill(1, torch.tensor([3]), 1e4),
    "one far below": lambda logits: logits.index_fill(1, torch.tensor([3]), -1e4),
    "all equal": lambda logits: torch.full_like(logits, 7.0),
    "impossible tokens": lambda logits: logits.index_fill(1, torch.tensor([0, 3, 36]), float("-inf")),
    "only one possible": lambda logits: torch.full_like(logits, float("-inf")).index_fill(1, torch.tensor([5]), 2.0),
}


@pytest.mark.parametrize("change", EXTREME.values(), ids=EXTREME)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16, torch.float16])
def test_losses_of_extreme_logits_equal_torchs_in_fp64(change, smoothing, precision):
    rows = 70  # more than one chunk
    logits = change(torch.randn(rows, 37, generator=torch.Generator().manual_seed(0))).to(precision)
    target = torch.arange(rows) % 5 + 5 if logits.isfinite().sum() > rows else torch.full((rows,), 5)
    logits.requires_grad_()
    exact = logits.detach().double().requires_grad_()
    loss, nll = smoothed_nll(logits, target, smoothing)
    (gradient,) = torch.autograd.grad(loss, logits)
    expected = F.cross_entropy(exact, target, label_smoothing=smoothing, reduction="sum")
    plain = F.cross_entropy(exact, target, reduction="sum").detach()
    torch.testing.assert_close(loss.detach().double(), expected.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(nll.double(), plain, rtol=1e-5, atol=1e-5)
    assert gradient.dtype == precision and gradient.isfinite().all() and plain.isfinite()
    assert loss.isfinite() or (smoothing and exact.isinf().any())  # what is impossible has no finite share
    if loss.isfinite():
        (of_torch,) = torch.autograd.grad(expected, exact)
        torch.testing.assert_close(gradient.double(), of_torch, rtol=torch.finfo(precision).eps, atol=1e-6)


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
    model = tiny_model(dictionary)
    word = dictionary.index("guitar")
    model.encoder.head.bias.data[word] = bias
    prepare(model, accelerate)
    tokens, lengths = sources([9, 4, 13], dictionary)
    for decoding, iterations in DECODINGS:
        for (one,) in test_generator.generate(model, tokens, lengths, decoding=decoding, iterations=iterations):
            assert one["positional_scores"].isfinite().all() and math.isfinite(one["score"])
            *before, _ = one["tokens"].tolist()
            assert set(before) == {word} if bias > 0 else word not in before
