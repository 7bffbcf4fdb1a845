"""fairseq's model around the encoder: checkpoints, limits, precision and engine."""

from functools import partial

import pytest
import torch
from omegaconf import OmegaConf

from mist_fairseq.engines.compiled import CompiledEngine
from mist_fairseq.engines.onnx_runtime import OnnxEngine
from mist_fairseq.engines.pytorch import PyTorchEngine
from mist_fairseq.mist.config import PositionLimits
from mist_fairseq.mist.objective import Batch, Objective
from mist_fairseq.models.mist_model import MistModel
from tests.helpers import batch, tiny_config, tiny_dictionary, tiny_model, tiny_vocab
from tests.mist.test_objective import watch_logits
from tests.models.baselines.test_nat_mass import build as nat_mass


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_training_step_is_the_objectives(dictionary, precision):
    model = tiny_model(dictionary, precision=precision)
    inputs, objective = batch([9, 4], [5, 12], dictionary)["net_input"], Objective()
    passes = watch_logits(model)
    found = model(**inputs, objective=objective)
    passes = passes[:]
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        expected = objective.predict(model.encoder, Batch(**inputs), dictionary.tokenizer.special, 40)
    assert torch.equal(found.mist.loss, expected.mist.loss) and torch.equal(found.mist.tokens, expected.mist.tokens)
    assert [logits.dtype for logits in passes] == 2 * [{"fp32": torch.float32, "bf16": torch.bfloat16}[precision]]


def test_fairseq_tells_the_number_of_updates(dictionary):
    model, inputs = tiny_model(dictionary).train(), batch([9, 4], [5, 12], dictionary)["net_input"]
    objective = Objective(glancing_ratio=0.0, order_agnostic_from=3)
    losses = []
    for updates in (2, 3):
        torch.manual_seed(1)  # of dropout
        model.set_num_updates(updates)
        losses.append(float(model(**inputs, objective=objective).nat.loss))
    assert losses[1] < losses[0]


MODERN = {"pre_norm": True, "gated_ffn": True, "without_biases": True, "rotary_base": 1e4, "local_rotary_base": 1e3}
FAMILIES = [{}, {"untie_head": True}, {"rel_pos_bins": 8}, {"embedding_size": 16, "shared_layers": True}]
FAMILIES += [{**MODERN, "local_window": 4, "global_every": 2}, {"copy_head": True}]


@pytest.mark.parametrize("build", [*(partial(tiny_model, **sizes) for sizes in FAMILIES), nat_mass])
@pytest.mark.parametrize("factors", [(1.0, 1.0), (0.0, 1.0), (0.0, 0.0)])
def test_every_weight_has_a_gradient(dictionary, build, factors):
    """So no --find-unused-parameters; where the length loss counts for nothing, its gradient is 0."""
    model, objective = build(dictionary).train(), Objective(0.5, *factors)
    inputs = batch([9, 4], [5, 12], dictionary)["net_input"]
    objective.losses(model(**inputs, objective=objective), Batch(**inputs))[0].backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None] == []


def test_an_autocast_of_fairseqs_is_not_cancelled(dictionary):
    """That of --amp, which is of fp16 and on a GPU."""
    model, inputs = tiny_model(dictionary), batch([9], [5], dictionary)["net_input"]
    passes = watch_logits(model)
    with torch.autocast("cpu", torch.bfloat16):
        model(**inputs, objective=Objective())
        assert [logits.dtype for logits in passes] == 2 * [torch.bfloat16]


def test_a_checkpoint_brings_its_limits(dictionary):
    trained = tiny_model(dictionary, source=30, target=10)
    limits = PositionLimits(40, 20)
    model = MistModel(tiny_config(), dictionary, limits)
    model.load_state_dict(trained.state_dict())
    assert (limits.source, limits.target) == (30, 10) and model.max_positions() == (30, 10)


def test_another_vocabulary_is_refused(dictionary):
    for symbols in ([*tiny_vocab()[:-1], "another"], [*tiny_vocab(), "another"]):
        with pytest.raises(ValueError, match="another vocabulary than the checkpoint"):
            tiny_model(tiny_dictionary(symbols)).load_state_dict(tiny_model(dictionary).state_dict())


def test_limits_beyond_the_positions_are_refused(dictionary):
    with pytest.raises(ValueError, match="45 .* 20 = 65 exceed the model's 64 positions"):
        tiny_model(dictionary, source=45, target=20).check_limits()
    tiny_model(dictionary, source=44, target=20).check_limits()


def test_what_is_released_has_the_names_of_the_checkpoint(dictionary):
    model = tiny_model(dictionary, source=30, target=10)
    state, expected = model.released.state(), model.state_dict()
    assert state.keys() == expected.keys() and all(torch.equal(state[name], expected[name]) for name in state)
    assert model.released.limits is model.limits and model.released.tokenizer is dictionary.tokenizer


@pytest.mark.parametrize(
    "task, engine",
    [
        ({"precision": "fp32", "accelerate": "none"}, PyTorchEngine),
        ({"precision": "bf16", "accelerate": "none"}, PyTorchEngine),
        ({"precision": "int8", "accelerate": "onnxruntime"}, OnnxEngine),
        ({"precision": "bf16", "accelerate": "compile"}, CompiledEngine),
        ({"precision": "bf16", "accelerate": "auto"}, PyTorchEngine),
        ({"precision": "fp32"}, OnnxEngine),  # a task without the option
    ],
)
def test_inference_is_by_the_engine_and_precision_of_the_command_line(dictionary, task, engine):
    model = tiny_model(dictionary, precision="bf16" if task["precision"] == "fp32" else "fp32")
    assert model.engine is None
    model.prepare_for_inference_(OmegaConf.create({"task": task, "generation": {}}))
    assert type(model.engine) is engine
    half = torch.bfloat16 if task["precision"] == "bf16" else torch.float32
    assert model.encoder.layers[0].qkv.weight.dtype == model.encoder.length_head.weight.dtype == half
    assert model.encoder.word_embeddings.weight.dtype == torch.float32
    assert all(not name.startswith("engine") for name in model.state_dict())


def test_an_engine_that_cannot_work_is_refused(dictionary):
    cfg = OmegaConf.create({"task": {"precision": "bf16", "accelerate": "onnxruntime"}, "generation": {}})
    with pytest.raises(ValueError, match="--accelerate onnxruntime has no --precision bf16"):
        tiny_model(dictionary).prepare_for_inference_(cfg)
