"""The command itself: subcommands are found, helped with and loaded only when asked for."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import mist_fairseq
from mist_fairseq import command
from mist_fairseq.command import SUBCOMMANDS, main

ROOT = Path(__file__).parents[2]


def test_help_names_all(capsys):
    for arguments in (["--help"], []):
        with pytest.raises(SystemExit):
            main(arguments)
    out, err = capsys.readouterr()
    assert all(f"  {name} " in out for name in SUBCOMMANDS) and "arguments are required: subcommand" in err


@pytest.mark.parametrize("name", ["generate", "export", "download", "info"])
def test_each_subcommand_has_help_of_its_own(name, capsys):
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    out = capsys.readouterr().out
    assert ended.value.code == 0 and out.startswith(f"usage: mist {name} ") and f"``mist {name}``: " in out


def test_the_server_gets_its_arguments(monkeypatch):
    given = []
    monkeypatch.setattr("mist_fairseq.serve.command.main", given.append)
    main(["serve", "folder", "--port", "0"])
    assert given == [["folder", "--port", "0"]]


def test_what_is_wrong(capsys, monkeypatch):
    with pytest.raises(SystemExit):
        main(["fly"])
    assert "invalid choice: 'fly'" in capsys.readouterr().err
    monkeypatch.setitem(command.SUBCOMMANDS, "info", ("absent.package", "", "train"))
    with pytest.raises(SystemExit, match=r"^error: mist info needs the package absent: pip install .*\[train\]'$"):
        main(["info"])


def test_the_installed_command_and_the_module():
    assert '"mist = mist_fairseq.command:main"' in (ROOT / "setup.py").read_text()
    done = subprocess.run([sys.executable, "-m", "mist_fairseq", "--version"], cwd=ROOT, capture_output=True, text=True)
    assert re.fullmatch(rf"mist_fairseq {mist_fairseq.__version__}\n", done.stdout)
