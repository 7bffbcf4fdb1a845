import copy

import pytest
import torch
from omegaconf import OmegaConf
from torch._subclasses.fake_tensor import FakeTensorMode

from mist_fairseq.engines.compiled import CompiledEncoder
from mist_fairseq.engines.onnx_runtime import OnnxRuntimeEncoder
from mist_fairseq.mist.glancing import glance, sentence_noise
from mist_fairseq.mist.mixing import mix_source
from mist_fairseq.models.generator import NARGenerator
from mist_fairseq.models.mist import MistModel, PositionLimits
from tests.helpers import batch, decode, encode, tiny_config, tiny_dictionary, tiny_model, tiny_vocab

SOURCES, TARGETS = [9, 4, 13, 2], [5, 12, 1, 7]


def without_dropout(dictionary, **changes):
    return tiny_model(dictionary, dropout=0.0, attention_dropout=0.0, **changes)


def plain_forward(model, inputs, ratio, mixed_in=None):
    """The training computation sentence by sentence, every pass from the start: equations 2-4 with glancing."""
    encoder, dictionary = model.encoder, model.dictionary
    nat, mist, revealed = [], [], 0
    for row in range(len(inputs["src_tokens"])):
        S, T = int(inputs["src_lengths"][row]), int(inputs["target_lengths"][row])
        src, src_length = inputs["src_tokens"][row : row + 1, :S], torch.tensor([S])
        target, length = inputs["target_tokens"][row : row + 1, :T], torch.tensor([T])

        def logits(tokens, source, source_length, length=length):
            return encoder.token_logits(decode(model, tokens, length, encode(model, source, source_length))[0])

        masked = torch.full_like(target, dictionary.mask())
        if ratio:
            first_look = model.predict(logits(masked, src, src_length))[None]
            real = torch.ones_like(target, dtype=torch.bool)
            noise = sentence_noise(inputs["ids"][row : row + 1], T, torch.initial_seed())
            masked, shown = glance(target, first_look, real, noise, ratio, dictionary.mask())
            revealed += int(shown.sum())
        nat.append(logits(masked, src, src_length))
        mixed, mixed_length = mix_source(
            model.predict(nat[-1])[None] if mixed_in is None else mixed_in[row : row + 1, :T],
            length,
            src,
            src_length,
            limit=model.limits.source,
            sep=dictionary.eos(),
            pad=dictionary.pad(),
        )
        mist.append(logits(masked, mixed, mixed_length))
    return torch.cat(nat), torch.cat(mist), revealed


@pytest.mark.parametrize("ratio", [0.0, 0.5])
def test_training_computation_equals_a_plain_loop(dictionary, ratio):
    model = without_dropout(dictionary).train()
    inputs = batch(SOURCES, TARGETS, dictionary)["net_input"]
    with torch.no_grad():
        output = model(**inputs, glancing_ratio=ratio)
        nat, mist, revealed = plain_forward(model, inputs, ratio)
    torch.testing.assert_close(output["nat_logits"], nat, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(output["mist_logits"], mist, atol=1e-4, rtol=1e-4)
    assert torch.equal(output["nat_tokens"], model.predict(nat))
    assert int(output["revealed"]) == revealed and (revealed > 0) == (ratio > 0)


def test_the_reference_can_be_mixed_in(dictionary):
    model = without_dropout(dictionary).train()
    inputs = batch(SOURCES, TARGETS, dictionary)["net_input"]
    with torch.no_grad():
        output = model(**inputs, mist_targets="reference")
        _, mist, _ = plain_forward(model, inputs, 0.0, mixed_in=inputs["target_tokens"])
    torch.testing.assert_close(output["mist_logits"], mist, atol=1e-4, rtol=1e-4)


def test_random_tokens_can_be_mixed_in(dictionary, monkeypatch):
    """As many as the target has, the last [SEP], the sentence's own, others at each update."""
    model = without_dropout(dictionary).train()
    inputs = batch(SOURCES, TARGETS, dictionary)["net_input"]
    mixed = []
    mix = model.mix
    monkeypatch.setattr(model, "mix", lambda pseudo, *others: mixed.append(pseudo) or mix(pseudo, *others))
    with torch.no_grad():
        for seed in (1, 2, 1):
            torch.manual_seed(seed)
            output = model(**inputs, mist_targets="random")
        _, mist, _ = plain_forward(model, inputs, 0.0, mixed_in=mixed[2])
    torch.testing.assert_close(output["mist_logits"], mist, atol=1e-4, rtol=1e-4)
    assert torch.equal(mixed[0], mixed[2]) and not torch.equal(mixed[0], mixed[1])
    tokens = torch.cat([row[: length - 1] for row, length in zip(mixed[0], inputs["target_lengths"])])
    ends = mixed[0].gather(1, inputs["target_lengths"][:, None] - 1)
    assert (ends == dictionary.eos()).all() and len(tokens.unique()) > len(tokens) / 2
    assert not torch.isin(tokens, model.never_predicted).any()
    torch.manual_seed(1)
    part = model._random_targets(*(inputs[name][1:3] for name in ("ids", "target_tokens", "target_lengths")))
    assert torch.equal(part, mixed[0][1:3])


def test_evaluation_does_not_glance(dictionary):
    model = tiny_model(dictionary)
    inputs = batch(SOURCES, TARGETS, dictionary)["net_input"]
    with torch.no_grad():
        output, without = (model(**inputs, glancing_ratio=ratio) for ratio in (0.5, 0.0))
    assert output["revealed"] == 0 and torch.equal(output["nat_logits"], without["nat_logits"])


@pytest.mark.parametrize("mixing, passes", [(True, 2), (False, 1)])
def test_glancing_and_nat_share_one_source_encoding(dictionary, monkeypatch, mixing, passes):
    model = tiny_model(dictionary).train()
    calls = []
    encode = model.encoder.encode_source
    monkeypatch.setattr(model.encoder, "encode_source", lambda *args: calls.append(1) or encode(*args))
    output = model(**batch(SOURCES, TARGETS, dictionary)["net_input"], glancing_ratio=0.5, mixing=mixing)
    assert len(calls) == passes and (output["mist_logits"] is None) == (not mixing)


def test_forward_never_waits_for_a_value(dictionary):
    """On fake tensors whatever reads a value, as a host-device synchronisation would, raises."""
    inputs = batch(SOURCES, TARGETS, dictionary)["net_input"]
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        model = tiny_model(dictionary).train()
        output = model(**{name: mode.from_tensor(value) for name, value in inputs.items()}, glancing_ratio=0.5)
        output["mist_logits"].sum().backward()


def test_never_predicts_pad_cls_mask(dictionary):
    model = tiny_model(dictionary)
    logits = torch.randn(200, len(dictionary))
    logits[:, [dictionary.pad(), dictionary.bos(), dictionary.mask()]] = 100.0
    tokens = model.predict(logits)
    allowed = [i for i in range(len(dictionary)) if i not in dictionary.never_predicted()]
    assert tokens.tolist() == [allowed[int(row[allowed].argmax())] for row in logits]


def test_bf16_gives_gradients_to_all_weights_and_keeps_them_in_fp32(dictionary):
    model = without_dropout(dictionary, untie_head=True).train()
    other = copy.deepcopy(model)
    other.precision = "bf16"
    inputs = batch(SOURCES, TARGETS, dictionary)["net_input"]
    for each in (model, other):
        output = each(**inputs, glancing_ratio=0.0)
        loss = output["nat_logits"].float().logsumexp(-1).sum() + output["length_logits"].logsumexp(-1).sum()
        (loss + output["mist_logits"].float().logsumexp(-1).sum()).backward()
    assert output["nat_logits"].dtype == torch.bfloat16
    for (name, expected), found in zip(model.named_parameters(), other.parameters()):
        assert found.dtype == torch.float32 and found.grad is not None, name
        if expected.grad.norm() > 1e-2:
            similarity = torch.cosine_similarity(expected.grad.flatten(), found.grad.flatten(), dim=0)
            assert similarity > 0.9, (name, float(similarity))


def test_a_checkpoint_brings_its_limits(dictionary):
    trained = tiny_model(dictionary, source=30, target=10)
    limits = PositionLimits(40, 20)
    model = MistModel(tiny_config(), dictionary, limits)
    model.load_state_dict(trained.state_dict())
    assert (limits.source, limits.target) == (30, 10) and model.max_positions() == (30, 10)


def test_another_vocabulary_is_refused(dictionary):
    other = tiny_dictionary([*tiny_vocab()[:-1], "another"])
    with pytest.raises(ValueError, match="another vocabulary than the checkpoint"):
        tiny_model(other).load_state_dict(tiny_model(dictionary).state_dict())
    longer = tiny_dictionary([*tiny_vocab(), "another"])
    with pytest.raises(ValueError, match="another vocabulary than the checkpoint"):
        tiny_model(longer).load_state_dict(tiny_model(dictionary).state_dict())


def test_limits_beyond_the_positions_are_refused(dictionary):
    with pytest.raises(ValueError, match="45 .* 20 = 65 exceed the model's 64 positions"):
        tiny_model(dictionary, source=45, target=20).check_limits()
    with pytest.raises(ValueError, match="32 --length-classes"):
        tiny_model(dictionary, source=20, target=32).check_limits()
    tiny_model(dictionary, source=44, target=20).check_limits()


@pytest.mark.parametrize("trained", ["fp32", "bf16"])
@pytest.mark.parametrize("asked", ["fp32", "bf16"])
def test_inference_is_in_the_precision_of_the_command_line(dictionary, trained, asked):
    model = tiny_model(dictionary, precision=trained)
    cfg = OmegaConf.create({"task": {"precision": asked}, "generation": {}})
    model.prepare_for_inference_(cfg)
    expected = torch.bfloat16 if asked == "bf16" else torch.float32
    assert model.encoder.layers[0].qkv.weight.dtype == model.encoder.length_head.weight.dtype == expected
    assert model.encoder.word_embeddings.weight.dtype == torch.float32
    inputs = batch(SOURCES, TARGETS, dictionary)
    hypotheses = NARGenerator([model], dictionary, precision=asked).generate([model], inputs)
    plain = NARGenerator([tiny_model(dictionary)], dictionary, precision=asked).generate(None, inputs)
    assert [one[0]["tokens"].tolist() for one in hypotheses] == [one[0]["tokens"].tolist() for one in plain]


@pytest.mark.parametrize(
    "task, engine",
    [
        ({"precision": "fp32", "accelerate": "none"}, type(None)),
        ({"precision": "bf16", "accelerate": "none"}, type(None)),
        ({"precision": "fp32", "accelerate": "onnxruntime"}, OnnxRuntimeEncoder),
        ({"precision": "int8", "accelerate": "onnxruntime"}, OnnxRuntimeEncoder),
        ({"precision": "bf16", "accelerate": "compile"}, CompiledEncoder),
        ({"precision": "int8", "accelerate": "auto"}, OnnxRuntimeEncoder),
        ({"precision": "bf16", "accelerate": "auto"}, type(None)),
        ({"precision": "fp32"}, OnnxRuntimeEncoder),  # a task without the option
    ],
)
def test_inference_is_by_the_engine_of_the_command_line(dictionary, task, engine):
    model = tiny_model(dictionary)
    assert model.engine is None and NARGenerator([model], dictionary).encoder is model.encoder
    model.prepare_for_inference_(OmegaConf.create({"task": task, "generation": {}}))
    assert type(model.engine) is engine and model.precision == task["precision"]
    assert NARGenerator([model], dictionary).encoder is (model.engine or model.encoder)
    assert all(not name.startswith("engine") for name in model.state_dict())


def test_an_engine_that_cannot_work_is_refused(dictionary):
    cfg = OmegaConf.create({"task": {"precision": "bf16", "accelerate": "onnxruntime"}, "generation": {}})
    with pytest.raises(ValueError, match="--accelerate onnxruntime has no --precision bf16"):
        tiny_model(dictionary).prepare_for_inference_(cfg)
