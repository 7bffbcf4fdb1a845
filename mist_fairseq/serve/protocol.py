"""A limit on the time that a request's head takes, which uvicorn has not."""

import asyncio
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

_Protocol: Any = AutoHTTPProtocol  # httptools' where that is installed, else h11's


def protocol_with_limit(seconds: float) -> type[asyncio.Protocol]:
    """Uvicorn's protocol for HTTP, which closes a connection whose next request's head is not whole in time.

    The time runs from the connection, and later from the first byte after an answer: how long a connection may be idle
    between two requests is uvicorn's ``timeout_keep_alive``.
    """

    class Limited(_Protocol):
        _closing: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any):
            super().connection_made(transport)
            self._start()

        def data_received(self, data: bytes):
            if self._closing is None and self.cycle.response_complete:
                self._start()
            before = self.cycle
            super().data_received(data)
            if self.cycle is not before:
                self._stop()

        def connection_lost(self, exc: Exception | None):
            self._stop()
            super().connection_lost(exc)

        def _start(self):
            self._closing = self.loop.call_later(seconds, self.transport.close)

        def _stop(self):
            if self._closing is not None:
                self._closing.cancel()
                self._closing = None

    return Limited
