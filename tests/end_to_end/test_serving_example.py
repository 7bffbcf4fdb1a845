"""What ``examples/serving`` holds goes together with the server; a container engine is not needed."""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mist_fairseq.serve.client import Client
from mist_fairseq.serve.command import make_parser
from mist_fairseq.serve.limits import Limits
from tests.serve.helpers import DEADLINE, FakeGenerator, distinct, eventually, expected, serving

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples/serving"
DOCKERFILE = (FOLDER / "Dockerfile").read_text(encoding="utf-8")
COMPOSE = yaml.safe_load((FOLDER / "compose.yaml").read_text(encoding="utf-8"))["services"]
DEPLOYMENT, SERVICE = yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text(encoding="utf-8"))
POD = DEPLOYMENT["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]


def instruction(name: str) -> str:
    (line,) = re.findall(rf"^{name} (.*)$", DOCKERFILE, re.MULTILINE)
    return line


def command_of(text: str) -> list[str]:
    """The last JSON list of an instruction, for this Python."""
    program, *arguments = json.loads(text[text.index("[") :])
    assert program == "python"
    return [sys.executable, *arguments]


def is_known(variables, texts=None):
    """Whether the command takes variables, of such values."""
    known = make_parser().variables
    for name in variables:
        assert name in known
        if texts and texts[name] is not None:
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv(name, texts[name])
                make_parser().parse_args(["x"])
    return True


def test_every_variable_is_an_option():
    settings = dict(re.findall(r"(MIST_\w+)=(\S+)", instruction("ENV")))
    assert settings.keys() == {"MIST_MODEL", "MIST_HOST", "MIST_PORT"} and is_known(settings, settings)
    settings = {name: value for name, value in COMPOSE["mist"]["environment"].items() if name.startswith("MIST_")}
    assert len(settings) == 3 and is_known(settings, settings)
    settings = {each["name"]: each.get("value") for each in CONTAINER["env"]}
    assert len(settings) == 4 and is_known(settings, settings)


def test_what_is_copied_and_mounted_is_there():
    for sources in re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.MULTILINE):
        assert sources == "${MODEL}" or all((ROOT / source).exists() for source in sources.split())
    build = COMPOSE["mist"]["build"]
    assert (FOLDER / build["context"]).resolve() == ROOT and (ROOT / build["dockerfile"]).is_file()
    assert COMPOSE["nginx"]["volumes"] == ["./nginx.conf:/etc/nginx/nginx.conf:ro"]


def test_the_image_starts_the_server_and_asks_whether_it_is_ready():
    started = subprocess.run(
        [*command_of(instruction("ENTRYPOINT")), "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "--max-batch" in started.stdout
    check = command_of(instruction("HEALTHCHECK"))
    with serving(FakeGenerator()) as running:
        environment = os.environ | {"MIST_PORT": str(running.port), "PYTHONPATH": str(ROOT)}
        assert subprocess.run(check, env=environment).returncode == 0
        running.batcher.close()
        assert subprocess.run(check, env=environment).returncode == 1
    assert subprocess.run(check, env=environment).returncode == 1


def test_probes_ports_and_times_of_kubernetes(running):
    port = re.search(r"MIST_PORT=(\d+)", DOCKERFILE)[1]
    assert CONTAINER["ports"] == [{"name": "http", "containerPort": int(port)}] and instruction("EXPOSE") == port
    probes = {name: CONTAINER[f"{name}Probe"]["httpGet"] for name in ("startup", "readiness", "liveness")}
    assert {name: probe["path"] for name, probe in probes.items()} == {
        "startup": "/ready",
        "readiness": "/ready",
        "liveness": "/health",
    }
    assert all(running.ask("GET", probe["path"])[0] == 200 and probe["port"] == "http" for probe in probes.values())
    labels = DEPLOYMENT["spec"]["template"]["metadata"]["labels"]
    assert DEPLOYMENT["spec"]["selector"]["matchLabels"] == SERVICE["spec"]["selector"] == labels
    assert str(POD["securityContext"]["runAsUser"]) == instruction("USER")
    pause = int(CONTAINER["lifecycle"]["preStop"]["exec"]["command"][1])
    assert POD["terminationGracePeriodSeconds"] > pause + Limits().max_shutdown
    assert int(COMPOSE["mist"]["stop_grace_period"].removesuffix("s")) > Limits().max_shutdown
    assert not POD["enableServiceLinks"]


@contextlib.contextmanager
def nginx(folder: Path, ports: list[int]):
    """nginx with the example's settings in front of servers on this machine; its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    settings = (FOLDER / "nginx.conf").read_text(encoding="utf-8")
    servers = "".join(f"server 127.0.0.1:{number} fail_timeout=1s;" for number in ports)
    for old, new in {"server mist:8000 fail_timeout=1s;": servers, "listen 8080": f"listen 127.0.0.1:{port}"}.items():
        assert settings.count(old) == 1
        settings = settings.replace(old, new)
    (folder / "nginx.conf").write_text(settings, encoding="utf-8")
    command = ["nginx", "-p", str(folder), "-e", "stderr", "-c", str(folder / "nginx.conf")]
    command += ["-g", f"daemon off; pid {folder}/pid;"]
    subprocess.run([*command, "-t"], check=True, timeout=DEADLINE)
    with subprocess.Popen(command) as process:
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


@pytest.fixture
def running():
    with serving(FakeGenerator()) as running:
        yield running


@pytest.mark.skipif(not shutil.which("nginx"), reason="nginx is not installed")
def test_nginx_spreads_requests_and_goes_round_a_server_that_is_full_or_gone(tmp_path):
    generators = FakeGenerator(), FakeGenerator()
    with contextlib.ExitStack() as stack:
        first, second = (stack.enter_context(serving(generator)) for generator in generators)
        url = stack.enter_context(nginx(tmp_path, [first.port, second.port]))
        client = Client(url, retries=0, timeout=DEADLINE)
        eventually(client.is_ready)
        assert [client.generate(text) for text in distinct(8)] == [expected(text) for text in distinct(8)]
        assert all(len(generator.batches) >= 2 for generator in generators)
        first.batcher.close()  # answers 503 from now on
        assert [client.generate(text) for text in distinct(8)] == [expected(text) for text in distinct(8)]
        with pytest.raises(RuntimeError, match="404"):
            client._ask("/metrics")
        unfinished = socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=DEADLINE)
        with unfinished:
            unfinished.sendall(b"GET / HTTP/1.1\r\n")
            assert unfinished.recv(100) == b""
