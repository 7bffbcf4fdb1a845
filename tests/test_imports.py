"""What an import of the package loads and changes, each in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import mist_fairseq
from tests.checkpoints.helpers import write_checkpoint

START = "import json, logging, sys\nroot = logging.getLogger()\nbefore = root.level, root.handlers[:]\n"
LOADED = "[name for name in ('torch', 'fairseq') if name in sys.modules]"
UNCHANGED = "(root.level, root.handlers) == before"


def result_of(script: str, *arguments: str):
    """What a script gives as its JSON value *result*."""
    line = [sys.executable, "-c", f"{START}{script}\nprint(json.dumps(result))", *arguments]
    done = subprocess.run(line, capture_output=True, text=True, check=False, cwd=Path(__file__).parent.parent)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_package_loads_neither_torch_nor_fairseq():
    """Both are installed here."""
    script = f"""
import mist_fairseq, mist_fairseq.generate, mist_fairseq.serve.app, mist_fairseq.serve.command
import mist_fairseq.command.generate, mist_fairseq.command.info, mist_fairseq.command.download, mist_fairseq.bulk.job
from mist_fairseq import OnnxGenerator
from mist_fairseq.hub import onnx_generator
result = {LOADED}, {UNCHANGED}, OnnxGenerator is onnx_generator.OnnxGenerator, dir(mist_fairseq)
"""
    loaded, unchanged, same, names = result_of(script)
    assert loaded == [] and unchanged and same
    assert {"MistGenerator", "OnnxGenerator", "__version__"} <= set(names)


def test_user_dir_finds_the_task_of_a_package_that_was_imported_before():
    """fairseq then skips the folder's tasks/."""
    script = """
import mist_fairseq
from fairseq import options
args = options.parse_args_and_arch(options.get_training_parser(), sys.argv[1:])
result = args.task, args.arch, args.criterion, args.optimizer, "mist_fairseq.tasks" in sys.modules
"""
    options = ["bin", "--user-dir", "mist_fairseq", "--task", "mist", "--arch", "nat_mass", "--criterion", "mist_loss"]
    assert result_of(script, *options, "--optimizer", "bert_adamw") == [*options[4::2], "bert_adamw", True]


def test_registration_and_a_loaded_checkpoint_leave_root_logging_alone(tmp_path):
    write_checkpoint(tmp_path)
    script = f"""
import mist_fairseq.tasks
from fairseq.tasks import TASK_REGISTRY
result = ["mist" in TASK_REGISTRY, {UNCHANGED}]
from mist_fairseq import MistGenerator
generator = MistGenerator.from_pretrained(sys.argv[1], "checkpoint.pt", sys.argv[1], accelerate="none")
result += [generator.generate(["how can i learn"]) != [], {UNCHANGED}]
"""
    assert result_of(script, str(tmp_path)) == [True] * 4


def test_a_package_that_is_not_installed_is_named(monkeypatch):
    """With the line that brings it, and torch only where it is needed."""
    for name, extra in (("OnnxGenerator", "runtime"), ("MistGenerator", "train")):
        monkeypatch.setitem(mist_fairseq._GENERATORS, name, ("absent", extra))
        with pytest.raises(ModuleNotFoundError, match=rf"^{name} needs absent: pip install 'mist-fairseq\[{extra}\]'$"):
            getattr(mist_fairseq, name)
