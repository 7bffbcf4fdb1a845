"""Models as fairseq-generate has them after preparing them for inference."""

import pytest
import torch
from omegaconf import OmegaConf

from tests.models.test_generator import LENGTHS, generate

DECODINGS = [("single-pass", 1), ("mist", 3), ("mask-predict", 3)]


def prepare(model, accelerate, precision="fp32"):
    """The same model, with the engine of this command line."""
    task = {"precision": precision, "accelerate": accelerate}
    model.prepare_for_inference_(OmegaConf.create({"task": task, "generation": {}}))
    return model


def assert_same_outputs(found, expected, tolerance=1e-4):
    """Lists of hypotheses with the same tokens in the same order, and all but the same scores."""
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected):
        assert [one["tokens"].tolist() for one in ours] == [one["tokens"].tolist() for one in theirs]
        for one, other in zip(ours, theirs):
            assert one["steps"] == other["steps"]
            assert float(one["score"]) == pytest.approx(float(other["score"]), abs=tolerance)
            torch.testing.assert_close(
                one["positional_scores"], other["positional_scores"], atol=tolerance, rtol=0, check_device=False
            )


__all__ = ["DECODINGS", "LENGTHS", "assert_same_outputs", "generate", "prepare"]
