import re

import pytest
import torch

from mist_fairseq.checkpoints.averaging import average_checkpoints, last_checkpoints
from tests.helpers import tiny_dictionary, tiny_model, tiny_vocab


def write(path, model, **changes):
    """What fairseq-train writes, but for the configuration."""
    state = {"args": None, "cfg": {"name": path.name}, "model": model.state_dict() | changes, "criterion": None}
    state |= {"optimizer_history": [{"num_updates": 7}], "task_state": {}, "last_optimizer_state": {"step": 7}}
    torch.save(state | {"extra_state": {"train_iterator": {"epoch": 3}, "best": 9.0}}, path)
    return path


def test_the_mean(tmp_path):
    models = [tiny_model(seed=seed) for seed in range(3)]
    paths = [write(tmp_path / f"{i}.pt", model) for i, model in enumerate(models)]
    average_checkpoints(paths, tmp_path / "new" / "mean.pt")
    found = torch.load(tmp_path / "new" / "mean.pt", weights_only=True)
    weights = dict(models[0].named_parameters())
    assert found["model"].keys() == models[0].state_dict().keys() > weights.keys()
    for name in weights:
        expected = torch.stack([model.state_dict()[name] for model in models]).mean(0)
        torch.testing.assert_close(found["model"][name], expected)
        assert not torch.equal(expected, models[0].state_dict()[name]) or "norm" in name or "bias" in name
    assert found["model"]["trained_limits"].tolist() == [40, 20]
    assert torch.equal(found["model"]["fingerprint"], models[0].fingerprint)
    # The first one's configuration, and nothing of how far any had been trained.
    assert found["cfg"] == {"name": "0.pt"} and found["last_optimizer_state"] is None
    assert found["optimizer_history"][-1]["num_updates"] == 0 and found["extra_state"]["train_iterator"]["epoch"] == 1


def test_low_precision_is_summed_in_high_precision(tmp_path):
    model = tiny_model()
    values = [256.0, 1.0, 1.0, 1.0, 1.0]  # 256 + 1 is 256 in bf16
    paths = [
        write(tmp_path / f"{i}.pt", model, small=torch.tensor(value, dtype=torch.bfloat16))
        for i, value in enumerate(values)
    ]
    average_checkpoints(paths, tmp_path / "mean.pt")
    mean = torch.load(tmp_path / "mean.pt", weights_only=True)["model"]["small"]
    assert mean.dtype == torch.bfloat16 and mean == 52


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            lambda: tiny_model(tiny_dictionary([*tiny_vocab()[:-1], "other"])),
            "trained with different vocabularies",
        ),
        (lambda: tiny_model(source=30), "trained_limits is [30, 20] and [40, 20]"),
        (lambda: tiny_model(encoder_layers=1), "other.pt has no encoder.layers.1."),
        (lambda: tiny_model(encoder_layers=3), "first.pt has no encoder.layers.2."),
        (lambda: tiny_model(max_positions=65), "position_embeddings.weight has shapes (65, 32) and (64, 32)"),
        (lambda: tiny_model().bfloat16(), "is torch.bfloat16 and torch.float32"),
    ],
)
def test_what_has_no_mean_is_refused(tmp_path, other, message):
    paths = [write(tmp_path / "first.pt", tiny_model()), write(tmp_path / "other.pt", other())]
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        average_checkpoints(paths, tmp_path / "mean.pt")
    assert str(paths[0]) in str(caught.value) and str(paths[1]) in str(caught.value)
    assert not (tmp_path / "mean.pt").exists()


class Code:
    def __reduce__(self):
        return print, ("executed",)


def test_no_code_is_executed(tmp_path, capsys):
    torch.save({"model": Code()}, tmp_path / "code.pt")
    (tmp_path / "text.pt").write_text("no checkpoint")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "weights.pt")
    messages = {"code": "would run code", "text": "no file of plain tensors", "weights": "no weights under"}
    for name, message in messages.items():
        with pytest.raises(ValueError, match=f"{name}.pt is .*{message}"):
            average_checkpoints([tmp_path / f"{name}.pt"], tmp_path / "mean.pt")
    assert capsys.readouterr().out == ""
    with pytest.raises(FileNotFoundError, match="missing.pt"):
        average_checkpoints([tmp_path / "missing.pt"], tmp_path / "mean.pt")
    with pytest.raises(ValueError, match="is one of the checkpoints"):
        average_checkpoints([tmp_path / "text.pt"], tmp_path / "text.pt")


def test_the_last_checkpoints_of_a_folder(tmp_path):
    for name in ("checkpoint9.pt", "checkpoint10.pt", "checkpoint_9_900.pt", "checkpoint_10_1000.pt"):
        (tmp_path / name).touch()
    for name in ("checkpoint_best.pt", "checkpoint_last.pt", "checkpoint11.pt.tmp", "checkpoint.best_bleu_12.5.pt"):
        (tmp_path / name).touch()

    def names(*arguments):
        return [path.name for path in last_checkpoints(tmp_path, *arguments)]

    assert names(2, False) == ["checkpoint10.pt", "checkpoint9.pt"]
    assert names(2, True) == ["checkpoint_10_1000.pt", "checkpoint_9_900.pt"]
    assert names(1, False, 9) == ["checkpoint9.pt"] and names(1, True, 999) == ["checkpoint_9_900.pt"]
    with pytest.raises(ValueError, match="has 1 checkpoints checkpointEPOCH.pt up to 9, expected at least 2"):
        names(2, False, 9)
    with pytest.raises(ValueError, match="0 checkpoints to average"):
        names(0, False)
