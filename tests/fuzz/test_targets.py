"""Every target with inputs that hypothesis makes of its seeds: a few always, many if asked for (``-m slow``)."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz import TARGETS, Target, load

SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from([10**400, -1, 2**63, "", "a", "\ud800"])
)
JSON = st.recursive(
    SCALARS | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


def edited(seed: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
    """Each edit: where, how much is taken out, what is put there."""
    for place, out, piece in edits:
        place %= len(seed) + 1
        seed = seed[:place] + piece + seed[place + out :]
    return seed


def replaced(seed: bytes, edits: list[tuple[int, object]]) -> bytes:
    """Each edit puts another value somewhere into a line of JSON."""
    rows = seed.split(b"\n")
    for place, value in edits:
        found = [i for i, row in enumerate(rows) if row.startswith((b"{", b"["))]
        i = found[place % len(found)]
        try:
            content = json.loads(rows[i])
        except (RecursionError, ValueError):  # a seed that is no JSON on purpose
            continue
        places = list(_places(content))
        if places:
            holder, key = places[place % len(places)]
            holder[key] = value
        rows[i] = json.dumps(content, ensure_ascii=place % 2 == 0).encode("utf-8", "surrogatepass")
    return b"\n".join(rows)


def _places(content):
    keys = content if isinstance(content, dict) else range(len(content)) if isinstance(content, list) else ()
    for key in keys:
        yield content, key
        yield from _places(content[key])


def inputs(target: Target):
    """Edited seeds, sequences of pieces, and seeds with other JSON in them."""
    piece = st.sampled_from(target.pieces) | st.binary(max_size=6)
    places = st.integers(0, 2**20)
    edits = st.lists(st.tuples(places, st.sampled_from([0, 1, 2, 10, 50]), piece), max_size=4)
    found = st.builds(edited, st.sampled_from(target.seeds), edits) | st.lists(piece, max_size=12).map(b"".join)
    with_json = [seed for seed in target.seeds if b"\n{" in seed or b"\n[" in seed or seed[:1] in (b"{", b"[")]
    if with_json:
        values = st.lists(st.tuples(places, JSON), min_size=1, max_size=3)
        found |= st.builds(replaced, st.sampled_from(with_json), values)
    return found


def explore(name: str, examples: int, **more):
    target = load(name)

    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck), **more)
    @given(inputs(target))
    def check(data):
        target.check(data)

    check()


@pytest.mark.parametrize("name", TARGETS)
def test_seeds(name):
    target = load(name)
    for seed in target.seeds:
        target.check(seed)


@pytest.mark.parametrize("name", TARGETS)
def test_some_inputs(name):
    explore(name, 100, derandomize=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_many_inputs(name):
    explore(name, 5_000, print_blob=True)
