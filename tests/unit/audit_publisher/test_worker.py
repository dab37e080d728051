"""One connection of the publisher's worker, byte by byte, and how its server stops."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import os
import signal
import time
import weakref
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from uvicorn.config import Config
from uvicorn.server import ServerState

from audit_logging.signing import Signer
from audit_publisher.http.worker import MAX_PIPELINED, Protocol, Worker
from audit_publisher.testing import make_event
from tests.unit.audit_publisher.conftest import CONSUMER, URL
from tests.unit.audit_publisher.served import Server, serve

OFFER = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAA\r\n"
POST = b"POST /p HTTP/1.1\r\nHost: h\r\n"
GET = b"GET /g HTTP/1.1\r\nHost: h\r\n"


class App:
    """Answers with what it was asked; a GET only when it may."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.asked = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message["body"]
            more = message["more_body"]
        self.requests.append({"headers": scope["headers"], "body": body})
        self.asked.set()
        if scope["method"] == "GET":
            await self.go_on.wait()
        answer = b"%s %s;" % (scope["path"].encode(), body)
        length = (b"content-length", b"%d" % len(answer))
        await send({"type": "http.response.start", "status": 200, "headers": [length]})
        await send({"type": "http.response.body", "body": answer})


Steps = Callable[[App, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[bytes]]


def problem(answer: bytes) -> dict[str, Any]:
    """The document of an answer that refuses."""
    found: dict[str, Any] = json.loads(answer.partition(b"\r\n\r\n")[2])
    return found


def connected(steps: Steps, protocol: type[Protocol] = Protocol) -> tuple[App, bytes]:
    """Run `steps` on one connection to a protocol with an app behind it."""

    async def run() -> tuple[App, bytes]:
        app = App()
        config = Config(app=app, http=protocol, ws="none", log_config=None, lifespan="off")
        config.load()
        state = ServerState()
        loop = asyncio.get_running_loop()
        server = await loop.create_server(
            lambda: protocol(config=config, server_state=state, app_state={}), "127.0.0.1", 0
        )
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        try:
            return app, await asyncio.wait_for(steps(app, reader, writer), 20)
        finally:
            writer.close()
            for connection in list(state.connections):
                connection.transport.abort()
            server.close()

    return asyncio.run(run())


def sent(data: bytes, *more: bytes) -> tuple[App, bytes]:
    """Send, piece by piece, and read all that is answered until the connection's end."""

    async def steps(app: App, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        for part in (data, *more):
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0)
        return await reader.read()

    return connected(steps)


LIVE = b"GET /health/live HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
LAST = GET + b"Connection: close\r\n\r\n"


@pytest.mark.parametrize("pieces", ["one", "each byte"])
@pytest.mark.parametrize(
    "framed",
    [
        b"Content-Length: 5\r\n\r\nhello",
        b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    ],
    ids=["length", "chunked"],
)
def test_an_offer_of_http2_is_not_taken_up(
    framed: bytes, pieces: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    # Twice on one connection, and then one without.
    data = (POST + OFFER + framed) * 2 + LAST
    parts = [data] if pieces == "one" else [data[i : i + 1] for i in range(len(data))]
    app, answer = sent(*parts)
    assert [request["body"] for request in app.requests] == [b"hello", b"hello", b""]
    assert answer.count(b"HTTP/1.1 200") == 3
    names = {name for name, _ in app.requests[0]["headers"]}
    assert names.isdisjoint({b"upgrade", b"http2-settings", b"connection"})
    assert not caplog.records


def test_an_offer_beside_a_close() -> None:
    _, answer = sent(GET + b"Connection: close, Upgrade\r\nUpgrade: websocket\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"connection: close" in answer


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        (b"".join(b"X%d: y\r\n" % n for n in range(30_000)), "100 headers"),
        (b"".join(b"X%d: y\r\n" % n for n in range(100)), "100 headers"),
        (b"X: " + b"y" * 8190 + b"\r\n", "8,190 bytes"),
        (b"X: " + b"y" * 150_000 + b"\r\n", ""),
        (b"".join(b"X%d: %s\r\n" % (n, b"y" * 8000) for n in range(5)), "32 KB"),
    ],
    ids=["very many", "many", "long", "very long", "much"],
)
def test_a_head_that_is_too_large(headers: bytes, said: str) -> None:
    app, answer = sent(POST + headers + b"Content-Length: 0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 431 ")
    assert said in json.loads(answer.partition(b"\r\n\r\n")[2])["detail"]
    assert not app.requests


def test_an_address_that_is_too_large() -> None:
    app, answer = sent(b"GET /" + b"x" * 40_000 + b" HTTP/1.1\r\nHost: h\r\n\r\n")
    assert (answer[:12], app.requests) == (b"HTTP/1.1 431", [])


def test_a_head_that_is_just_small_enough() -> None:
    # With Host and Connection it is 100 of them.
    many = b"".join(b"X%d: y\r\n" % n for n in range(97)) + b"Y: " + b"y" * 8189 + b"\r\n"
    for _ in range(2):
        assert sent(GET + many + b"\r\n", LAST)[1].count(b"HTTP/1.1 200") == 2


def test_trailers_are_bounded_and_tell_nothing() -> None:
    chunked = POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n"
    app, answer = sent(chunked + b"X-Late: 1\r\n\r\n" + LAST)
    assert answer.count(b"HTTP/1.1 200") == 2
    assert b"x-late" not in dict(app.requests[0]["headers"])
    for trailers in (b"X: y\r\n" * 200, b"X: " + b"y" * 9_000 + b"\r\n\r\n"):
        app, answer = sent(chunked + trailers)
        assert (answer[:12], app.requests) == (b"HTTP/1.1 431", [])


@pytest.mark.parametrize(
    "behind",
    [
        b"garbage\r\n\r\n",
        GET + b"X: y\r\n" * 200 + b"\r\n",
        GET + b"X: " + b"y" * 40_000 + b"\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        GET,
    ],
    ids=["garbage", "many headers", "long header", "broken chunk", "half"],
)
def test_what_comes_behind_a_request_is_not_its_answer(behind: bytes) -> None:
    async def steps(app: App, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        app.go_on.clear()
        writer.write(GET + b"\r\n" + behind)
        if behind == GET:
            writer.write_eof()
        await app.asked.wait()
        app.go_on.set()
        return await reader.read()

    _, answer = connected(steps)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.endswith(b"/g ;")


def test_a_client_that_has_said_all_still_gets_its_answer() -> None:
    async def steps(app: App, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        app.go_on.clear()
        writer.write(GET + b"\r\n" + GET + b"\r\n")
        writer.write_eof()
        await app.asked.wait()
        app.go_on.set()
        return await reader.read()

    assert connected(steps)[1].count(b"HTTP/1.1 200") == 2


def test_half_a_body_that_ends_is_told_so() -> None:
    async def steps(app: App, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        writer.write(POST + b"Content-Length: 5\r\n\r\nhe")
        writer.write_eof()
        return await reader.read()

    app, answer = connected(steps)
    assert (problem(answer)["code"], app.requests) == ("body-incomplete", [])


def test_half_a_head_that_ends_is_closed() -> None:
    async def steps(app: App, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        writer.write(POST)
        writer.write_eof()
        return await reader.read()

    app, answer = connected(steps)
    assert (answer, app.requests) == (b"", [])


@pytest.mark.parametrize(
    ("request_", "code", "word", "header"),
    [
        (b"GET /g HTTP/1.1\r\nHost : h\r\n\r\n", "malformed-request", "header", None),
        (b"NOT HTTP\r\n\r\n", "malformed-request", "method", None),
        (POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", "bad-transfer", "chunk", None),
        (GET + b"X-Long: " + b"x" * 9000 + b"\r\n\r\n", "headers-too-large", "8,190", "X-Long"),
    ],
)
def test_what_is_wrong_is_named(request_: bytes, code: str, word: str, header: str | None) -> None:
    document = problem(sent(request_)[1])
    assert document["code"] == code
    assert word in document["detail"]
    assert document.get("error", {}).get("header") == header


def test_few_requests_wait_on_a_connection() -> None:
    """Each takes fifty times the memory of its bytes."""

    async def steps(app: App, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        app.go_on.clear()
        writer.write((GET + b"\r\n") * 3000)
        await app.asked.wait()
        app.go_on.set()
        return await reader.read()

    app, answer = connected(steps)
    # One is answered, and those that waited; the connection's end says that the rest was not read.
    assert answer.count(b"HTTP/1.1 200") == len(app.requests) == 1 + MAX_PIPELINED


def test_a_connection_that_is_over_leaves_nothing() -> None:
    """Not until the garbage collector comes: it seldom does."""
    connections = weakref.WeakSet[Protocol]()

    class Seen(Protocol):
        def connection_made(self, transport: Any) -> None:
            connections.add(self)
            super().connection_made(transport)

    async def steps(app: App, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        app.go_on.clear()
        writer.write((GET + b"\r\n") * 10)
        await app.asked.wait()
        assert len(connections) == 1
        writer.transport.abort()
        app.go_on.set()
        while connections:
            await asyncio.sleep(0.01)
        return b"all gone"

    gc.collect()
    gc.disable()
    try:
        assert connected(steps, Seen)[1] == b"all gone"
    finally:
        gc.enable()


def test_one_connection_too_many_ends_the_one_that_is_idle_for_longest() -> None:
    class Few(Protocol):
        most = 3

    async def steps(app: App, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        address = writer.get_extra_info("peername")
        others = [await asyncio.open_connection(*address) for _ in range(2)]
        for say, hear in [(writer, reader), *((each[1], each[0]) for each in others)]:
            say.write(GET + b"\r\n")
            await hear.readuntil(b";")
        writer.write(GET + b"\r\n")
        await reader.readuntil(b";")
        # The first has been used last.
        late, latest = await asyncio.open_connection(*address)
        assert await others[0][0].read() == b""
        app.go_on.clear()
        for say in (writer, others[1][1], latest):
            app.asked.clear()
            say.write(LAST)
            await app.asked.wait()
        # All are in use: nobody is cut off for another one.
        refused, _ = await asyncio.open_connection(*address)
        with contextlib.suppress(ConnectionError):
            assert await refused.read() == b""
        app.go_on.set()
        return await reader.read() + await others[1][0].read() + await late.read()

    assert connected(steps, Few)[1].count(b"HTTP/1.1 200") == 3


def test_one_connections_trouble_is_its_own(caplog: pytest.LogCaptureFixture) -> None:
    class Connection(Protocol):
        looked = 0

        def __init__(self) -> None:
            pass

        def look(self, now: float, patience: float) -> None:
            self.looked += 1
            raise ValueError("trouble")

    async def run() -> None:
        connections = [Connection(), Connection()]
        told: list[None] = []
        worker = SimpleNamespace(
            read_timeout=0.01, notify=lambda: told.append(None), ppid=os.getppid()
        )
        server = SimpleNamespace(server_state=SimpleNamespace(connections=set(connections)))
        task = asyncio.create_task(Worker._look_after(worker, server))  # type: ignore[arg-type]
        async with asyncio.timeout(20):
            while min(each.looked for each in connections) < 2 and not task.done():
                await asyncio.sleep(0.001)
        assert not task.done()
        # The arbiter hears of it all the same.
        assert len(told) >= 2
        task.cancel()

    asyncio.run(run())
    assert "trouble" in caplog.text


def event_request(private_key_file: Path) -> tuple[bytes, bytes]:
    data = json.dumps(make_event()).encode()
    signed = Signer(CONSUMER, "1", private_key_file).headers(int(time.time() * 1000))
    lines = [f"POST {URL} HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json"]
    lines += [f"{name}: {value}" for name, value in signed.items()]
    lines += [f"Content-Length: {len(data)}"]
    return "\r\n".join(lines).encode() + b"\r\n\r\n", data


def wait_for_log(server: Server, text: str) -> None:
    deadline = time.monotonic() + 20
    while text not in server.log():
        assert time.monotonic() < deadline, server.log()
        time.sleep(0.02)


@pytest.mark.slow
def test_a_request_half_read_at_a_stop_gets_its_answer(
    tmp_path: Path, public_pem: str, private_key_file: Path
) -> None:
    requests = [event_request(private_key_file) for _ in range(2)]
    with serve(tmp_path, public_pem, GUNICORN_WORKERS="1") as server:
        # In the middle of the head, and of the body.
        halves = [len(requests[0][0]) // 2, len(requests[1][0]) + len(requests[1][1]) // 2]
        wholes = [head + data for head, data in requests]
        connections = [
            server.connect(whole[:half]) for whole, half in zip(wholes, halves, strict=True)
        ]
        # They are read when a later one is answered.
        assert server.raw(LIVE)[0] == 200
        server.process.send_signal(signal.SIGTERM)
        wait_for_log(server, "Waiting for connections to close")
        for whole, half, connection in zip(wholes, halves, connections, strict=True):
            with connection:
                connection.sendall(whole[half:])
                answer = b""
                while part := connection.recv(65536):
                    answer += part
            assert answer.startswith(b"HTTP/1.1 200 ")
        assert server.process.wait(30) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "graceful"), [(signal.SIGQUIT, "600"), (signal.SIGINT, "600"), (signal.SIGHUP, "0")]
)
def test_a_quick_stop_waits_for_nobody(
    tmp_path: Path, public_pem: str, private_key_file: Path, how: signal.Signals, graceful: str
) -> None:
    head, _ = event_request(private_key_file)
    options = {"GUNICORN_GRACEFUL_TIMEOUT": graceful, "GUNICORN_READ_TIMEOUT": "600"}
    with (
        serve(tmp_path, public_pem, GUNICORN_WORKERS="1", **options) as server,
        server.connect(head),
    ):
        # Its head is read when a later one is answered.
        assert server.raw(LIVE)[0] == 200
        server.process.send_signal(how)
        # Far less than either of the two patiences.
        wait_for_log(server, "Finished server process")
        if how is not signal.SIGHUP:
            assert server.process.wait(20) == 0
