"""fairseq's readers of text over our dictionaries: fairseq-preprocess's, those of raw data and interactive's."""

import gc
import io
import itertools
import os
import sys
from types import SimpleNamespace

import pytest
from fairseq.binarizer import FileBinarizer, VocabularyDatasetBinarizer
from fairseq.data import Dictionary, data_utils

from mist_fairseq.data.dictionary import load_dictionary
from mist_fairseq.patches.text_input import _buffered_read, install_interactive
from tests.awkward import LONGEST, NOT_UTF8, as_file, is_one_line, long_texts, shown, texts
from tests.helpers import tiny_dictionary
from tests.text.helpers import write_bart_dictionary


@pytest.fixture(scope="module")
def bart(tmp_path_factory):
    """A dictionary that loses nothing of a text."""
    return load_dictionary(str(write_bart_dictionary(tmp_path_factory.mktemp("bart.base")) / "dict.txt"))


def binarize(folder, dictionary, side="src", workers=1, split="valid", binarizer=None):
    """What fairseq-preprocess does with FOLDER/SPLIT.SIDE."""
    binarizer = binarizer or VocabularyDatasetBinarizer(dictionary, append_eos=True)
    prefix = folder / f"{split}.src-tgt.{side}"
    path = str(folder / f"{split}.{side}")
    summary = FileBinarizer.multiprocess_dataset(
        path, "mmap", binarizer, str(prefix), vocab_size=len(dictionary), num_workers=workers
    )
    return summary, data_utils.load_indexed_dataset(str(prefix), dictionary)


@pytest.mark.parametrize("workers", [1, 2, 7])
def test_binarized_lines_are_the_files(workers, bart, tmp_path):
    written = [*texts(200), *(long_texts()[:4] if workers == 2 else [])]
    (tmp_path / "valid.src").write_bytes(as_file(written))
    summary, data = binarize(tmp_path, bart, workers=workers)
    assert len(data) == len(written) == summary.num_seq and summary.num_tok == data.sizes.sum()
    for text, ids in zip(written, data):
        assert ids.tolist() == bart.encode_line(text).tolist()
        again = bart.string(ids)
        assert is_one_line(again) and (again == shown(text.rstrip()) or "[SEP]" in text)
    names = [name.removeprefix("valid.src") for name in sorted(os.listdir(tmp_path))]
    assert names == ["", "-tgt.src.bin", "-tgt.src.crc32", "-tgt.src.idx"]


def test_more_workers_than_lines(bart, tmp_path, caplog):
    (tmp_path / "valid.src").write_bytes(b"\xef\xbb\xbfa\r\n\n \t\r\nb")
    summary, data = binarize(tmp_path, bart, workers=20)
    assert [bart.string(ids) for ids in data] == ["a", "", "", "b"] and summary.num_seq == 4
    assert caplog.messages == [f"2 of the 4 lines of {tmp_path / 'valid.src'} are empty: they count as texts"]


def test_raw_data_has_the_same_lines(bart, tmp_path):
    written = texts(60)
    (tmp_path / "valid.src-tgt.src").write_bytes(as_file(written))
    data = data_utils.load_indexed_dataset(str(tmp_path / "valid.src-tgt.src"), bart, "raw")
    assert [ids.tolist() for ids in data] == [bart.encode_line(text).tolist() for text in written]
    assert data.lines == written and data.sizes.tolist() == list(map(len, data))


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("wrong", NOT_UTF8.values(), ids=NOT_UTF8)
def test_what_is_not_utf8_is_refused_before_anything_is_written(wrong, workers, bart, tmp_path):
    """Also in the target, when the source's turn comes."""
    (tmp_path / "valid.src").write_bytes(b"a\nb\nc\n")
    (tmp_path / "valid.tgt").write_bytes(b"a\n\n" + wrong)
    for side in ("src", "tgt"):
        with pytest.raises(ValueError, match=r"valid\.tgt, line 3 is not UTF-8"):
            binarize(tmp_path, bart, side, workers)
    assert sorted(os.listdir(tmp_path)) == ["valid.src", "valid.tgt"]


def test_sides_that_do_not_belong_together_are_refused(bart, tmp_path):
    (tmp_path / "valid.src").write_bytes(b"a\rb\n\nc")
    (tmp_path / "valid.tgt").write_bytes(b"a\nb\nc\n\n")
    message = r"valid\.src has 3 lines and .*valid\.tgt has 4: line i of one must belong to line i of the other"
    with pytest.raises(ValueError, match=message):
        binarize(tmp_path, bart)
    (tmp_path / "valid.tgt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"valid\.tgt has 0"):
        binarize(tmp_path, bart)
    with pytest.raises(ValueError, match=r"valid\.tgt is empty"):
        binarize(tmp_path, bart, "tgt")
    assert sorted(os.listdir(tmp_path)) == ["valid.src", "valid.tgt"]


class Failing(VocabularyDatasetBinarizer):
    """Raises, or takes its process with it, at a line of text."""

    def binarize_line(self, line, summary):
        if line == "raise":
            raise RuntimeError("no way on")
        if line == "die":
            os._exit(3)
        return super().binarize_line(line, summary)


@pytest.mark.parametrize("workers, line", [(1, "raise"), (2, "raise"), (2, "die")])
def test_a_failing_worker_ends_all(workers, line, bart, tmp_path):
    (tmp_path / "valid.src").write_text(f"a\nb\nc\n{line}\n")
    message = "no way on" if line == "raise" else "terminated abruptly"
    with pytest.raises(RuntimeError, match=message):  # BrokenProcessPool is one
        binarize(tmp_path, bart, workers=workers, binarizer=Failing(bart))
    assert not list(tmp_path.glob("*.pt*")) and not list(tmp_path.glob("*.idx"))


class Collecting(VocabularyDatasetBinarizer):
    """Collects garbage at each line."""

    def binarize_line(self, line, summary):
        gc.collect()
        return super().binarize_line(line, summary)


def test_workers_leave_alone_what_is_not_theirs(bart, tmp_path):
    """Garbage of the process before, such as sessions of ONNX Runtime, whose threads no worker has."""

    class Session:
        def __init__(self):
            self.itself, self.process = self, os.getpid()

        def __del__(self):
            (tmp_path / f"{'its' if os.getpid() == self.process else 'another'} process").touch()

    (tmp_path / "valid.src").write_text("a\nb\nc\n")
    gc.disable()
    try:
        Session()
        binarize(tmp_path, bart, workers=2, binarizer=Collecting(bart))
    finally:
        gc.enable()
    assert [path.name for path in tmp_path.glob("* process")] == ["its process"]


def test_other_dictionaries_are_read_by_fairseq(tmp_path):
    (tmp_path / "valid.src").write_bytes(b"a\rb\n")
    (tmp_path / "valid.src-tgt.src").write_bytes(b"a\rb\n")
    assert len(binarize(tmp_path, Dictionary())[1]) == 2  # a lone \r ends a line there
    assert len(data_utils.load_indexed_dataset(str(tmp_path / "valid.src-tgt.src"), Dictionary(), "raw")) == 2
    assert len(binarize(tmp_path, tiny_dictionary())[1]) == 1


@pytest.mark.parametrize("source", ["file", "stdin"])
def test_interactive_reads_the_same_lines(source, tmp_path, monkeypatch):
    def read(content, size):
        (tmp_path / "text").write_bytes(content)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="latin-1"))
        yield from _buffered_read("-" if source == "stdin" else str(tmp_path / "text"), size)

    written = [*texts(100), "x" * LONGEST, ""]
    buffers = list(read(as_file(written), 7))
    assert list(itertools.chain(*buffers)) == written and {len(buffer) for buffer in buffers[:-1]} == {7}
    assert list(read(b"", 7)) == []
    name = "stdin" if source == "stdin" else "text"
    for wrong in NOT_UTF8.values():
        lines = read(b"a\nb\n" + wrong + b"\n", 1)
        assert [next(lines), next(lines)] == [["a"], ["b"]]  # answered before
        with pytest.raises(ValueError, match=rf"{name}, line 3 is not UTF-8"):
            next(lines)


@pytest.mark.parametrize("command", ["fairseq_cli.generate", "fairseq_cli.interactive", None])
def test_commands_print_utf8_whatever_the_locale(command, monkeypatch):
    """They would end half-way, at the first character that the locale lacks; other programs are left alone."""
    for name in ("__main__", "fairseq_cli.generate", "fairseq_cli.interactive"):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace())
    if command:
        monkeypatch.setitem(sys.modules, command, SimpleNamespace(__spec__=SimpleNamespace(name=command)))
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, "ascii", errors="replace"))
    install_interactive()
    print("\u2603", flush=True)
    assert printed.getvalue() == ("\u2603\n".encode() if command else b"?\n")
