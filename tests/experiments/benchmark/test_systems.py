from pathlib import Path

import pytest
import torch

from mist_fairseq.engines.pytorch import PyTorchEngine
from mist_fairseq.experiments.benchmark.inputs import Entry
from tests.experiments.benchmark.helpers import MIST, TRANSFORMER, entry, load, save_checkpoint

BEAM = {"beam": 3, "lenpen": 1.0, "max_len_b": 8}


def answers(system, indices=range(6)):
    sample = system.batch(indices)
    actual = system.read(sample, system.decode(sample))
    return [actual[i][0] for i in indices]


def test_positions_of_source_and_target_may_differ(data):
    arguments = f"{TRANSFORMER} --max-source-positions 40"
    expected = answers(load(entry(data, arguments, options=BEAM)))
    assert answers(load(entry(data, arguments, options=BEAM, engine="huggingface"))) == expected


@pytest.mark.parametrize("engine", ["ctranslate2", "huggingface"])
def test_other_engines_say_what_fairseq_says(data, engine):
    if engine == "ctranslate2":
        pytest.importorskip("ctranslate2")
    expected = answers(load(entry(data, TRANSFORMER, options=BEAM)))
    system = load(entry(data, TRANSFORMER, options=BEAM, engine=engine))
    assert answers(system) == expected and any(expected)
    assert [answers(system, [i])[0] for i in range(6)] == expected, "padding makes no difference"
    assert system.parameters == load(entry(data, TRANSFORMER)).parameters
    forced = load(entry(data, TRANSFORMER, options=BEAM, engine=engine), forced=True)
    for i in range(6):
        sample = forced.batch([i])
        assert forced.read(sample, forced.decode(sample))[i][1] == sample["forced"][1].item()
    system.close()
    forced.close()


def test_converted_folder_is_removed(data):
    pytest.importorskip("ctranslate2")
    system = load(entry(data, TRANSFORMER, engine="ctranslate2"))
    folder = Path(system._folder.name)
    assert (folder / "model/model.bin").is_file() and not (folder / "random.pt").exists()
    system.close()
    assert not folder.exists()


@pytest.mark.parametrize("engine", ["fairseq", "huggingface"])
def test_bf16_of_baselines(data, engine):
    system = load(entry(data, TRANSFORMER, precision="bf16", options=BEAM, engine=engine))
    assert {parameter.dtype for parameter in system.model.parameters()} == {torch.bfloat16}
    assert len(answers(system)) == 6


def test_a_model_that_hugging_face_would_change(data):
    with pytest.raises(ValueError, match="one matrix for all embeddings"):
        load(entry(data, TRANSFORMER.replace("--share-all-embeddings", ""), engine="huggingface"))


OPTIONS = [
    {},
    {"decoding": "mist", "decoding_iterations": 3, "min_length": 4},
    {"decoding": "mask-predict", "decoding_iterations": 3, "length_beam": 3, "max_length": 9, "keep_repeats": True},
]


def decided(system):
    """The same system with larger weights, whose outputs differ from each other."""
    for parameter in system.model.parameters():
        parameter.data *= 5
    return system


@pytest.mark.parametrize("options", OPTIONS)
def test_onnx_says_what_pytorch_says(data, tmp_path, options):
    plain = decided(load(entry(data, MIST)))
    save_checkpoint(plain, tmp_path / "model.pt")
    given = {"path": str(tmp_path / "model.pt"), "data": data, "options": options}
    system, plain = load(Entry("onnx", engine="onnx", **given)), load(Entry("plain", **given))
    for indices in (range(6), [3]):
        sample = system.batch(indices)
        actual, expected = (one.read(sample, one.decode(sample)) for one in (system, plain))
        assert actual == expected and any(tokens for tokens, _ in actual.values())
    assert system.parameters == plain.parameters and system.text([]) == ""
    rounded = load(Entry("int8", engine="onnx", precision="int8", **given))
    assert [len(tokens) > 0 for tokens in answers(rounded)] == [len(tokens) > 0 for tokens in answers(plain)]


def test_onnx_does_the_prescribed_work(data):
    options = {"decoding": "mist", "decoding_iterations": 4, "keep_repeats": True}
    system = load(entry(data, MIST, options=options, engine="onnx"), forced=True)
    sample = system.batch(range(12))
    answers = system.decode(sample)
    assert [len(ids) for ids, _ in answers] == sample["forced"][1].tolist()
    assert len({len(ids) for ids, _ in answers}) > 1 and {passes for _, passes in answers} == {4}
    assert {passes for _, passes in system.read(sample, answers).values()} == {4}


@pytest.mark.parametrize(
    "arguments, keys, message",
    [
        (TRANSFORMER, {}, "engine onnx is for --task mist, not for TransformerModel"),
        (MIST, {"precision": "bf16"}, "precision is 'bf16', expected fp32 or int8"),
        (MIST, {"options": {"accelerate": "none"}}, "engine onnx has no option 'accelerate'"),
        (MIST, {"options": {"decoding_iterations": 2}}, "iterations 2 needs decoding mist or mask-predict"),
    ],
)
def test_onnx_refuses(data, arguments, keys, message):
    with pytest.raises(ValueError, match=message):
        load(entry(data, arguments, engine="onnx", **keys))


@pytest.mark.parametrize("option", ["beams", "decoding_iteration", "precision"])
def test_options_that_nothing_reads(data, option):
    with pytest.raises(ValueError, match=f"option '{option}' is none of its task, model or generation"):
        load(entry(data, MIST, options={option: 3}))


def test_options_of_a_checkpoint(data, tmp_path):
    path = tmp_path / "transformer.pt"
    trained = load(entry(data, TRANSFORMER))
    save_checkpoint(trained, path)
    given = {"path": "transformer.pt", "data": data, "folder": str(tmp_path)}
    again = load(Entry("again", options={"beam": 2, "dropout": 0.2}, **given))
    assert again.generator.beam_size == 2 and again.parameters == trained.parameters
    for option in ("beams", "drop"):
        with pytest.raises(ValueError, match=f"option '{option}'"):
            load(Entry("wrong", options={option: 2}, **given))


def test_our_model_keeps_its_weights_in_bf16_and_says_the_same(data):
    system = load(entry(data, MIST, precision="bf16"))
    encoder = system.model.encoder
    assert encoder.layers[0].qkv.weight.dtype == encoder.head.weight.dtype == torch.bfloat16
    assert encoder.word_embeddings.weight.dtype == encoder.layers[0].ffn_norm.weight.dtype == torch.float32
    plain = load(entry(data, MIST, options={"accelerate": "none"}))
    inputs = system.batch(range(6))["net_input"]
    lengths, special = torch.tensor([5] * 6), system.dictionary.tokenizer.special
    results = []
    for engine in (system.model.engine, PyTorchEngine(plain.model.encoder, special, "bf16", convert=False)):
        state = engine.encode(inputs["src_tokens"], inputs["src_lengths"])
        results.append((state.length_scores, *engine.fill(torch.full((6, 5), special.mask), lengths, state)))
    for kept, cast in zip(*results):
        assert torch.equal(kept, cast)


def test_read_refuses_a_missing_output(data):
    system = load(entry(data, MIST))
    sample = system.batch(range(3))
    with pytest.raises(ValueError, match="2 outputs for 3 sentences"):
        system.read(sample, system.decode(sample)[:2])


def test_arguments_that_fairseq_train_does_not_know(data, capsys):
    with pytest.raises(ValueError, match="fairseq-train does not take the arguments"):
        load(entry(data, "--task mist --arch none"))
