"""The command as it is started, and how it ends."""

import contextlib
import http.client
import json
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from mist_fairseq.experiments.benchmark.serving import server_command
from mist_fairseq.release.folder import save_folder
from mist_fairseq.serve.command import listen, main
from tests.helpers import tiny_released
from tests.serve.helpers import COMMAND, DEADLINE, answered, eventually, send_raw

ROOT = Path(__file__).parent.parent.parent


@contextlib.contextmanager
def started(*arguments):
    """A server in a process of its own, and its port."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([*COMMAND, *arguments], cwd=ROOT, text=True, **pipes) as process:
        try:
            line = process.stdout.readline()
            listening = re.fullmatch(r"listening on http://127\.0\.0\.1:(\d+)\n", line)
            assert listening, line + process.stderr.read()
            yield process, int(listening[1])
        finally:
            process.kill()


def open_gate(process):
    process.stdin.write("open\n")
    process.stdin.flush()


def metrics(port: int) -> str:
    return httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=DEADLINE, trust_env=False).text


def answer_of(connection: socket.socket) -> tuple[str, dict]:
    """Head, in lower case, and JSON of the only answer that comes over a connection."""
    head, body = connection.makefile("rb").read().decode().split("\r\n\r\n")
    return head.lower(), json.loads(body)


def refuses_connections(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=DEADLINE).close()
    except ConnectionRefusedError:
        return True
    return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_requests_in_flight_finish_before_it_ends(number):
    """A request whose body has not come is told at once, as it may never come; an idle connection is just closed."""
    with (
        started("--closed", "--max-batch", "1", "--max-shutdown", "1000") as (process, port),
        contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE)) as idle,
        send_raw(port, b'{"text": "what is it"}') as running,
    ):
        idle.request("GET", "/health")
        assert idle.getresponse().read() == b'{"status":"ok"}'
        eventually(lambda: "mist_model_texts 1.0" in metrics(port))
        with send_raw(port, b'{"text": "who do you"}') as waiting, send_raw(port, b"{", 99) as unfinished:
            eventually(lambda: "mist_queue_texts 1.0" in metrics(port))
            process.send_signal(number)
            eventually(lambda: refuses_connections(port))
            head, content = answer_of(unfinished)
            assert head.startswith("http/1.1 503") and "retry-after: 1" in head and "connection: close" in head
            assert content == {"error": "the server is shutting down"}
            assert process.poll() is None
            open_gate(process)
            for connection, text in ((running, "it is what"), (waiting, "you do who")):
                head, content = answer_of(connection)
                assert head.startswith("http/1.1 200") and "connection: close" in head
                assert (200, content) == answered(text)
        assert process.wait(DEADLINE) == 0
        assert not re.search("Traceback|WARNING|ERROR", process.stderr.read())


def test_a_second_signal_ends_it_at_once():
    with started("--closed") as (process, port), send_raw(port, b'{"text": "how"}') as asked:
        eventually(lambda: "mist_model_texts 1.0" in metrics(port))
        process.send_signal(signal.SIGTERM)
        eventually(lambda: refuses_connections(port))
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE) == 128 + signal.SIGTERM
        assert asked.makefile("rb").read() == b""


# -- what is wrong at the start ---------------------------------------------------------------------------------


def error_of(*arguments) -> str:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return str(ended.value.code)


def test_a_port_in_use():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"error: cannot listen on 127.0.0.1 port {port}: " in error_of("anything", "--port", port)


@pytest.mark.parametrize(
    "option, value, message",
    [
        ("--port", 99999, "cannot listen on 127.0.0.1 port 99999: bind(): port must be 0-65535."),
        ("--host", "192.0.2.1", "cannot listen on 192.0.2.1 port 0: "),  # of another machine
        ("--max-batch", 0, "--max-batch is 0, expected at least 1"),
        ("--max-wait", -1, "--max-wait is -1.0, expected at least 0"),
        ("--max-wait", "nan", "--max-wait is nan, expected at least 0"),
        ("--max-queue", 8, "--max-texts 64 is more than --max-queue 8: such requests never fit"),
        ("--threads", 0, "--threads is 0, expected a whole number of at least 1"),
        ("--threads", -3, "--threads is -3, expected a whole number of at least 1"),
        ("--accelerate", "compiled", "accelerate is 'compiled', expected auto, native or onnxruntime"),
        ("--device", "gpu", "device is 'gpu', expected auto, cpu, cuda or cuda:N"),
    ],
)
def test_options_that_cannot_work(tmp_path, option, value, message):
    (tmp_path / "config.json").write_text('{"format": "onnx"}')
    assert error_of(tmp_path, "--port", 0, option, value).startswith(f"error: {message}")


def test_what_the_model_cannot_do_is_told_at_the_start(tmp_path):
    save_folder(tiny_released(), str(tmp_path), "")
    error = error_of(tmp_path, "--port", 0, "--accelerate", "cudagraph", "--device", "cpu")
    assert error.startswith("error: --accelerate cudagraph is for GPUs, the model is on cpu")


def test_a_folder_without_a_model(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "other/config.json").mkdir(parents=True)
    wrong = tmp_path / "nothing"
    assert error_of(wrong, "--port", 0).startswith(f"error: there is no folder {wrong}: give an existing one, or")
    assert error_of(tmp_path / "file", "--port", 0) == f"error: {tmp_path / 'file'} is a file: give its folder"
    wrong = tmp_path / "other"
    assert error_of(wrong, "--port", 0).startswith(f"error: {wrong} has no config.json: export the model again with")
    (wrong / "checkpoint_best.pt").touch()
    assert error_of(wrong, "--port", 0).startswith(f"error: {wrong} has no config.json: it holds checkpoints: name one")
    (tmp_path / "config.json").write_text("{")
    assert f"error: {tmp_path / 'config.json'} is not JSON: " in error_of(tmp_path, "--port", 0)


def test_an_answer_is_sent_at_once():
    """Its body does not wait until its head is acknowledged, for 40 ms at worst."""
    with listen("127.0.0.1", 0) as listening, socket.create_connection(listening.getsockname()):
        accepted, _ = listening.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_it_ends_without_a_traceback(tmp_path):
    (tmp_path / "config.json").write_text('{"format": "onnx"}')
    program = 'import sys, runpy; sys.modules["fastapi"] = None; runpy.run_module("mist_fairseq.serve", alter_sys=True)'
    for command, message in (
        (server_command(tmp_path), "config.json: version is None, expected 2"),
        (
            [sys.executable, "-c", program],
            "no module 'fastapi', which the server needs: pip install 'mist-fairseq[serve]'",
        ),
    ):
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert ended.returncode == 1 and ended.stdout == "" and "Traceback" not in ended.stderr
        assert ended.stderr.startswith("error: ") and message in ended.stderr
