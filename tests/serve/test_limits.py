"""Limits that cannot work. What they do stands in the tests of what they limit."""

import pytest

from mist_fairseq.serve.limits import Limits


@pytest.mark.parametrize(
    "limits, message",
    [
        ({"max_batch": 0}, "--max-batch is 0, expected at least 1"),
        ({"max_wait": -1.0}, "--max-wait is -1.0, expected at least 0"),
        ({"max_wait": float("nan")}, "--max-wait is nan"),
        ({"max_texts": 9, "max_queue": 8}, "--max-texts 9 is more than --max-queue 8"),
    ],
)
def test_limits_that_cannot_work(limits, message):
    with pytest.raises(ValueError, match=message):
        Limits(**limits)
