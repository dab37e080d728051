"""The server's worker: uvicorn's event loop, and nobody may keep anything by being slow.

uvicorn waits without end for the rest of a head or of a body, takes heads of any size, answers
what is no HTTP in plain text, and when it closes a connection the kernel may take back the answer.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import HANDLED_SIGNALS, Server
from uvicorn_worker import UvicornWorker

from .problem_kinds import document, kind_of

#: Bytes of a request's line and headers.
MAX_HEAD_BYTES = 32 << 10
#: Seconds for which a connection that is over is listened to, so that the client gets the answer:
#: the kernel takes it back when something arrives that nobody reads.
_LINGER_SECONDS = 2.0


class _Transport:
    """A connection's transport, whose end does not take back what was answered."""

    def __init__(self, transport: Any, protocol: Protocol) -> None:
        self._transport = transport
        self._protocol = protocol
        self._held: list[bytes] = []

    def write(self, data: bytes) -> None:
        """Write, when all that the loop has to say at the moment is said: head and body at once."""
        if not self._held:
            self._protocol.loop.call_soon(self.flush)
        self._held.append(data)

    def flush(self) -> None:
        """Write what is held; unless that is over, and nobody told the application."""
        held, self._held = self._held, []
        if held and not self._transport.is_closing():
            self._transport.write(b"".join(held))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def close(self) -> None:
        """Close it at once if the request is whole, else when its sender had time to listen."""
        self.flush()
        if self._protocol.reading and not self._transport.is_closing():
            self._protocol.linger()
        else:
            self._transport.close()


class Protocol(HttpToolsProtocol):
    """One connection.

    :ivar reading: whether a request has begun to come in and is not whole.
    :ivar most_late: bytes of a request that are read and thrown away after its answer: of a body
        that may be sent, all of them.
    """

    reading = False
    most_late = 1 << 20

    def connection_made(self, transport: Any) -> None:
        """Somebody connected, and has so long to send a request."""
        super().connection_made(transport)
        self.transport = _Transport(transport, self)  # type: ignore[assignment]
        self._raw = transport
        self._in_head = True
        self._head_bytes = 0
        self._late_bytes = 0
        self._lingers = False
        #: Since when (the loop's clock) the client owes us something.
        self.since: float | None = self.loop.time()

    def data_received(self, data: bytes) -> None:
        """Read on."""
        if self._lingers:
            self._late_bytes += len(data)
            if self._late_bytes > self.most_late:
                self._raw.abort()
            return
        if self.since is None:
            self.since = self.loop.time()
        if self._in_head:
            self._head_bytes += len(data)
            self.reading = True
        super().data_received(data)
        if self._in_head and self._head_bytes > MAX_HEAD_BYTES:
            self.refuse(431, "A request's line and headers may have 32 KB.")

    def on_message_begin(self) -> None:
        """A request begins, perhaps right behind another one."""
        self._in_head = self.reading = True
        if self.since is None:
            self.since = self.loop.time()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Its head is there."""
        self._in_head = False
        self._head_bytes = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A piece of its body is there; it may be answered already."""
        if self.cycle is not None and self.cycle.response_complete:
            self._late_bytes += len(body)
            if self._late_bytes > self.most_late:
                self._raw.abort()
            return
        super().on_body(body)

    def on_message_complete(self) -> None:
        """It is whole."""
        self.reading = False
        self.since = None
        self._late_bytes = 0
        super().on_message_complete()
        self._in_head = True

    def send_400_response(self, msg: str) -> None:
        """What came is not HTTP."""
        self.refuse(400, msg)

    def refuse(self, status: int, message: str) -> None:
        """Say why a request never reached the application, and be done with the connection."""
        if self._lingers or self._raw.is_closing():
            return
        cycle = self.cycle
        if cycle is not None and cycle.response_started and not cycle.response_complete:
            self._raw.abort()
            return
        kind = kind_of(status, "malformed-request" if status == 400 else "")
        body = json.dumps(document(kind, message, status=status)).encode()
        head = [
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
            "Connection: close",
            "Content-Type: application/problem+json",
            f"Content-Length: {len(body)}",
        ]
        if kind.retryable:
            head.append("Retry-After: 1")
        self.transport.write("\r\n".join(head).encode() + b"\r\n\r\n" + body)
        self._let_go()
        self.linger()

    def _let_go(self) -> None:
        """The application need not go on with what was being read."""
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()

    def linger(self) -> None:
        """Send nothing more, and listen a little, so that the client gets what was sent."""
        self._lingers = True
        self.transport.flush()  # type: ignore[attr-defined]
        self.flow.resume_reading()
        if self._raw.can_write_eof():
            self._raw.write_eof()
        self.since = self.loop.time()

    def look(self, now: float, patience: float) -> None:
        """End what takes too long; called now and then.

        :param now: by the loop's clock.
        :param patience: seconds for a whole request, and for an answer to be taken.
        """
        if self._raw.is_closing():
            # Closed with bytes that nobody takes.
            if self._raw.get_write_buffer_size():
                self.since = self.since or now
                if now - self.since > patience:
                    self._raw.abort()
            return
        if self.since is None:
            if self._raw.get_write_buffer_size():
                self.since = now
            return
        waited = now - self.since
        if self._lingers:
            if waited > _LINGER_SECONDS:
                self._raw.abort()
        elif waited > patience:
            answered = self.cycle is not None and self.cycle.response_complete
            if self.reading and not self._in_head and not answered:
                self.refuse(408, "The body did not arrive in time.")
            elif self._raw.get_write_buffer_size() or self.reading or self.cycle is None:
                # Half a head, an answer that is not read, or never a word.
                self._raw.abort()
            else:
                self.since = None


class _Server(Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, but the process ends in good order and not by the signal: gunicorn's hooks
        and Python's exit handlers run."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {each: signal.signal(each, self.handle_exit) for each in HANDLED_SIGNALS}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)


class Worker(UvicornWorker):
    """gunicorn's worker around uvicorn.

    :ivar read_timeout: seconds for one request to come in, and for its answer to be taken.
    """

    CONFIG_KWARGS = {
        "loop": "auto",
        "http": Protocol,
        "ws": "none",
        "lifespan": "on",
        # Django is told by its own settings whom to believe.
        "proxy_headers": False,
        "server_header": False,
    }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        from .gunicorn import server

        self.read_timeout: float = server.READ_TIMEOUT
        self.config.timeout_graceful_shutdown = self.cfg.graceful_timeout or None

    async def _serve(self) -> None:
        from .conf import conf

        Protocol.most_late = conf.MAX_BATCH_BYTES + (1 << 20)
        self.config.app = self.wsgi
        server = _Server(config=self.config)
        self._install_sigquit_handler()
        looking = asyncio.create_task(self._look_after(server))
        try:
            await server.serve(sockets=self.sockets)
        finally:
            looking.cancel()
        if not server.started:
            # gunicorn's code for a worker that cannot start: it does not try again for ever.
            os._exit(3)

    async def _look_after(self, server: Server) -> None:
        loop = asyncio.get_running_loop()
        interval = min(0.5, self.read_timeout / 4)
        while True:
            await asyncio.sleep(interval)
            now = loop.time()
            for connection in list(server.server_state.connections):
                if isinstance(connection, Protocol):
                    connection.look(now, self.read_timeout)
