import pytest

from mist_fairseq.files.reading import read_json


def test_json_is_read_or_the_file_named(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"\u00e9": [1]}', encoding="utf-8")
    assert read_json(path) == {"\u00e9": [1]}
    path.write_text('\ufeff{"\u00e9": [1]}', encoding="utf-8")
    assert read_json(path) == {"\u00e9": [1]}
    for content in (b"", b"{", b"\xff", b"[" * 100_000, b"9" * 5000, b"[1]"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"a.json is not (JSON: |a JSON object but a list)"):
            read_json(path)
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "none.json")
