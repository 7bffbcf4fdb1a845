import subprocess
import sys

import pytest

from mist_fairseq.files.whole import whole_file


def test_a_file_is_there_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "file.txt"
    with whole_file(path) as partial:
        partial.write_text("first")
        assert not path.exists()
    assert path.read_text() == "first"
    with pytest.raises(RuntimeError), whole_file(path) as partial:
        partial.write_text("sec")
        raise RuntimeError
    assert path.read_text() == "first" and [one.name for one in path.parent.iterdir()] == ["file.txt"]


def test_two_processes_do_not_write_the_same_file(tmp_path):
    """Nor does the one that comes too late take away what the other has."""
    path = tmp_path / "file"
    script = "import sys; from mist_fairseq.files.whole import whole_file\nwith whole_file(sys.argv[1]): pass"
    with whole_file(path) as partial:
        partial.write_text("first")
        late = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=False)
        assert late.returncode == 1 and f"{path} is being written by another process" in late.stderr
    assert path.read_text() == "first" and list(tmp_path.iterdir()) == [path]
