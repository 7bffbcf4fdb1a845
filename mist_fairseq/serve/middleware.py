"""Middleware: bodies within bounds, measured and guarded answers, clients that leave."""

import asyncio
import contextlib
import time
from collections.abc import Coroutine
from typing import TypeVar

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mist_fairseq.serve.batching import Batcher
from mist_fairseq.serve.limits import Limits
from mist_fairseq.serve.metrics import Metrics

CLIENT_LEFT = 499  # nginx's number for it
RETRY = {"Retry-After": "1"}  # seconds

# Of a body that is too long so much is read and thrown away: a client that is still sending reads no answer.
_DISCARDED = 2**24

_Result = TypeVar("_Result")


def error(status: int, message: str, **headers: str) -> JSONResponse:
    """An answer that says what was wrong."""
    return JSONResponse({"error": message}, status, headers)


class Body:
    """Reads a POST's whole body before the application runs, and answers in its place if it must not be taken.

    Args:
        path: the one that takes a body.
        batcher: when it closes, bodies that have not come yet are waited for no longer.
    """

    def __init__(self, app: ASGIApp, path: str, limits: Limits, batcher: Batcher):
        self.app, self.path, self.limits, self.batcher = app, path, limits, batcher

    async def __call__(self, scope: Scope, receive: Receive, send: Send):
        """Answer a request."""
        if scope["type"] != "http" or scope["method"] != "POST" or scope["path"] != self.path:
            await self.app(scope, receive, send)
            return
        kind = Headers(scope=scope).get("content-type", "")
        if kind.split(";")[0].strip().lower() != "application/json":
            message = f"the content type is {kind[:60]!r}, expected application/json"
            await error(415, message, connection="close")(scope, receive, send)
            return
        try:
            async with asyncio.timeout(self.limits.max_seconds):
                found = await _unless(self.batcher.closed(), self._read(receive))
        except TimeoutError:
            message = f"the body did not arrive within {self.limits.max_seconds:g} seconds (--max-seconds)"
            await error(408, message, connection="close")(scope, receive, send)
            return
        if found is None:
            await error(503, "the server is shutting down", **RETRY)(scope, receive, send)
            return
        body, size = found
        if size is None:
            return
        if size > self.limits.max_body:
            message = f"the body is longer than {self.limits.max_body} bytes (--max-body)"
            await error(413, message, connection="close")(scope, receive, send)
            return
        waiting = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def replay() -> Message:
            return waiting.pop() if waiting else await receive()

        await self.app(scope, replay, send)

    async def _read(self, receive: Receive) -> tuple[bytearray, int | None]:
        """The body and its size; of one that is too long some; no size if the client left."""
        body, size = bytearray(), 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return body, None
            size += len(message.get("body", b""))
            if size <= self.limits.max_body:
                body += message.get("body", b"")
            if not message.get("more_body") or size > self.limits.max_body + _DISCARDED:
                return body, size


class Outermost:
    """Counts and times requests, and tells browsers to trust nothing but the page itself.

    Args:
        paths: that are told apart; others count as one.
        batcher: once it is closing, answers say that their connection ends.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: frozenset[str], policy: str, batcher: Batcher):
        self.app, self.metrics, self.paths, self.policy, self.batcher = app, metrics, paths, policy, batcher

    async def __call__(self, scope: Scope, receive: Receive, send: Send):
        """Answer a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status = time.perf_counter(), CLIENT_LEFT

        async def guarded(message: Message):
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["Content-Security-Policy"] = self.policy
                headers["X-Content-Type-Options"] = "nosniff"
                headers["Referrer-Policy"] = "no-referrer"
                headers["Cache-Control"] = "no-store"
                if self.batcher.closing:
                    headers["Connection"] = "close"
            await send(message)

        try:
            await self.app(scope, receive, guarded)
        except Exception:
            status = 500
            raise
        finally:
            path = scope["path"] if scope["path"] in self.paths else "other"
            self.metrics.answered(path, status, time.perf_counter() - start)


async def unless_client_leaves(request: Request, work: Coroutine[None, None, _Result]) -> _Result | None:
    """The result; None, and the work is cancelled, if the client disconnects before. The body must have been read."""
    return await _unless(_left(request), work)


async def _unless(event: Coroutine, work: Coroutine[None, None, _Result]) -> _Result | None:
    """The result; None, and the work is cancelled, if the event comes before."""
    working, waiting = asyncio.create_task(work), asyncio.create_task(event)
    try:
        await asyncio.wait({working, waiting}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        for task in (working, waiting):
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await waiting


async def _left(request: Request):
    while (await request.receive())["type"] != "http.disconnect":
        pass
