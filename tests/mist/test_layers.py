import pytest
import torch
from transformers.models.t5.modeling_t5 import T5Attention

from mist_fairseq.mist.layers import relative_position_bucket


@pytest.mark.parametrize("bins, distance", [(32, 128), (8, 12)])
def test_buckets_equal_t5s(bins, distance):
    relative = torch.arange(-300, 301)
    expected = T5Attention._relative_position_bucket(relative, num_buckets=bins, max_distance=distance)
    assert torch.equal(relative_position_bucket(relative, bins, distance), expected)
