"""What surrounds a request: its body within limits, a client that leaves, counted and guarded answers."""

import asyncio
import contextlib
import json
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry, Counter, Histogram
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mist_fairseq.serve.access import log_request, request_id
from mist_fairseq.serve.batching import SECONDS, Batcher
from mist_fairseq.serve.limits import Limits
from mist_fairseq.serve.pages import NOTHING

_CLOSE = {"Connection": "close"}

_Result = TypeVar("_Result")


async def read_json(request: Request, limits: Limits, batcher: Batcher) -> dict[str, Any]:
    """Read a request's body, a JSON object, unless the batcher is closing; HTTPException says why it is not taken."""
    kind = request.headers.get("content-type", "")
    if kind.partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, f"the content type is {kind[:60]!r}, expected application/json", _CLOSE)
    if coding := request.headers.get("content-encoding"):
        raise HTTPException(415, f"the body is compressed, {coding[:60]!r}: send it as it is", _CLOSE)
    try:
        async with asyncio.timeout(limits.max_seconds):
            body = await unless(batcher.closing.wait(), _read(request, limits.max_body))
    except TimeoutError:
        message = f"the body did not arrive within {limits.max_seconds:g} seconds (--max-seconds)"
        raise HTTPException(408, message, _CLOSE) from None
    if body is None:
        batcher.check_open()
    try:
        content = json.loads(body or b"", object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        reason = str(error).partition(";")[0]  # advice to programmers follows
        raise HTTPException(400, f"the body is not JSON in UTF-8: {reason}") from error
    if not isinstance(content, dict):
        raise HTTPException(422, f"the body is {content!r:.60}, expected a JSON object")
    return content


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Of a key that stands twice the last value would count without a word."""
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("a key stands twice in an object")
    return content


async def _read(request: Request, most: int) -> bytearray:
    body, size = bytearray(), 0
    async for piece in request.stream():
        size += len(piece)
        if size <= most:  # the rest is thrown away: a client that is still sending reads no answer
            body += piece
    if size > most:
        raise HTTPException(413, f"the body is longer than {most} bytes (--max-body)", _CLOSE)
    return body


async def client_leaves(request: Request):
    """Return once the client of a request whose body was read disconnects."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def unless(event: Coroutine, work: Coroutine[None, None, _Result]) -> _Result | None:
    """The result of the work; None, with the work cancelled, if the event comes first."""
    working, waiting = asyncio.create_task(work), asyncio.create_task(event)
    try:
        await asyncio.wait({working, waiting}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        for task in (working, waiting):
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await waiting


class Guard:
    """Middleware that numbers, counts, times and logs requests, and tells browsers to trust nothing.

    Each of the *paths* is counted for itself, all others together. An answer may have a Content-Security-Policy of its
    own. Once the batcher is closing, answers say that their connection ends.
    """

    def __init__(self, app: ASGIApp, metrics: CollectorRegistry, paths: frozenset[str], batcher: Batcher):
        self.app, self.paths, self.batcher = app, paths, batcher
        described = "Requests answered; 499 stands for a client that left before."
        self.requests = Counter("mist_requests", described, ["path", "status"], registry=metrics)
        described = "From a request's head to its answer's last byte."
        self.seconds = Histogram("mist_request_seconds", described, ["path"], buckets=SECONDS, registry=metrics)
        self.headers = {
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-store",
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send):
        """Answer a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status = time.perf_counter(), 499  # nginx's number for a client that left before its answer
        number = scope.setdefault("state", {})["request_id"] = request_id(Headers(scope=scope))

        async def send_guarded(message: Message):
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                spent = f"total;dur={1000 * (time.perf_counter() - start):.1f}"
                headers.update(self.headers | {"X-Request-ID": number, "Server-Timing": spent})
                headers.setdefault("Content-Security-Policy", NOTHING)
                if self.batcher.closing.is_set():
                    headers.update(_CLOSE)
            await send(message)

        try:
            await self.app(scope, receive, send_guarded)
        except ClientDisconnect:
            pass
        except Exception:
            status = 500
            raise
        finally:
            path = scope["path"] if scope["path"] in self.paths else "other"
            self.requests.labels(path, str(status)).inc()
            seconds = time.perf_counter() - start
            self.seconds.labels(path).observe(seconds)
            log_request(scope, status, seconds)
