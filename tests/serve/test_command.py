"""The command as it is started, and how it ends."""

import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mist_fairseq.experiments.benchmark.serving import server_command
from mist_fairseq.serve.command import bind, load_generator, main
from tests.serve.helpers import COMMAND, DEADLINE, FakeGenerator, eventually

ROOT = Path(__file__).parent.parent.parent


class Process:
    """A server of its own."""

    def __init__(self, *arguments):
        self.process = subprocess.Popen(
            [*COMMAND, *arguments],
            cwd=ROOT,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        line = self.process.stdout.readline()
        found = re.fullmatch(r"listening on http://127\.0\.0\.1:(\d+)\n", line)
        assert found, line + self.process.stderr.read()
        self.port = int(found.group(1))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()

    def ask(self, text: str) -> "Asked":
        return Asked(self.port, text)

    def metrics(self) -> str:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE)
        connection.request("GET", "/metrics")
        return connection.getresponse().read().decode()


class Asked(threading.Thread):
    """A request on its way; ``answer`` waits for status and JSON, or the error."""

    def __init__(self, port: int, text: str):
        super().__init__(daemon=True)
        self.port, self.text, self.found = port, text, None
        self.start()

    def run(self):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE)
        try:
            body = json.dumps({"text": self.text})
            connection.request("POST", "/generate", body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            self.found = response.status, json.loads(response.read())
        except (OSError, http.client.HTTPException) as error:
            self.found = error
        finally:
            connection.close()

    def answer(self):
        self.join(DEADLINE)
        assert self.found is not None
        return self.found


def answered(text: str) -> tuple[int, dict]:
    return 200, {"id": None, "outputs": [[{"text": text, "score": -0.25}]]}


def refuses_connections(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=DEADLINE).close()
    except ConnectionRefusedError:
        return True
    return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_requests_in_flight_finish_before_it_ends(number):
    with Process("--closed", "--max-batch", "1") as server:
        asked = [server.ask("what is it")]
        eventually(lambda: "mist_model_texts 1.0" in server.metrics())
        asked += [server.ask("who do you"), server.ask("why")]
        eventually(lambda: "mist_queue_texts 2.0" in server.metrics())
        server.process.send_signal(number)
        eventually(lambda: refuses_connections(server.port))
        assert server.process.poll() is None and all(each.found is None for each in asked)
        server.process.stdin.write("open\n")
        server.process.stdin.flush()
        assert [each.answer() for each in asked] == [answered("it is what"), answered("you do who"), answered("why")]
        assert server.process.wait(DEADLINE) == 0
        assert not re.search("Traceback|WARNING|ERROR", server.process.stderr.read())


def test_a_second_signal_ends_it_at_once():
    with Process("--closed") as server:
        asked = server.ask("how")
        eventually(lambda: "mist_model_texts 1.0" in server.metrics())
        server.process.send_signal(signal.SIGTERM)
        eventually(lambda: refuses_connections(server.port))
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(DEADLINE) == 128 + signal.SIGTERM
        assert isinstance(asked.answer(), Exception)


def test_an_idle_connection_does_not_keep_it_from_ending():
    with Process() as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=DEADLINE)
        connection.request("GET", "/health")
        assert connection.getresponse().read() == b'{"status":"ok"}'
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(DEADLINE) == 0
        connection.close()


def test_a_request_whose_body_has_not_come_is_told():
    """At once: its body may never come."""
    with Process("--max-shutdown", "1000") as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=DEADLINE) as connection:
            connection.sendall(b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
            connection.sendall(b"Content-Length: 99\r\n\r\n{")
            assert "mist_queue_texts 0.0" in server.metrics()
            server.process.send_signal(signal.SIGTERM)
            head, body = connection.makefile("rb").read().lower().split(b"\r\n\r\n")
        assert head.startswith(b"http/1.1 503") and b"retry-after: 1" in head and b"connection: close" in head
        assert json.loads(body) == {"error": "the server is shutting down"}
        assert server.process.wait(DEADLINE) == 0
        assert not re.search("Traceback|WARNING|ERROR", server.process.stderr.read())


def test_the_last_answer_says_that_its_connection_ends():
    with Process("--closed") as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=DEADLINE)
        connection.request("POST", "/generate", '{"text": "how"}', {"Content-Type": "application/json"})
        eventually(lambda: "mist_model_texts 1.0" in server.metrics())
        server.process.send_signal(signal.SIGTERM)
        eventually(lambda: refuses_connections(server.port))
        server.process.stdin.write("open\n")
        server.process.stdin.flush()
        answer = connection.getresponse()
        assert answer.status == 200 and answer.getheader("Connection") == "close"
        connection.close()


# -- what is wrong at the start ---------------------------------------------------------------------------------


def error_of(*arguments) -> str:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return str(ended.value.code)


def test_a_port_in_use():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"error: cannot listen on 127.0.0.1 port {port}: " in error_of("anything", "--port", port)
    assert error_of("anything", "--port", 99999) == "error: --port is 99999, expected 0 to 65535"


def test_a_port_that_another_server_takes_while_the_model_is_loaded(monkeypatch):
    with bind("127.0.0.1", 0) as other:
        port = other.getsockname()[1]

        def load(*_):
            other.listen()
            return FakeGenerator()

        monkeypatch.setattr("mist_fairseq.serve.command.load_generator", load)
        assert f"error: cannot listen on 127.0.0.1 port {port}: " in error_of("anything", "--port", port)


def test_an_address_of_another_machine():
    assert "error: cannot listen on 192.0.2.1 port 8000: " in error_of("anything", "--host", "192.0.2.1")


def test_a_folder_without_a_model(tmp_path):
    for folder in (tmp_path, tmp_path / "nothing"):
        expected = f"error: {folder} has no config.json: expected a folder with a model"
        assert error_of(folder, "--port", 0) == expected
    (tmp_path / "file").touch()
    (tmp_path / "other/config.json").mkdir(parents=True)
    for wrong in (tmp_path / "file", tmp_path / "other"):
        assert error_of(wrong, "--port", 0) == f"error: {wrong} has no config.json: expected a folder with a model"
    (tmp_path / "config.json").write_text("{")
    assert f"error: {tmp_path / 'config.json'} is not JSON: " in error_of(tmp_path, "--port", 0)


def test_a_folder_that_lacks_a_file_ends_the_command_without_a_traceback(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    ended = subprocess.run(server_command(tmp_path), cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 1 and ended.stdout == ""
    assert "error: " in ended.stderr and "Traceback" not in ended.stderr


def test_limits_that_cannot_work(tmp_path):
    assert error_of(tmp_path, "--max-batch", 0) == "error: --max-batch is 0, expected at least 1"


def test_an_engine_of_pytorch_for_onnx(tmp_path):
    (tmp_path / "config.json").write_text('{"format": "onnx"}')
    with pytest.raises(ValueError, match="--accelerate compiled is for models in PyTorch"):
        load_generator(tmp_path, accelerate="compiled")


@pytest.mark.parametrize("config", ['{"format": "onnx"}', '{"arch": "mist"}'])
@pytest.mark.parametrize("threads", [0, -3])
def test_threads_that_cannot_be(tmp_path, config, threads):
    (tmp_path / "config.json").write_text(config)
    expected = f"error: --threads is {threads}, expected a whole number of at least 1"
    assert error_of(tmp_path, "--port", 0, "--threads", threads) == expected


@pytest.mark.parametrize("kind", ["onnx", "pytorch"])
def test_the_folder_says_which_model_it_is(tmp_path, monkeypatch, kind):
    """Options that are not given are left to the model."""
    loaded = []

    class Generator(FakeGenerator):
        @classmethod
        def from_pretrained(cls, *arguments, **options):
            loaded.append((arguments, options))
            return cls()

    if kind == "onnx":
        module = type(sys)("mist_fairseq.hub.onnx_generator")
        module.OnnxGenerator = Generator
        monkeypatch.setitem(sys.modules, "mist_fairseq.hub.onnx_generator", module)
        (tmp_path / "config.json").write_text('{"format": "onnx"}')
        options = {"precision": "int8", "threads": 1}
    else:
        monkeypatch.setattr("mist_fairseq.MistGenerator", Generator, raising=False)
        (tmp_path / "config.json").write_text('{"arch": "mist"}')
        options = {"precision": "bf16", "accelerate": "none"}
    assert isinstance(load_generator(tmp_path), Generator)
    assert isinstance(load_generator(str(tmp_path), **options), Generator)
    assert loaded == [((str(tmp_path),), {}), ((str(tmp_path),), options)]


def test_neither_torch_nor_fairseq_is_needed():
    """Of the server itself; an ONNX folder needs none either."""
    program = """
import sys
sys.modules["torch"] = sys.modules["fairseq"] = None
import mist_fairseq.serve.app, mist_fairseq.serve.command
print("imported")
"""
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert ended.stdout == "imported\n", ended.stderr


def test_without_the_extra_it_says_what_to_install():
    program = """
import sys
sys.modules["torch"] = sys.modules["fairseq"] = None
sys.modules["fastapi"] = None
import mist_fairseq.serve.command
"""
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 1 and "error: no module 'fastapi', which the server needs: pip install" in ended.stderr
    assert "Traceback" not in ended.stderr
