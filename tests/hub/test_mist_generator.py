import copy
import pickle
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from mist_fairseq import MistGenerator
from mist_fairseq.engines import build_engine
from mist_fairseq.engines.onnx_runtime import OnnxEngine
from mist_fairseq.engines.pytorch import PyTorchEngine
from mist_fairseq.generate.decoding import Decoding
from mist_fairseq.models.mist_model import MistModel
from mist_fairseq.release.folder import save_folder
from tests.generate.plain import DECODINGS, Runner, encode_one
from tests.helpers import WORDS, see_gpus, tiny_encoder_decoder, tiny_generator, tiny_released

TEXTS = [" ".join(WORDS[i : i + 2 + i % 7]) for i in range(14)]


@pytest.fixture
def hub():
    return tiny_generator()


@pytest.mark.parametrize("decoding, iterations", DECODINGS)
@pytest.mark.parametrize(
    "build, accelerate", [(tiny_released, "none"), (tiny_released, "onnxruntime"), (tiny_encoder_decoder, "none")]
)
def test_outputs_are_those_of_the_decodings(decoding, iterations, build, accelerate):
    generator, given = (
        tiny_generator(build(), accelerate=accelerate),
        Decoding(decoding, iterations, nbest=2, distinct=False),
    )
    tokenizer, sep = generator.tokenizer, generator.tokenizer.special.sep
    outputs = generator.generate(TEXTS, decoding=given, batch_size=5, return_scores=True)
    for text, ranked in zip(TEXTS, outputs):
        (expected,) = Runner(build())([generator.encode(text).ids], given)
        for output, candidate in zip(ranked, expected, strict=True):
            kept = [t for t in tokenizer.text_positions(candidate["tokens"], False) if candidate["tokens"][t] != sep]
            assert output.text == output.history[-1] == tokenizer.decode([candidate["tokens"][t] for t in kept])
            assert output.score == pytest.approx(candidate["score"], abs=1e-4)
            assert output.steps == candidate["steps"] == len(output.history)
            assert output.tokens == [tokenizer.symbols[candidate["tokens"][t]] for t in kept]
            assert output.token_scores == pytest.approx(candidate["scores"][kept].tolist(), abs=1e-4)


def test_lengths_are_those_asked_for(hub):
    outputs = hub.generate(TEXTS, lengths=[1 + i % 9 for i in range(14)], keep_repeats=True, return_scores=True)
    for i, output in enumerate(outputs):
        # Untrained, it does not end in [SEP], and may have some in the middle, which are left out.
        assert 1 <= len(output.tokens) <= 2 + i % 9 and output.length_scores == {}
    expected = hub.generate(TEXTS, min_length=4, max_length=4, keep_repeats=True)
    assert hub.generate(TEXTS, lengths=4, keep_repeats=True) == expected


def test_length_scores_are_the_classifiers(hub):
    (output,) = hub.generate(TEXTS[:1], min_length=3, max_length=9, return_scores=True)
    probabilities = list(output.length_scores.values())
    assert sorted(output.length_scores) == list(range(3, 10)) and sum(probabilities) == pytest.approx(1, abs=1e-5)
    assert probabilities == sorted(probabilities, reverse=True)
    state = encode_one(hub, hub.encode(TEXTS[0]).ids)
    expected = hub.encoder.length_logits(state)[0, 4:11].softmax(0).tolist()
    assert [output.length_scores[length] for length in range(3, 10)] == pytest.approx(expected, abs=1e-5)


def test_a_released_folder_generates_the_same(tmp_path, hub):
    save_folder(tiny_released(), str(tmp_path), "")
    loaded = MistGenerator.from_pretrained(str(tmp_path), accelerate="none")
    first, second = (one.generate(TEXTS, decoding="mist", return_scores=True, batch_size=4) for one in (hub, loaded))
    assert first == second
    assert MistModel.from_pretrained(str(tmp_path)).generate(TEXTS[:3]) == hub.generate(TEXTS[:3])


def test_conventions_of_fairseqs_hub(hub):
    assert isinstance(hub, torch.nn.Module) and hub.device == torch.device("cpu")
    assert hub.to("cpu") is hub and hub.eval() is hub and hub.float() is hub
    expected = hub.generate(TEXTS)
    assert hub(TEXTS) == expected
    assert hub.train().generate(TEXTS) == expected, "dropout is off"


def test_half_precision_computes_in_it(hub):
    expected = hub.generate(TEXTS)
    hub.half()
    assert all(parameter.dtype == torch.float16 for parameter in hub.parameters())
    texts = hub.generate(TEXTS)
    assert sum(a == b for a, b in zip(texts, expected)) >= 10
    hub.float()
    assert hub.generate(TEXTS[:2])


def test_an_engine_follows_the_weights():
    hub = tiny_generator(accelerate="onnxruntime")
    before, engine = hub.generate(TEXTS), hub.engine
    assert isinstance(engine, OnnxEngine)
    hub.encoder.head.bias.data[60:] += torch.linspace(-50, 50, len(hub.tokenizer.symbols) - 60)
    hub.to(torch.float32)
    assert hub.engine is not engine and hub.generate(TEXTS) != before
    with pytest.raises(ValueError, match="needs weights in fp32"):
        hub.half().generate(TEXTS)
    automatic = tiny_generator(accelerate="auto")
    assert isinstance(automatic.engine, OnnxEngine) and isinstance(automatic.half().engine, PyTorchEngine)


def test_an_engine_is_built_where_the_model_is_used(monkeypatch):
    """So one for GPUs may be asked for before the model is moved there; what never works is refused at once."""
    generator = tiny_generator(accelerate="cudagraph")
    with pytest.raises(ValueError, match="--accelerate cudagraph is for GPUs, the model is on cpu"):
        generator.generate(TEXTS)
    generator.to("meta")
    with pytest.raises(ValueError, match="--accelerate cudagraph is for GPUs, the model is on meta"):
        _ = generator.engine
    for accelerate, precision, message in (
        ("cudagraphs", "fp32", "--accelerate is 'cudagraphs', expected one of"),
        ("auto", "fp8", "precision is 'fp8', expected one of fp32, bf16, int8"),
        ("cudagraph", "int8", "--accelerate cudagraph has no --precision int8: use --accelerate native or onnxruntime"),
    ):
        with pytest.raises(ValueError, match=message):
            tiny_generator(accelerate=accelerate, precision=precision)
    with pytest.raises(ValueError, match=r"--accelerate cudagraph is for mist_\* architectures"):
        tiny_generator(tiny_encoder_decoder(), accelerate="cudagraph")


def test_threads_that_begin_at_once_share_an_engine(monkeypatch):
    generator, built = tiny_generator(accelerate="none"), []

    def slowly(*given):
        time.sleep(0.1)
        built.append(build_engine(*given))
        return built[-1]

    monkeypatch.setattr("mist_fairseq.hub.mist_generator.build_engine", slowly)
    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(lambda _: generator.engine, range(4)))) == len(built) == 1


def test_device(tmp_path, monkeypatch):
    """By default a loaded model goes to a GPU if there is one, a model that is there already stays."""
    released, moved = tiny_released(), []
    save_folder(released, str(tmp_path), "")
    monkeypatch.setattr(MistGenerator, "to", lambda self, device: moved.append(device))
    tiny_generator(released)
    see_gpus(monkeypatch, 0)
    MistGenerator.from_pretrained(str(tmp_path))
    see_gpus(monkeypatch, 2)
    for device in ("auto", "cpu", "cuda:1", torch.device("cuda")):
        MistGenerator.from_pretrained(str(tmp_path), device=device)
    MistGenerator.from_pretrained(str(tmp_path), precision="int8")
    MistGenerator(released.encoder, released.tokenizer, released.limits, device="cuda:1")
    assert moved == ["cpu", "cuda", "cpu", "cuda:1", "cuda", "cpu", "cuda:1"]
    with pytest.raises(ValueError, match="device is 'cuda:2', but torch"):  # before anything is read
        MistGenerator.from_pretrained(str(tmp_path / "none"), device="cuda:2")


@pytest.mark.parametrize("accelerate", ["none", "onnxruntime"])
def test_copies_are_independent(accelerate):
    hub = tiny_generator(accelerate=accelerate)
    expected, engine = hub.generate(TEXTS), hub.engine
    for other in (copy.deepcopy(hub), pickle.loads(pickle.dumps(hub))):
        assert other.generate(TEXTS) == expected
        assert other.encoder is not hub.encoder and other.engine is not engine
        other.encoder.head.bias.data.zero_()
    assert hub.engine is engine and hub.generate(TEXTS) == expected


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_precisions(hub, precision):
    texts = tiny_generator(precision=precision, accelerate="auto").generate(TEXTS)
    assert len(texts) == len(TEXTS) and sum(a == b for a, b in zip(texts, hub.generate(TEXTS))) >= 5


def test_a_text_does_not_depend_on_the_others(hub):
    together = hub.generate(TEXTS, decoding="mist", batch_size=14)
    assert together == [hub.generate([text], decoding="mist")[0] for text in TEXTS]
    assert together[::-1] == hub.generate(TEXTS[::-1], decoding="mist", batch_size=3)


def test_what_from_pretrained_cannot_read(tmp_path, minilm):
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*none: give an existing one, or a name"):
        MistGenerator.from_pretrained(str(tmp_path / "none"))
    with pytest.raises(FileNotFoundError, match=r"has no config.json: export the model again"):
        MistGenerator.from_pretrained(str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*best.pt"):
        MistGenerator.from_pretrained(str(tmp_path), checkpoint_file="best.pt")
    with pytest.raises(ValueError, match=r"its format is 'bert', .* a pre-trained encoder must be trained first"):
        MistGenerator.from_pretrained(minilm)


def test_hubconf(tmp_path):
    save_folder(tiny_released(), str(tmp_path), "")
    model = torch.hub.load(str(Path(__file__).parents[2]), "mist", str(tmp_path), source="local", accelerate="none")
    assert model.generate(TEXTS[:2]) == tiny_generator().generate(TEXTS[:2])


def test_a_name_on_the_hub(tmp_path, hub, hub_server):
    save_folder(tiny_released(), str(tmp_path / "released"), "# A card")
    files = {path.name: path.read_bytes() for path in (tmp_path / "released").iterdir()}
    commit = hub_server.add("org/tiny", files)
    for name in ("org/tiny", f"org/tiny@{commit}"):
        assert MistGenerator.from_pretrained(name, accelerate="none").generate(TEXTS) == hub.generate(TEXTS)
    assert "README.md" not in hub_server.fetched()
    with pytest.raises(FileNotFoundError, match=r"^there is no folder org/none, and no such model on http"):
        MistGenerator.from_pretrained("org/none")
    hub_server.add("org/bert", files | {"config.json": b'{"model_type": "bert"}'})
    hub_server.requests.clear()
    with pytest.raises(ValueError, match=r"its format is 'bert', .* a pre-trained encoder must be trained first$"):
        MistGenerator.from_pretrained("org/bert")
    assert hub_server.fetched() == ["config.json"]


@pytest.mark.parametrize("build", [tiny_released, tiny_encoder_decoder])
def test_a_generator_is_saved_as_it_was_exported(tmp_path, build):
    """In fp32, too, where it computes in less: the weights are rounded then."""
    hub = tiny_generator(build())
    names = hub.save_pretrained(str(tmp_path / "saved"))
    assert sorted(names) == sorted(path.name for path in (tmp_path / "saved").iterdir())
    save_folder(build(), str(tmp_path / "exported"), "")
    for name in ("config.json", "dict.txt", "model.safetensors"):
        assert (tmp_path / "saved" / name).read_bytes() == (tmp_path / "exported" / name).read_bytes()
    assert "\n# saved\n" in (tmp_path / "saved" / "README.md").read_text()
    with pytest.raises(FileExistsError, match="choose another folder"):
        hub.save_pretrained(str(tmp_path / "saved"))
    hub.half().save_pretrained(str(tmp_path / "saved"), overwrite=True)
    again = MistGenerator.from_pretrained(str(tmp_path / "saved"), accelerate="none")
    for name, value in again.encoder.state_dict().items():
        assert value.dtype == torch.float32 and torch.equal(value, hub.encoder.state_dict()[name].float())
