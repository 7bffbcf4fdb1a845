import pytest
from hypothesis import given
from hypothesis import strategies as st

from mist_fairseq.files.reading import count_values, read_json


def test_json_is_read_or_the_file_named(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"\u00e9": [1]}', encoding="utf-8")
    assert read_json(path) == {"\u00e9": [1]}
    for content in (b"", b"{", b"\xff", b"[" * 100_000, b"9" * 5000):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"a.json is not JSON: "):
            read_json(path)
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "none.json")


def by_writing_out(value: list) -> int:
    return 1 + sum(map(by_writing_out, value))


@given(st.lists(st.lists(st.integers(0, 9), max_size=3), min_size=1, max_size=9))
def test_values_are_counted_as_written_out(wanted):
    """Lists of earlier lists."""
    made: list[list] = []
    for numbers in wanted:
        made.append([made[number % len(made)] for number in numbers] if made else [])
    count = by_writing_out(made)
    assert count_values(made, lambda value: value, count) == count
    with pytest.raises(ValueError, match=f"more than {count - 1:,} values"):
        count_values(made, lambda value: value, count - 1)
