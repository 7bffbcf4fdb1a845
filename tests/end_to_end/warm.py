"""A warm start: commands are forked from a process that has imported torch and fairseq already, see ``preloaded``."""

import contextlib
import gzip
import json
import logging
import multiprocessing
import os
import runpy
import shutil
import socket
import socketserver
import sys
import tempfile
import threading
from functools import cache
from multiprocessing import connection, reduction
from multiprocessing.util import _exit_function
from pathlib import Path

_COMMANDS = ("preprocess", "train", "hydra-train", "generate", "interactive", "validate")
MODULES = {f"fairseq-{name}": f"fairseq_cli.{name.replace('-', '_')}" for name in _COMMANDS}

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.end_to_end.preloaded"])


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
    with open(text) as given, open(output, "a") as printed:
        return _start(line, folder, environment, given.fileno(), printed.fileno(), printed.fileno())


class _Stream:
    """An open file that a forked process gets."""

    def __init__(self, number: int):
        self.number = number

    def __reduce__(self):
        return _received, (reduction.DupFd(self.number),)


def _received(duplicate) -> int:
    return duplicate.detach()


def _start(line: list[str], folder: str, environment: dict[str, str], *streams: int):
    process = FORKS.Process(target=_run, args=(line, folder, environment, *map(_Stream, streams)))
    process.start()
    return process


def _run(line: list[str], folder: str, environment: dict[str, str], *streams: int):
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # multiprocessing had closed it  # noqa: SIM115
    multiprocessing.set_start_method(None, force=True)  # Linux's own, for processes that the command starts
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    logging.getLogger().handlers.clear()  # the command's own set-up counts, not that of the imports before
    sys.modules.pop(line[0], None)
    sys.argv = list(line)
    sys.executable = environment.get("WARM_PYTHON", sys.executable)
    status = 0
    try:
        if line[0].endswith(".py"):
            sys.path[0] = str(Path(line[0]).resolve().parent)
            runpy.run_path(line[0], run_name="__main__")
        else:
            sys.path[0] = folder
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
    _exit_function()  # ends the data loader's workers: they notice after 5 s, and keep a pipe open
    os._exit(status)


# -- for shell scripts --------------------------------------------------------------------------------------------

# A command that asks the process of the tests, over a socket, to run it with its own three streams.
_COMMAND = """#!{python} -IS
import json, os, socket, sys
line = {line} + sys.argv[1:]
if line[0] == "-m" and line[1].startswith(("fairseq_cli.", "tests.")):
    line = line[1:]
elif not line[0].endswith(".py"):
    os.execv({python!r}, [{python!r}, *line])
with socket.socket(socket.AF_UNIX) as tests:
    tests.connect({address!r})
    socket.send_fds(tests, [b"x"], [0, 1, 2])
    tests.sendall(json.dumps([line, os.getcwd(), dict(os.environ)]).encode() + b"\\n")
    status = int(tests.makefile().readline())
if status < 0:
    os.kill(os.getpid(), -status)
sys.exit(status)
"""


class _Request(socketserver.BaseRequestHandler):
    def handle(self):
        _, streams, *_ = socket.recv_fds(self.request, 1, 3)
        process = _start(*json.loads(self.request.makefile().readline()), *streams)
        for stream in streams:
            os.close(stream)
        if process.sentinel not in connection.wait([process.sentinel, self.request]):
            process.kill()  # as the command was
        process.join()
        with contextlib.suppress(BrokenPipeError):
            self.request.sendall(b"%d\n" % process.exitcode)


@cache
def environment() -> dict[str, str]:
    """Variables for our scripts: this virtual environment once more, with a warm Python and commands of fairseq."""
    folder = Path(tempfile.mkdtemp(prefix="warm"))
    (folder / "bin").mkdir()
    shutil.copy(Path(sys.prefix) / "pyvenv.cfg", folder)
    (folder / "lib").symlink_to(Path(sys.prefix) / "lib")
    server = socketserver.ThreadingUnixStreamServer(str(folder / "socket"), _Request)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    warm = {"python": [], **{name: ["-m", module] for name, module in MODULES.items()}}
    for command in Path(sys.executable).parent.iterdir():
        if command.name not in warm:
            (folder / "bin" / command.name).symlink_to(command)
    for name, line in warm.items():
        path = folder / "bin" / name
        path.write_text(_COMMAND.format(python=sys.executable, line=line, address=str(folder / "socket")))
        path.chmod(0o755)
    java = shutil.which("java")
    if java:  # METEOR without its table of paraphrases, which it reads for 12 s: tests/scoring/test_meteor15.py does
        (folder / "none.gz").write_bytes(gzip.compress(b""))
        (folder / "bin" / "java").write_text(f'#!/bin/sh\nexec {java} "$@" -a {folder}/none.gz\n')
        (folder / "bin" / "java").chmod(0o755)
    python = str(folder / "bin" / "python")
    path = f"{folder / 'bin'}:{os.environ['PATH']}"
    return {**os.environ, "OMP_NUM_THREADS": "1", "PATH": path, "VENV": str(folder), "WARM_PYTHON": python}
