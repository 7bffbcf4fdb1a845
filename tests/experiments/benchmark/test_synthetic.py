import pytest

from mist_fairseq.experiments.benchmark.synthetic import PROFILES, VOCABULARY, read_profile, write_data
from tests.experiments.benchmark.helpers import MIST, entry, load


@pytest.mark.parametrize("name", PROFILES)
def test_lengths_are_the_profiles(tmp_path, name):
    write_data(tmp_path, PROFILES[name], 3)
    system = load(entry(str(tmp_path), MIST))
    assert len(system.dictionary) == VOCABULARY
    sample = system.batch(range(3))
    (source,), (target,) = PROFILES[name]["source"], PROFILES[name]["target"]
    assert sample["net_input"]["src_lengths"].tolist() == [source] * 3
    assert sample["net_input"]["target_lengths"].tolist() == [target] * 3
    assert sample["net_input"]["src_tokens"].max() < VOCABULARY


def test_profile_from_a_file(tmp_path):
    path = tmp_path / "profile.yaml"
    path.write_text("source: 20\ntarget: {5: 0.25, 9: 0.75}\n")
    profile = read_profile(str(path))
    assert profile == {"source": {20: 1}, "target": {5: 0.25, 9: 0.75}}
    write_data(tmp_path, profile, 200)
    system = load(entry(str(tmp_path), MIST))
    lengths = [system.dataset.size(i)[1] for i in range(200)]
    assert set(lengths) == {5, 9} and 0.65 < lengths.count(9) / 200 < 0.85


@pytest.mark.parametrize(
    "content, message",
    [
        ("source: 20", "expected source and target"),
        ("source: {", "is not YAML"),
        ("source: [20]\ntarget: 9", r"source has length \[20\]"),
        ("source: 2\ntarget: 9", "source has length 2"),
        ("source: 20\ntarget: {9: -1}", "target has length 9 with weight -1"),
        ("source: 20\ntarget: nine", "target has length 'nine'"),
    ],
)
def test_profiles_that_cannot_be(tmp_path, content, message):
    path = tmp_path / "profile.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_profile(str(path))


def test_unknown_profile():
    with pytest.raises(ValueError, match="no profile 'wmt': expected quora, squad_qg, xsum or a YAML file"):
        read_profile("wmt")
