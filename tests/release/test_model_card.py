import json

import pytest
import yaml
from omegaconf import OmegaConf

from mist_fairseq.release.model_card import Description, model_card
from tests.helpers import tiny_encoder_decoder, tiny_released

CFG = {
    "criterion": {"glancing_ratio": 0.5, "mist_loss_factor": 1.0, "label_smoothing": 0.1},
    "optimizer": {"_name": "bert_adamw", "weight_decay": 0.01},
    "lr_scheduler": None,
    "optimization": {"lr": [0.0002], "max_update": 600},
    "model": {"pretrained": "/home/someone/minilm"},
}


def scores(path, **changes):
    content = {
        "data": "Quora",
        "subset": "test",
        "protocol": "quora",
        "command": "python scripts/compare_decodings.py DATA",
        "decodings": [
            {"decoding": "single-pass", "iterations": 1, "values": {"bleu-4": 14.704, "rouge-l": 52.82}},
            {"decoding": "mist", "iterations": 3, "values": {"bleu-4": 15.19, "rouge-l": 53.29}},
            {"decoding": "copy of the source", "iterations": 0, "values": {"bleu-4": 32.6, "rouge-l": 60}},
        ],
    }
    path.write_text(json.dumps({**content, **changes}))
    return str(path)


def card(released=None, **changes):
    given = {"name": "quora-mist", "data": "Quora question pairs", "licence": "mit", **changes}
    return model_card(Description(**given), released or tiny_released(), OmegaConf.create(CFG), 600)


def test_a_card_tells_data_settings_scores_and_licence(tmp_path):
    text = card(scores=[scores(tmp_path / "scores.json")], notes="For questions.", language="en")
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "license": "mit",
        "language": "en",
        "library_name": "mist_fairseq",
        "pipeline_tag": "text2text-generation",
    }
    assert body.lstrip().startswith("# quora-mist\n")
    for line in (
        "For questions.",
        "Quora question pairs",
        "| updates | 600 |",
        "| glancing_ratio | 0.5 |",
        "| optimizer | bert_adamw |",
        "| pretrained | minilm |",
        "Quora (test set, protocol quora)",
        "| single-pass, 1 iteration | 14.70 | 52.82 |",
        "| mist, 3 iterations | 15.19 | 53.29 |",
        "| copy of the source | 32.60 | 60.00 |",
        "The weights: mit.",
    ):
        assert line in body.splitlines()
    assert "at most 40 tokens and writes at most 19" in body and "someone" not in body


def test_the_kind_and_size_of_the_model_and_no_scores():
    assert "None were given" in card()
    for released, kind in ((tiny_released(), "mist"), (tiny_encoder_decoder(), "nat_mass")):
        millions = sum(weight.numel() for weight in released.encoder.parameters()) / 1e6
        assert f"({kind}, {millions:.1f} million parameters)" in card(released)


@pytest.mark.parametrize("changes", [{"decodings": []}, {"decodings": [{}]}, {"decodings": None}])
def test_what_holds_no_scores_is_refused(tmp_path, changes):
    path = scores(tmp_path / "scores.json", **changes)
    with pytest.raises(ValueError, match=r"scores.json holds no scores that scripts/compare_decodings.py wrote"):
        card(scores=[path])
    with pytest.raises(FileNotFoundError):
        card(scores=[str(tmp_path / "none.json")])


@pytest.mark.parametrize("given, shown", [("org/name@v1", "org/name@v1"), ("./runs/minilm", "minilm"), ("/a/b", "b")])
def test_a_card_names_what_it_started_from_but_no_place_on_a_machine(given, shown):
    text = model_card(Description("tiny"), tiny_released(), {"model": {"pretrained": given}})
    assert f"| pretrained | {shown} |" in text and 'from_pretrained("DIR")' in text
    assert 'from_pretrained("org/tiny")\n' in model_card(Description("tiny", hub_name="org/tiny"), tiny_released())
