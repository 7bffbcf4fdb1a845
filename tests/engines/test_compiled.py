import shutil

import pytest

from mist_fairseq.engines.compiled import CompiledEncoder
from tests.engines.helpers import assert_same_outputs, generate, prepare
from tests.helpers import sources, tiny_model


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_generates_as_plain_pytorch(dictionary):
    """One layer and one ragged batch: what takes the time is compiling."""
    model, plain = (tiny_model(dictionary, encoder_layers=1) for _ in range(2))
    assert isinstance(prepare(model, "compile").engine, CompiledEncoder)
    tokens, lengths = sources([9, 4, 13], dictionary)
    assert_same_outputs(generate(model, tokens, lengths), generate(plain, tokens, lengths))
