"""Against a plain mean over transformers' vectors, of a random encoder."""

import sys

import pytest
import torch

from mist_fairseq.scoring.scores import Protocol, score
from mist_fairseq.scoring.similarity import _load
from tests.helpers import bert_state, tiny_vocab, write_bert_folder

OUTPUTS = ["how can I learn the guitar (fast)?", "why is it", "the best way " * 60, ""]
REFERENCES = ["how do I learn the guitar?", "What is the best way to learn it?", "the way", "who is it?"]
SOURCES = ["How can I learn the guitar fast?", "Why is it?", "when", "is it in the way?"]
STEPS = ["lower", "words", "rejoin-quora"]  # which similarity does not see: brackets become -lrb-
STEPPED = Protocol(STEPS, STEPS, ["bleu-1", "similarity", "source-similarity"], group=True)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    pytest.importorskip("sentence_transformers")
    config = {"model_type": "bert", "vocab_size": len(tiny_vocab())}
    return write_bert_folder(tmp_path_factory.mktemp("encoder"), bert_state(len(tiny_vocab())), config)


@pytest.fixture(scope="module")
def cosine(encoder):
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModel.from_pretrained(encoder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(encoder)
    longest = model.config.max_position_embeddings

    def vector(text):
        with torch.no_grad():
            states = model(**tokenizer(text, return_tensors="pt", truncation=True, max_length=longest))
        return states.last_hidden_state[0].mean(0)

    return lambda a, b: 100 * torch.cosine_similarity(vector(a), vector(b), dim=0).item()


def test_cosines_of_mean_vectors(encoder, cosine):
    systems = {"a": OUTPUTS, "copy": SOURCES}
    found = score(systems, REFERENCES, SOURCES, protocol=STEPPED, confidence=True, sentence_encoder=encoder)
    for name, outputs in systems.items():
        expected = sum(map(cosine, outputs, REFERENCES)) / 4, sum(map(cosine, outputs, SOURCES)) / 4
        values = found[name].values
        assert (values["similarity"], values["source-similarity"]) == pytest.approx(expected, abs=1e-3)
        low, high = found[name].intervals["similarity"]
        assert low < values["similarity"] < high
    assert found["copy"].values["source-similarity"] == pytest.approx(100, abs=1e-4)


@pytest.mark.parametrize("order", [1, -1])
def test_of_several_references_the_best(encoder, cosine, order):
    two = REFERENCES[:2][::order]
    outputs, references, sources = ["x", "why is it", "how"], [*two, "why is it"], ["s", "S", "t"]
    found = score({"a": outputs}, references, sources, protocol=STEPPED, sentence_encoder=encoder)["a"]
    assert found.segments == 2
    best = max(cosine("why is it", text) for text in two)
    assert found.values["similarity"] == pytest.approx((best + cosine("how", "why is it")) / 2, abs=1e-3)


def test_without_an_encoder(tmp_path, monkeypatch, encoder):
    given = {"a": OUTPUTS}, REFERENCES, SOURCES
    assert set(score(*given, protocol=STEPPED)["a"].values) == {"bleu-1"}
    with pytest.raises(ValueError, match="similarity needs the folder of a sentence encoder: --sentence-encoder DIR"):
        score(*given, metrics=["similarity"])

    def why(folder):
        found = score(*given, protocol=STEPPED, sentence_encoder=folder)["a"]
        assert set(found.values) == {"bleu-1"} and set(found.failed) == {"similarity", "source-similarity"}
        return found.failed["similarity"]

    assert "nowhere is not a folder: scripts/get_pretrained.py minilm-l6 DIR" in why("nowhere")
    assert f"{tmp_path} is not a sentence encoder's: " in why(tmp_path)
    (tmp_path / "config.json").write_text("{")
    assert f"{tmp_path} is not a sentence encoder's: " in why(tmp_path)
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    _load.cache_clear()
    assert "pip install 'mist-fairseq[similarity]'" in why(encoder)
