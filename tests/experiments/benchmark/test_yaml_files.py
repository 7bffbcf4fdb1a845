import pytest

from mist_fairseq.experiments.benchmark.yaml_files import read_yaml


@pytest.mark.parametrize(
    "text, value",
    [
        ("", None),
        ("a: [1, 2.5, true, null, x]", {"a": [1, 2.5, True, None, "x"]}),
        ("a: &one {x: 1}\nb: {<<: *one, y: *one}", {"a": {"x": 1}, "b": {"x": 1, "y": {"x": 1}}}),
    ],
)
def test_yaml_is_read(text, value, tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text(text, encoding="utf-8")
    assert read_yaml(path) == value


def doubled(times: int, line: str) -> str:
    """Aliases that stand for 2 ** times values."""
    return "a0: &a0 {x: 1}\n" + "".join(line.format(i, i - 1) for i in range(1, times + 1))


@pytest.mark.parametrize(
    "text, message",
    [
        (doubled(40, "a{0}: &a{0} [*a{1}, *a{1}]\n"), "stands for more than 100,000 values"),
        (doubled(40, "a{0}: &a{0} {{<<: [*a{1}, *a{1}]}}\n"), "stands for more than 100,000 values"),
        ("&a [*a]", "a part of it holds itself"),
        ("[" * 100_000, "recursion"),
        ("- " + "x" * 1_000_001, "has 1,000,003 bytes, expected at most 1,000,000"),
        ("a: 0x" + "f" * 4000, "has 4,002 characters"),
        ("a: 1:" + "59:" * 2000 + "59", "characters"),
        ("a: 2000-13-01", "month must be"),
        *((f"a: !!{tag} ''", "") for tag in ("int", "float", "bool", "timestamp")),
        ("a: !!python/name:os.system", "could not determine a constructor"),
        ("? [a]\n: b", "unhashable"),
        ("a: *b", "undefined alias"),
        ("a: 1\n--- 2", ""),
        ("\ud800".encode("utf-8", "surrogatepass"), "utf-8"),
    ],
)
def test_other_yaml_is_refused_by_its_name(text, message, tmp_path):
    path = tmp_path / "a.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=rf"(?s)a.yaml is not YAML: .*{message}"):
        read_yaml(path)
