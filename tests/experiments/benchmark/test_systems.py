import tempfile

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


def uncut(ranked):
    """Rank as the others do: fairseq counts the score of the end where max_len_b cuts the longest, too."""

    def score(hypothesis):
        scores = hypothesis["positional_scores"]
        return scores[:-1].mean() if len(scores) == BEAM["max_len_b"] + 1 else scores.mean()

    return sorted(ranked, key=score, reverse=True)


@pytest.mark.parametrize("engine", ["ctranslate2", "huggingface"])
def test_other_engines_say_what_fairseq_says(data, engine, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    pytest.importorskip("ctranslate2" if engine == "ctranslate2" else "transformers")
    arguments = f"{TRANSFORMER} --encoder-layers 3"  # under a decoder of one
    save_checkpoint(load(entry(data, arguments), larger=2), tmp_path / "model.pt")
    given = {"path": "model.pt", "folder": str(tmp_path), "data": data}
    for options in ({**BEAM, "beam": 1}, BEAM):
        plain, system = (load(Entry(name, engine=name, options=options, **given)) for name in ("fairseq", engine))
        decode = plain.decode
        monkeypatch.setattr(plain, "decode", lambda sample, decode=decode: list(map(uncut, decode(sample))))
        expected = answers(plain)
        assert answers(system) == expected and len({*map(tuple, expected)}) > 4
    assert [answers(system, [i])[0] for i in range(6)] == expected, "padding makes no difference"
    assert system.parameters == plain.parameters
    forced = load(entry(data, arguments, options=BEAM, engine=engine), forced=True)
    for i in range(6):
        sample = forced.batch([i])
        assert forced.read(sample, forced.decode(sample))[i][1] == sample["forced"][1].item()
    assert not list(tmp_path.glob("tmp*")), "the converted copy is gone"


def test_positions_of_source_and_target_may_differ(data):
    arguments = f"{TRANSFORMER} --max-source-positions 40"
    expected = answers(load(entry(data, arguments, options=BEAM)))
    assert answers(load(entry(data, arguments, options=BEAM, engine="huggingface"))) == expected


@pytest.mark.parametrize("engine", ["fairseq", "huggingface"])
def test_bf16_of_baselines(data, engine):
    system = load(entry(data, TRANSFORMER, precision="bf16", options=BEAM, engine=engine))
    assert {parameter.dtype for parameter in system.model.parameters()} == {torch.bfloat16}
    assert len(answers(system)) == 6


OPTIONS = [
    {},
    {"decoding": "mist", "decoding_iterations": 3, "min_length": 4},
    {"decoding": "mask-predict", "decoding_iterations": 3, "length_beam": 3, "max_length": 9, "keep_repeats": True},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_onnx_says_what_pytorch_says(data, tmp_path, options):
    save_checkpoint(load(entry(data, MIST), larger=5), tmp_path / "model.pt")
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
    with pytest.raises(ValueError, match="11 outputs for 12 sentences"):
        system.read(sample, answers[1:])


@pytest.mark.parametrize(
    "arguments, keys, message",
    [
        (TRANSFORMER, {"engine": "onnx"}, "engine onnx is for --task mist, not for TransformerModel"),
        (MIST, {"engine": "onnx", "precision": "bf16"}, "precision is 'bf16', expected fp32 or int8"),
        (MIST, {"engine": "onnx", "options": {"accelerate": "none"}}, "accelerate is 'none', expected auto, native or"),
        (
            MIST,
            {"engine": "onnx", "options": {"decoding_iterations": 2}},
            "iterations 2 needs decoding mist",
        ),
        (TRANSFORMER.replace("--share-all-embeddings", ""), {"engine": "huggingface"}, "one matrix for all embeddings"),
        ("--task mist --arch none", {}, "fairseq-train does not take the arguments"),
        *((MIST, {"options": {name: 3}}, f"option '{name}' is none of its") for name in ("beams", "precision")),
    ],
)
def test_what_cannot_run_is_refused(data, arguments, keys, message):
    with pytest.raises(ValueError, match=message):
        load(entry(data, arguments, **keys))


def test_options_of_a_checkpoint(data, tmp_path):
    trained = load(entry(data, TRANSFORMER))
    save_checkpoint(trained, tmp_path / "transformer.pt")
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
