import shutil

import pytest

from mist_fairseq.engines.compiled import CompiledEngine
from mist_fairseq.generate.decoding import Decoding
from tests.generate.plain import Runner, assert_equals_plain, plain_lengths
from tests.helpers import sources, tiny_released


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_generates_as_plain_pytorch(dictionary):
    """One layer and one ragged batch: what takes the time is compiling."""
    run = Runner(tiny_released(dictionary, layers=1, copy_head=True), "compile")
    assert isinstance(run.engine, CompiledEngine)
    tokens, lengths = sources([9, 4, 13], dictionary)
    rows = [row[:length].tolist() for row, length in zip(tokens, lengths)]
    for source, (best,) in zip(rows, run(rows, Decoding())):
        assert_equals_plain(best, run.model, source, "single-pass", 1, plain_lengths(run.model, source)[0])
