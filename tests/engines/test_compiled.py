import shutil

import pytest

from mist_fairseq.engines.compiled import CompiledEncoder
from tests.engines.helpers import DECODINGS, assert_same_outputs, generate, prepare
from tests.helpers import sources, tiny_model


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_generates_as_plain_pytorch(dictionary):
    """Batches of several sizes, with and without padding; compiled once."""
    model, plain = (tiny_model(dictionary, encoder_layers=1) for _ in range(2))
    assert isinstance(prepare(model, "compile").engine, CompiledEncoder)
    for lengths in ([9, 4, 13], [7], [5, 5]):
        tokens, lengths = sources(lengths, dictionary)
        for decoding, iterations in DECODINGS:
            options = dict(decoding=decoding, iterations=iterations)
            assert_same_outputs(generate(model, tokens, lengths, **options), generate(plain, tokens, lengths, **options))
