"""A warm start for fairseq's commands: processes forked from one that has imported torch and fairseq already.

The plugin is not imported beforehand: ``--user-dir`` does that, as ever.
"""

import logging
import multiprocessing
import os
import runpy
import sys
import tempfile

_COMMANDS = ("preprocess", "train", "generate", "interactive", "validate")

_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(["sacrebleu", "torch._dynamo", *(f"fairseq_cli.{name}" for name in _COMMANDS)])


def run_module(line: list[str], folder: str, environment: dict[str, str], text: str = "", timeout: float = 300):
    """What ``python -m LINE`` gives: its exit status, and what it printed on both streams."""
    with tempfile.NamedTemporaryFile("w+", encoding="utf-8", errors="surrogateescape") as printed:
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", errors="surrogateescape") as given:
            given.write(text)
            given.flush()
            process = start_module(line, folder, environment, printed.name, given.name)
            process.join(timeout)
            if process.exitcode is None:
                process.kill()
                raise TimeoutError(f"{' '.join(line)} ran for {timeout} seconds: {printed.read()}")
        return process.exitcode, printed.read()


def start_module(line: list[str], folder: str, environment: dict[str, str], output: str, text: str = os.devnull):
    """Start ``python -m LINE`` from a folder, with files for what it reads and what it prints."""
    process = _forks.Process(target=_run, args=(line, folder, environment, output, text))
    process.start()
    return process


def _run(line: list[str], folder: str, environment: dict[str, str], output: str, text: str):
    for name, flags, streams in ((text, os.O_RDONLY, (0,)), (output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, (1, 2))):
        file = os.open(name, flags, 0o666)
        for stream in streams:
            os.dup2(file, stream)
        os.close(file)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # multiprocessing had closed it  # noqa: SIM115
    multiprocessing.set_start_method(None, force=True)  # Linux's own, for processes that the command starts
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    logging.getLogger().handlers.clear()  # the command's own set-up counts, not that of the imports before
    sys.modules.pop(line[0], None)
    sys.argv = list(line)
    sys.path[0] = folder
    status = 0
    try:
        runpy.run_module(line[0], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
