"""CUDA graphs: the tests of a CPU, where the replay is stood in for, with real ones."""

import pytest

from tests.engines.test_cuda_graph import *  # noqa: F403

pytestmark = pytest.mark.gpu
