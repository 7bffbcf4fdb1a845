"""Clients that are slow with the head of a request, over raw sockets."""

import http.client
import socket
import time

import pytest

from tests.serve.helpers import DEADLINE, FakeGenerator, serving

LIMIT = 1.5  # seconds
ASKED = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture(scope="module")
def impatient():
    with serving(FakeGenerator(), max_head_seconds=LIMIT) as running:
        yield running


def connect(running) -> socket.socket:
    return socket.create_connection(("127.0.0.1", running.port), timeout=DEADLINE)


def is_answered(connection: socket.socket) -> bool:
    """Whether an answer of 200 comes, of which nothing is left to read then."""
    response = http.client.HTTPResponse(connection)
    response.begin()
    return response.status == 200 and response.read() != b""


def test_heads_that_do_not_come_to_an_end_are_closed(impatient):
    """Whether nothing came, half of it, or a byte now and then; others are answered meanwhile."""
    start = time.monotonic()
    waiting = [connect(impatient) for _ in range(40)]
    for i, connection in enumerate(waiting):
        connection.sendall(ASKED[: i % 30])
    for _ in range(3):
        time.sleep(LIMIT / 5)
        waiting[0].sendall(b"G")
    assert impatient.get("/health")[0] == 200
    assert [connection.recv(1) for connection in waiting] == [b""] * 40
    assert LIMIT * 0.95 < time.monotonic() - start < LIMIT + DEADLINE / 2
    for connection in waiting:
        connection.close()


def test_slow_heads_that_come_in_time_and_idle_connections_are_not_closed(impatient):
    with connect(impatient) as connection:
        for part in (ASKED[:5], ASKED[5:20], ASKED[20:]):
            time.sleep(LIMIT / 5)
            connection.sendall(part)
        assert is_answered(connection)
        time.sleep(LIMIT * 1.2)  # idle for longer than a head may take
        connection.sendall(ASKED)
        assert is_answered(connection)
        connection.sendall(ASKED[:10])  # and the head of a later request has the same limit
        start = time.monotonic()
        assert connection.recv(1) == b"" and time.monotonic() - start > LIMIT * 0.9


def test_a_body_and_an_answer_may_take_longer():
    generator = FakeGenerator()
    generator.seconds = LIMIT * 1.2
    with serving(generator, max_head_seconds=LIMIT) as running, connect(running) as connection:
        body = b'{"text": "how"}'
        head = (
            f"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        )
        connection.sendall(f"{head}\r\n".encode() + body[:5])
        time.sleep(LIMIT * 1.2)
        connection.sendall(body[5:])
        assert is_answered(connection)
