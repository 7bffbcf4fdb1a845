from pathlib import Path

import pytest

from mist_fairseq.engines import PRECISIONS
from mist_fairseq.experiments.benchmark.inputs import (
    PROFILES,
    VOCABULARY,
    Entry,
    read_entries,
    read_profile,
    write_data,
)
from tests.experiments.benchmark.helpers import MIST, entry, load

LISTS = Path(__file__).parents[3] / "examples/baselines"


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_entries_of_a_file(tmp_path):
    path = write(
        tmp_path / "systems.yaml",
        "data: bin\nreference: /data/test.tgt\nprotocol: quora\nsystems:\n"
        "- {name: a, path: run/a.pt, group: AR, options: {beam: 4}}\n"
        "- {name: b, arguments: --arch mist_base, data: other, precision: bf16, passes: {2: 0.5, 3: 0.5}}\n",
    )
    entries, settings = read_entries(path)
    second = {"data": "other", "precision": "bf16", "passes": {2: 0.5, 3: 0.5}}
    assert entries == [
        Entry("a", path="run/a.pt", group="AR", options={"beam": 4}, data="bin", folder=str(tmp_path)),
        Entry("b", arguments="--arch mist_base", folder=str(tmp_path), **second),
    ]
    assert entries[0].data_path == f"{tmp_path}/bin"
    assert settings["reference"] == "/data/test.tgt" and settings["protocol"] == "quora"


TRANSFORMERS = {
    "Transformer": "",
    "Transformer 12-1": " --encoder-layers 12 --decoder-layers 1",
    "Transformer 6-1": " --decoder-layers 1",
}


@pytest.mark.parametrize("path", LISTS.glob("*.yaml"), ids=lambda path: path.stem)
def test_lists_of_the_examples_do_what_their_names_say(path):
    """Their rows are made of one another."""
    for one in read_entries(path)[0]:
        (kind, *_), words = one.name.split(", "), one.name.replace(",", "").split()
        assert one.precision == next((name for name in PRECISIONS if name in words), "fp32")
        if kind in TRANSFORMERS:
            expected = "--task mist_translation --arch transformer --share-all-embeddings" + TRANSFORMERS[kind]
            assert one.arguments == expected and one.group == "AR"
            engines = {"CTranslate2": "ctranslate2", "Hugging": "huggingface"}
            assert one.engine == next((engines[word] for word in words if word in engines), "fairseq")
            assert one.options == ({"beam": 1} if "greedy" in words else {"beam": 4, "lenpen": 1.0})


@pytest.mark.parametrize(
    "text, message",
    [
        ("systems: {", "is not YAML"),
        ("[]", "has no list of systems"),
        ("systems: a", "has no list of systems"),
        ("systems: [a]", "a system is 'a'"),
        ("systems: [{path: a}]", "a system's name is ''"),
        ("systems: [{name: a}]", "system 'a': give either path, a checkpoint, or arguments"),
        ("systems: [{name: a, path: b, arguments: c}]", "give either path"),
        ("systems: [{name: a, path: b, beam: 4}]", "a system is .*'a'.*: 'beam' is unknown, expected name, path"),
        ("sytems: []\nsystems: []", "'sytems' is unknown"),
        ("systems: [{name: a, path: b, group: NAT}]", r"group is 'NAT', expected \['AR', 'Semi-NAR', 'NAR'\]"),
        ("systems: [{name: a, path: b, engine: none}]", r"engine is 'none', expected \['fairseq', 'ctranslate2'"),
        ("systems: [{name: a, path: b, precision: fp64}]", "precision is 'fp64'"),
        ("systems: [{name: a, path: b, options: beam}]", "options is 'beam', expected dict"),
        ("systems: [{name: a, path: b, passes: 3}]", "passes is 3"),
        ("systems: [{name: a, path: b}, {name: a, path: c}]", "two systems have the same name"),
        ("systems: !!python/object/apply:os.system [touch hacked]", "is not YAML"),
    ],
)
def test_files_that_say_no_systems(tmp_path, text, message):
    with pytest.raises(ValueError, match=f"systems.yaml.*{message}"):
        read_entries(write(tmp_path / "systems.yaml", text))


@pytest.mark.parametrize("name", PROFILES)
def test_lengths_are_the_profiles(tmp_path, name):
    write_data(tmp_path, PROFILES[name], 3)
    limits = "--max-positions 2112 --max-source-positions 2048 --max-target-positions 64"
    system = load(entry(str(tmp_path), f"{MIST} {limits}"))
    assert len(system.dictionary) == VOCABULARY
    inputs = system.batch(range(3))["net_input"]
    for side, key in (("source", "src_lengths"), ("target", "target_lengths")):
        assert inputs[key].tolist() == [*PROFILES[name][side]] * 3
    assert inputs["src_tokens"].max() < VOCABULARY


def test_profile_from_a_file(tmp_path):
    profile = read_profile(str(write(tmp_path / "profile.yaml", "source: 20\ntarget: {5: 0.25, 9: 0.75}\n")))
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
        (None, "no profile .*: expected quora, squad_qg, xsum, long or a YAML file"),
    ],
)
def test_profiles_that_cannot_be(tmp_path, content, message):
    if content is not None:
        write(tmp_path / "profile.yaml", content)
    with pytest.raises(ValueError, match=message):
        read_profile(str(tmp_path / "profile.yaml"))
