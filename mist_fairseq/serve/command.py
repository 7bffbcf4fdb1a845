"""``python -m mist_fairseq.serve``."""

import argparse
import logging
import os
import signal
import socket
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import uvicorn

from mist_fairseq.generate.text_generator import TextGenerator
from mist_fairseq.hub.loading import load_generator
from mist_fairseq.serve.access import check_origins, log_to_stdout, read_keys
from mist_fairseq.serve.app import create_app
from mist_fairseq.serve.info import Weights, describe, read_weights_info
from mist_fairseq.serve.limits import Limits, flag
from mist_fairseq.serve.options import Parser, Several
from mist_fairseq.serve.protocol import protocol_with_limit


def read_examples(file: str) -> list[str]:
    """The lines of a file that are not empty; ValueError: it is not text in UTF-8."""
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"--examples {file} is not in UTF-8: {error}") from error
    return [line for line in lines if line.strip()]


class Server(uvicorn.Server):
    """Uvicorn that ends with status 0 once requests in flight are answered, and at once on a second signal."""

    def __init__(self, app, limits: Limits):
        logs: Any = dict(log_config=None, log_level="warning", access_log=False)
        # A proxy in front is to close an idle connection first: nginx does after 60 seconds.
        times: Any = dict(timeout_keep_alive=75, timeout_graceful_shutdown=limits.max_shutdown)
        protocol: Any = dict(http=protocol_with_limit(limits.max_head_seconds), ws="none", server_header=False)
        super().__init__(uvicorn.Config(app, **protocol, **logs, **times))
        self._batcher = app.state.batcher

    def handle_exit(self, sig: int, _):
        """Take no more requests; the second time, end."""
        if self.should_exit:
            os._exit(128 + sig)
        self.should_exit = True
        self._batcher.close()


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens from now on: who connects while the model is loaded waits. An OSError names the address."""
    try:
        listening = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        raise OSError(f"cannot listen on {host} port {port}: {error}") from error
    # Connections inherit it. Else an answer's body waits, for 40 ms at worst, until its head is acknowledged: asyncio
    # sees to that for sockets of its own making only.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


def make_parser() -> Parser:
    """The command's options."""
    parser = Parser(
        prog="python -m mist_fairseq.serve",
        description="Serve a model over HTTP.",
        epilog="Each may be given as an environment variable, too: --max-batch as MIST_MAX_BATCH, DIR as MIST_MODEL.",
    )
    parser.add_argument("model", metavar="DIR", nargs="?", help="a model, in PyTorch or ONNX, or its name on the hub")
    parser.add_argument("--host", default="127.0.0.1", help="(default: %(default)s, this machine alone)")
    parser.add_argument("--port", type=int, default=8000, help="0 for any that is free (default: %(default)s)")
    parser.add_argument(
        "--name", help="what /info and others call the model (default: its folder's name, or the hub's)"
    )
    parser.add_argument("--examples", metavar="FILE", help="texts to try the model with, one a line, in UTF-8")
    parser.add_argument("--precision", help="fp32, bf16, int8, as far as the model has them (default: the model's)")
    parser.add_argument("--accelerate", help="engine, as far as the model has it (default: the model's)")
    parser.add_argument("--device", help="auto, cpu, cuda or cuda:N (default: the model's, in ONNX cpu, else auto)")
    parser.add_argument("--threads", type=int, help="of the CPU, for the model (default: the model's)")
    several: Any = dict(action=Several, default=[])
    parser.add_argument("--api-key", metavar="KEY", **several, help="which requests need; may be given several times")
    parser.add_argument(
        "--api-key-file", metavar="FILE", help="a key a line, which other users do not see, as they do options"
    )
    parser.add_argument(
        "--cors-origin", metavar="URL", **several, help="a site whose pages may ask; may be given several times"
    )
    switch: Any = dict(action=argparse.BooleanOptionalAction, default=False)
    parser.add_argument("--access-log", **switch, help="write a line of JSON for each request to standard output")
    for limit in fields(Limits):
        described = f"{limit.metadata['help']} (default: %(default)s)"
        parser.add_argument(flag(limit.name), type=limit.type, default=limit.default, metavar="N", help=described)
    return parser


def main(arguments: list[str] | None = None, generator: TextGenerator | None = None):
    """Serve the folder's model, or *generator* in place of it, until a SIGTERM or SIGINT."""
    parser = make_parser()
    given = parser.parse_args(arguments)
    if given.model is None:
        parser.error("expected DIR, a model, or the environment variable MIST_MODEL")
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        limits = Limits(**{limit.name: getattr(given, limit.name) for limit in fields(Limits)})
        keys = read_keys(given.api_key, given.api_key_file)
        check_origins(given.cors_origin)
        examples = read_examples(given.examples) if given.examples else []
        listening = listen(given.host, given.port)
        weights = Weights(name=given.name or "model")
        if generator is None:
            names = ("precision", "accelerate", "device", "threads")
            options = {name: getattr(given, name) for name in names if getattr(given, name) is not None}
            generator = load_generator(given.model, **options)
            weights = read_weights_info(given.model, options.get("precision", "fp32"), given.name)
        info = describe(generator, limits, weights, examples)  # which builds the engine, before the first text comes
    except (OSError, ValueError, ImportError) as error:
        sys.exit(f"error: {parser.blame(str(error), given)}")
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    if given.access_log:
        log_to_stdout()
    app = create_app(generator, limits, info, keys=keys, origins=given.cors_origin)
    host, port = listening.getsockname()[:2]
    print(f"listening on http://{f'[{host}]' if ':' in host else host}:{port}", flush=True)
    Server(app, limits).run(sockets=[listening])
