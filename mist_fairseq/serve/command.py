"""``python -m mist_fairseq.serve``."""

import argparse
import contextlib
import logging
import os
import signal
import socket
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

from mist_fairseq.files.reading import read_json
from mist_fairseq.generate.generator import TextGenerator
from mist_fairseq.serve.limits import Limits, option

try:
    import uvicorn

    from mist_fairseq.serve.app import create_app
except ModuleNotFoundError as error:
    sys.exit(f"error: no module {error.name!r}, which the server needs: pip install -c constraints.txt -e .[serve]")

_KEEP_ALIVE = 75  # seconds, more than a proxy in front keeps an idle connection


def load_generator(
    folder: str | Path, precision: str | None = None, accelerate: str | None = None, threads: int | None = None
) -> TextGenerator:
    """The model of a folder: ONNX if its ``config.json`` says so, else PyTorch.

    Args:
        folder: as ``save_pretrained`` or the ONNX export writes it.
        precision, accelerate, threads: the model's own default where None.

    Raises:
        OSError: the folder or a file of it cannot be read.
        ValueError: a file or an option is wrong; says which.
    """
    if threads is not None and (type(threads) is not int or threads < 1):
        raise ValueError(f"--threads is {threads!r}, expected a whole number of at least 1")
    config = Path(folder) / "config.json"
    if not config.is_file():
        raise FileNotFoundError(f"{folder} has no config.json: expected a folder with a model")
    settings = read_json(config)
    given = {"precision": precision, "accelerate": accelerate, "threads": threads}
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if isinstance(settings, dict) and settings.get("format") == "onnx":
        if accelerate is not None:
            raise ValueError(f"--accelerate {accelerate} is for models in PyTorch, {folder} is ONNX")
        from mist_fairseq.hub.onnx_generator import OnnxGenerator

        return OnnxGenerator.from_pretrained(str(folder), **options)
    from mist_fairseq import MistGenerator

    if threads is not None:
        import torch

        torch.set_num_threads(options.pop("threads"))
    return MistGenerator.from_pretrained(str(folder), **options)


class Server(uvicorn.Server):
    """Uvicorn that ends with status 0 once requests in flight are answered, and at once on a second signal.

    Args:
        app: made by ``create_app``.
        limits: the app's.
    """

    def __init__(self, app, limits: Limits):
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,
                log_level="warning",
                access_log=False,
                ws="none",
                server_header=False,
                timeout_keep_alive=_KEEP_ALIVE,
                timeout_graceful_shutdown=limits.max_shutdown,  # type: ignore[arg-type] # fractions work, too
            )
        )
        self._batcher = app.state.batcher

    async def startup(self, sockets: list[socket.socket] | None = None):
        """Listen, and say where."""
        await super().startup(sockets)
        for each in sockets or []:
            host, port = each.getsockname()[:2]
            print(f"listening on http://{f'[{host}]' if ':' in host else host}:{port}", flush=True)

    def handle_exit(self, sig: int, _):
        """Take no more requests; the second time, end."""
        if self.should_exit:
            os._exit(128 + sig)
        self.should_exit = True
        self._batcher.close()


def bind(host: str, port: int) -> socket.socket:
    """A socket that does not listen yet.

    Raises:
        OSError: the address cannot be had; says which.
        ValueError: there is no such port.
    """
    if not 0 <= port < 2**16:
        raise ValueError(f"--port is {port}, expected 0 to 65535")
    with _named(host, port):
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    return bound


@contextlib.contextmanager
def _named(host: str, port: int):
    """Errors say which address they are about."""
    try:
        yield
    except OSError as error:
        raise OSError(f"cannot listen on {host} port {port}: {error}") from error


def main(arguments: list[str] | None = None, generator: TextGenerator | None = None):
    """Serve until a SIGTERM or SIGINT.

    Args:
        arguments: of the command line, by default the process'.
        generator: in place of the folder's model.
    """
    parser = argparse.ArgumentParser(prog="python -m mist_fairseq.serve", description="Serve a model over HTTP.")
    parser.add_argument("folder", metavar="DIR", help="a model, in PyTorch or ONNX")
    parser.add_argument("--host", default="127.0.0.1", help="(default: %(default)s, this machine alone)")
    parser.add_argument("--port", type=int, default=8000, help="0 for any that is free (default: %(default)s)")
    parser.add_argument("--precision", help="fp32, bf16, int8, as far as the model has them (default: the model's)")
    parser.add_argument("--accelerate", help="engine of a model in PyTorch (default: the model's)")
    parser.add_argument("--threads", type=int, help="of the CPU, for the model (default: the model's)")
    for limit in fields(Limits):
        described = f"{limit.metadata['help']} (default: %(default)s)"
        parser.add_argument(option(limit.name), type=limit.type, default=limit.default, metavar="N", help=described)
    args = parser.parse_args(arguments)
    # By force: where fairseq is installed its import has set up logging already.
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True)
    try:
        limits = Limits(**{limit.name: getattr(args, limit.name) for limit in fields(Limits)})
        bound = bind(args.host, args.port)
        if generator is None:
            generator = load_generator(args.folder, args.precision, args.accelerate, args.threads)
        with _named(args.host, args.port):  # another server may have been quicker
            bound.listen()
    except (OSError, ValueError, ImportError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    Server(create_app(generator, limits), limits).run(sockets=[bound])
