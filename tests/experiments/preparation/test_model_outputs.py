import pytest

from mist_fairseq.experiments.preparation.model_outputs import distill, static_mix
from mist_fairseq.experiments.preparation.pair_files import data_folder


@pytest.fixture
def raw(tmp_path):
    folder = tmp_path / "raw"
    folder.mkdir()
    for split, size in (("train", 3), ("valid", 2), ("test", 1)):
        (folder / f"{split}.src").write_text("".join(f"{split} source\u2028{i}\n" for i in range(size)))
        (folder / f"{split}.tgt").write_text("".join(f"{split} target {i}\n" for i in range(size)))
    return folder


def lines(path):
    return path.read_text().split("\n")


def mix(raw, out, pseudo):
    with data_folder(str(out)) as files:
        static_mix(files, raw, [[text, "worse"] for text in pseudo])


def test_originals_and_mixed_pairs(raw, tmp_path):
    mix(raw, tmp_path / "mixed", ["one", "", "two two"])
    mixed = [f"{pseudo} [SEP] train source\u2028{i}" for i, pseudo in enumerate(["one", "", "two two"])]
    assert lines(tmp_path / "mixed" / "train.src") == [*lines(raw / "train.src")[:-1], *mixed, ""]
    assert lines(tmp_path / "mixed" / "train.tgt") == [*lines(raw / "train.tgt")[:-1], *lines(raw / "train.tgt")]
    for name in ("valid.src", "valid.tgt", "test.src", "test.tgt"):
        assert lines(tmp_path / "mixed" / name) == lines(raw / name)


def test_wrong_numbers_are_refused_and_nothing_is_left(raw, tmp_path):
    with pytest.raises(ValueError, match="2 sources with outputs but 3 training pairs"):
        mix(raw, tmp_path / "mixed", ["one", "two"])
    (raw / "valid.tgt").write_text("one\n")
    with pytest.raises(ValueError, match=r"valid.src has 2 lines and .*valid.tgt has 1"):
        mix(raw, tmp_path / "mixed", ["one", "two", "three"])
    assert not (tmp_path / "mixed").exists()


@pytest.mark.parametrize("originals", [False, True])
def test_a_teachers_outputs_take_the_place_of_the_targets(raw, tmp_path, originals):
    out = tmp_path / "distilled"
    with data_folder(str(out)) as files:
        distill(files, raw, [["a", "b", "a"], ["", "c"], ["d"]], originals)
        assert files.skipped == {"empty output": 1}
    kept = [lines(raw / f"train.{side}")[: 3 * originals] for side in ("src", "tgt")]
    numbers = [0, 0, 1, 2]
    assert lines(out / "train.src") == [*kept[0], *(f"train source\u2028{i}" for i in numbers), ""]
    assert lines(out / "train.tgt") == [*kept[1], "a", "b", "c", "d", ""]
    for name in ("valid.src", "valid.tgt", "test.src", "test.tgt"):
        assert lines(out / name) == lines(raw / name)
