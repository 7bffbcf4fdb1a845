"""8-bit integers against plain loops over rows and channels."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mist_fairseq.engines.onnx_builder import Graph
from mist_fairseq.engines.onnx_runtime import start_session


def function_of(add, dtype, shape, int8=True):
    """What a graph computes, in ONNX Runtime. *add* gets the graph and the name of its input, returns its output's."""
    graph = Graph(int8)
    graph.node("Identity", add(graph, graph.input("x", dtype, shape)), output="y")
    model, weights = graph.build({"y": ["N", "O"]}, [], "weights")
    session = start_session(model.SerializeToString(), 1, weights)
    return lambda x: session.run(["y"], {"x": x.astype(dtype)})[0]


def products(weight, int8=True):
    return function_of(lambda graph, x: graph.linear(x, "w", weight), np.float32, ["N", weight.shape[1]], int8)


def rounded(row):
    """The nearest of 255 equidistant values, as an integer from -127 to 127, and what one step is worth."""
    step = max(abs(value) for value in row) / 127
    return [int(np.rint(value / step)) for value in row] if step else [0] * len(row), step


def plain_products(x, weight):
    """Integers times integers, a step for each row of x and for each output channel."""
    result = np.zeros((len(x), len(weight)))
    for n, row in enumerate(x.astype(np.float64)):
        row, step = rounded(row)
        for o, channel in enumerate(weight.double().numpy()):
            channel, channel_step = rounded(channel)
            result[n, o] = step * channel_step * sum(a * b for a, b in zip(row, channel))
    return result


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def uneven(rows, columns):
    """Rows of very different sizes."""
    return torch.from_numpy(numbers(rows, columns, seed=1) * np.logspace(2, -2, rows, dtype=np.float32)[:, None])


@pytest.mark.parametrize("rows, inner, outer", [(1, 32, 96), (7, 33, 17), (3, 64, 1)])
def test_int8_equals_a_plain_loop(rows, inner, outer):
    x = numbers(rows, inner) * np.logspace(-3, 3, rows, dtype=np.float32)[:, None]
    weight = uneven(outer, inner)
    expected = plain_products(x, weight)
    largest = np.abs(x).max(1, keepdims=True) * weight.abs().amax(1).numpy()
    assert (np.abs(products(weight)(x) - expected) <= 1e-5 * largest * inner).all()
    # Rounding is the only difference to the exact product: half a step of either factor at most.
    exact = x.astype(np.float64) @ weight.double().numpy().T
    assert (np.abs(expected - exact) <= largest * inner / 127).all()
    assert (np.abs(products(weight, int8=False)(x) - exact) <= 1e-5 * largest * inner).all()


def test_rows_of_a_table_have_each_its_own_step():
    table, index = uneven(9, 6), np.array([3, 0, 8, 3])
    steps = [(np.array(integers) * step).tolist() for integers, step in map(rounded, table.double().tolist())]
    for int8, expected in ((True, np.array(steps)), (False, table.numpy())):
        look_up = function_of(lambda graph, x: graph.lookup("table", table, x), np.int64, ["N"], int8)
        np.testing.assert_allclose(look_up(index), expected[index], rtol=1e-6, atol=0)


def test_a_table_and_a_product_share_their_weights():
    for int8, names in ((True, {"w", "w.scale"}), (False, {"w"})):
        graph, weight = Graph(int8), uneven(9, 6)
        graph.linear(graph.lookup("w", weight, graph.input("x", np.int64, ["N"])), "w", weight)
        assert graph.weights.keys() == names and graph.weights["w"].dtype == (np.int8 if int8 else np.float32)


def test_int8_sums_of_the_largest_values_do_not_overflow():
    """Two products of 8-bit integers are more than 16 bits hold."""
    for sign in (1, -1):
        x, weight = np.full((2, 64), 3.0, np.float32), torch.full((5, 64), sign * 0.5)
        np.testing.assert_allclose(products(weight)(x), 64 * 1.5 * sign, rtol=1e-5)


def test_int8_of_zeros_is_zero():
    weight = torch.from_numpy(numbers(5, 8))
    weight[2] = 0
    x = numbers(3, 8)
    x[1] = 0
    found = products(weight)(x)
    assert (found[1] == 0).all() and (found[:, 2] == 0).all() and (found[[0, 2]][:, [0, 1, 3, 4]] != 0).all()


PRODUCTS = products(torch.from_numpy(numbers(24, 16, seed=1)))


@settings(max_examples=50)
@given(st.integers(1, 20), st.integers(0, 10**6), st.floats(1e-6, 1e6), st.data())
def test_int8_rows_do_not_depend_on_each_other(size, seed, scale, data):
    """To the last bit, whatever else is in the batch."""
    x = numbers(size, 16, seed=seed)
    row = data.draw(st.integers(0, size - 1))
    alone = PRODUCTS(x[row : row + 1])[0]
    x[np.arange(size) != row] *= scale
    assert (PRODUCTS(x)[row] == alone).all()
