"""Who may ask, and the log of what was asked."""

import hmac
import json
import logging
import re
import sys
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from mist_fairseq.serve.messages import error_response

#: Paths that need no key: probes, and pages and a description that are the same everywhere.
OPEN = ("/health", "/ready", "/", "/docs", "/openapi.json")

_KEY = re.compile(r"[!-~]+")
_ID = re.compile(r"[\w.:/+=@-]{1,128}", re.ASCII)

logger = logging.getLogger("mist_fairseq.access")


def read_keys(keys: Sequence[str], file: str | None) -> tuple[str, ...]:
    """The keys, and those of a file, one a line; a ValueError says what is none, without showing it."""
    if file is not None:
        found = [
            line
            for line in map(str.strip, Path(file).read_text(encoding="utf-8", errors="replace").splitlines())
            if line
        ]
        if not found:
            raise ValueError(f"--api-key-file {file} is empty, expected a key a line")
        keys = [*keys, *found]
    for key in keys:
        if not _KEY.fullmatch(key):
            raise ValueError(f"an API key of {len(key)} characters: expected some, of ASCII, without white space")
    return tuple(keys)


def check_origins(origins: Sequence[str]):
    """Refuse what no browser sends as an origin; ValueError."""
    for origin in origins:
        host = urlsplit(origin).netloc
        if origin != "*" and not (host and origin in (f"http://{host}".lower(), f"https://{host}".lower())):
            raise ValueError(f"--cors-origin is {origin!r}, expected one like https://example.com, or *")


class KeyCheck:
    """Middleware that answers 401 where a request has none of the *keys*."""

    def __init__(self, app: ASGIApp, keys: Sequence[str]):
        self.app, self._keys = app, [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send):
        """Answer a request, or pass it on."""
        if scope["type"] != "http" or scope["path"] in OPEN or self._is_known(_given_key(Headers(scope=scope))):
            await self.app(scope, receive, send)
            return
        message = "no valid API key: send one as Authorization: Bearer KEY"
        refuse = error_response(scope["path"], 401, message, {"WWW-Authenticate": "Bearer"})
        await refuse(scope, receive, send)

    def _is_known(self, given: bytes) -> bool:
        """Compare with every key, each in a time that does not tell how much of it is right."""
        return sum(hmac.compare_digest(given, key) for key in self._keys) > 0


def _given_key(headers: Headers) -> bytes:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return key.strip().encode() if scheme.lower() == "bearer" else b""


def request_id(headers: Headers) -> str:
    """The ``X-Request-ID`` that a proxy or client gave, if it may stand in a log, else a new one."""
    given = headers.get("x-request-id", "")
    return given if _ID.fullmatch(given) else uuid.uuid4().hex


def log_to_stdout():
    """Write the log of requests to standard output, a line of JSON each."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False


def log_request(scope: Scope, status: int, seconds: float):
    """Log a request that was answered; of its texts their number alone, and nothing of its query."""
    if not logger.isEnabledFor(logging.INFO):
        return
    entry = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "method": scope["method"],
        "path": scope["path"][:200],
        "status": status,
        "seconds": round(seconds, 6),
        "texts": scope["state"].get("texts", 0),
        "client": scope["client"][0] if scope.get("client") else None,
        "request_id": scope["state"]["request_id"],
    }
    logger.info(json.dumps(entry))
