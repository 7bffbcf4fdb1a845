import copy
import pickle
from pathlib import Path

import pytest
import torch

from mist_fairseq import MistGenerator
from mist_fairseq.engines.onnx_runtime import OnnxRuntimeEncoder
from mist_fairseq.models.generator import NARGenerator
from mist_fairseq.models.mist import MistModel
from mist_fairseq.release.folder import save_folder
from tests.helpers import WORDS, encode, tiny_config, tiny_model
from tests.models.baselines.test_nat_mass import build as nat_mass

TEXTS = [" ".join(WORDS[i : i + 2 + i % 7]) for i in range(14)]
DECODINGS = [("single-pass", 1), ("mist", 3), ("mask-predict", 3)]


@pytest.fixture
def hub():
    return MistGenerator(tiny_model(), accelerate="none")


def one_source(dictionary, text):
    ids = torch.cat([torch.tensor([dictionary.bos()]), dictionary.encode_line(text).long()])[None]
    return ids, torch.tensor([ids.shape[1]])


def directly(model, text, **options):
    """What fairseq's commands get for one text."""
    generator = NARGenerator([model], model.dictionary, **options)
    sample = {"net_input": dict(zip(("src_tokens", "src_lengths"), one_source(model.dictionary, text)))}
    return generator.generate(None, sample)[0]


@pytest.mark.parametrize("decoding, iterations", DECODINGS)
@pytest.mark.parametrize("accelerate", ["none", "onnxruntime"])
def test_outputs_are_those_of_fairseqs_commands(decoding, iterations, accelerate):
    model = tiny_model()
    outputs = MistGenerator(tiny_model(), accelerate=accelerate).generate(
        TEXTS, decoding=decoding, iterations=iterations, nbest=2, batch_size=5, return_scores=True
    )
    for text, ranked in zip(TEXTS, outputs):
        expected = directly(model, text, decoding=decoding, iterations=iterations, length_beam=2)
        for output, hypothesis in zip(ranked, expected):
            assert output.text == model.dictionary.string(hypothesis["tokens"])
            assert output.score == pytest.approx(float(hypothesis["score"]), abs=1e-4)
            assert output.steps == hypothesis["steps"] == len(output.history)
            assert output.history[-1] == output.text
            kept = hypothesis["tokens"] != model.dictionary.eos()
            assert output.token_scores == pytest.approx(hypothesis["positional_scores"][kept].tolist(), abs=1e-4)


def test_lengths_are_those_asked_for(hub):
    outputs = hub.generate(TEXTS, lengths=[1 + i % 9 for i in range(14)], keep_repeats=True, return_scores=True)
    for i, output in enumerate(outputs):
        # Untrained, it does not end in [SEP], and may have some in the middle, which are left out.
        assert 1 <= len(output.tokens) <= 2 + i % 9 and output.length_scores == {}
    masked = [directly(hub.model, text, min_length=4, max_length=4, keep_repeats=True)[0] for text in TEXTS]
    assert hub.generate(TEXTS, lengths=4, keep_repeats=True) == [
        hub.model.dictionary.string(hypothesis["tokens"]) for hypothesis in masked
    ]


def test_length_scores_are_the_classifiers(hub):
    (output,) = hub.generate(TEXTS[:1], min_length=3, max_length=9, return_scores=True)
    probabilities = list(output.length_scores.values())
    assert sorted(output.length_scores) == list(range(3, 10)) and sum(probabilities) == pytest.approx(1, abs=1e-5)
    assert probabilities == sorted(probabilities, reverse=True)
    state = encode(hub.model, *one_source(hub.model.dictionary, TEXTS[0]))
    expected = hub.model.encoder.length_logits(state)[0, 4:11].softmax(0).tolist()
    assert [output.length_scores[length] for length in range(3, 10)] == pytest.approx(expected, abs=1e-5)


def test_a_released_folder_generates_the_same(tmp_path, hub):
    save_folder(tiny_model(), tiny_config(), str(tmp_path), "")
    loaded = MistGenerator.from_pretrained(str(tmp_path), accelerate="none")
    first, second = (one.generate(TEXTS, decoding="mist", return_scores=True, batch_size=4) for one in (hub, loaded))
    assert first == second
    assert MistModel.from_pretrained(str(tmp_path)).generate(TEXTS[:3]) == hub.generate(TEXTS[:3])


def test_conventions_of_fairseqs_hub(hub):
    assert isinstance(hub, torch.nn.Module) and hub.device == torch.device("cpu")
    assert hub.to("cpu") is hub and hub.eval() is hub and hub.float() is hub
    expected = hub.generate(TEXTS)
    assert hub(TEXTS) == expected
    hub.train()
    assert hub.generate(TEXTS) == expected  # without dropout whatever the mode is


def test_half_precision_computes_in_it(hub):
    expected = hub.generate(TEXTS)
    hub.half()
    assert all(parameter.dtype == torch.float16 for parameter in hub.parameters())
    texts = hub.generate(TEXTS)
    assert sum(a == b for a, b in zip(texts, expected)) >= 10
    hub.float()
    assert hub.generate(TEXTS[:2])


def test_an_engine_follows_the_weights():
    hub = MistGenerator(tiny_model(), accelerate="onnxruntime")
    before, engine = hub.generate(TEXTS), hub.model.engine
    assert isinstance(engine, OnnxRuntimeEncoder)
    hub.model.encoder.head.bias.data[60:] += torch.linspace(-50, 50, len(hub.tokenizer.symbols) - 60)
    hub.to(torch.float32)
    assert hub.model.engine is not engine and hub.generate(TEXTS) != before
    with pytest.raises(ValueError, match="needs weights in fp32"):
        hub.half()
    automatic = MistGenerator(tiny_model())
    assert isinstance(automatic.model.engine, OnnxRuntimeEncoder)
    assert automatic.half().model.engine is None


@pytest.mark.parametrize("accelerate", ["none", "onnxruntime"])
def test_copies_are_independent(accelerate):
    hub = MistGenerator(tiny_model(), accelerate=accelerate)
    expected, engine = hub.generate(TEXTS), hub.model.engine
    for other in (copy.deepcopy(hub), pickle.loads(pickle.dumps(hub))):
        assert other.generate(TEXTS) == expected
        assert other.model is not hub.model and (engine is None or other.model.engine is not engine)
        other.model.encoder.head.bias.data.zero_()
    assert hub.model.engine is engine and hub.generate(TEXTS) == expected


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_precisions(hub, precision):
    texts = MistGenerator(tiny_model(), precision=precision).generate(TEXTS)
    assert len(texts) == len(TEXTS) and sum(a == b for a, b in zip(texts, hub.generate(TEXTS))) >= 5


def test_a_wrong_precision_is_refused():
    with pytest.raises(ValueError, match="precision is 'FP32', expected one of fp32, bf16, int8"):
        MistGenerator(tiny_model(), precision="FP32")


def test_an_encoder_decoder_generates_too(dictionary):
    model = nat_mass(dictionary)
    expected = [dictionary.string(directly(model, text)[0]["tokens"]) for text in TEXTS]
    assert MistGenerator(model).generate(TEXTS, batch_size=3) == expected


def test_a_text_does_not_depend_on_the_others(hub):
    together = hub.generate(TEXTS, decoding="mist", batch_size=14)
    assert together == [hub.generate([text], decoding="mist")[0] for text in TEXTS]
    assert together[::-1] == hub.generate(TEXTS[::-1], decoding="mist", batch_size=3)


def test_what_from_pretrained_cannot_read(tmp_path, minilm):
    with pytest.raises(FileNotFoundError, match=r"has no config.json: export the model again"):
        MistGenerator.from_pretrained(str(tmp_path / "none"))
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*best.pt"):
        MistGenerator.from_pretrained(str(tmp_path), checkpoint_file="best.pt")
    with pytest.raises(ValueError, match=r"its format is 'bert', .* a pre-trained encoder must be trained first"):
        MistGenerator.from_pretrained(minilm)


def test_hubconf(tmp_path):
    save_folder(tiny_model(), tiny_config(), str(tmp_path), "")
    model = torch.hub.load(str(Path(__file__).parents[2]), "mist", str(tmp_path), source="local", accelerate="none")
    assert model.generate(TEXTS[:2]) == MistGenerator(tiny_model(), accelerate="none").generate(TEXTS[:2])
