"""The server's worker: uvicorn's event loop, and nobody may keep anything by being slow.

uvicorn waits without end for the rest of a head or of a body, takes heads of any size, answers
what is no HTTP in plain text, and when it closes a connection the kernel may take back the answer.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import resource
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any
from weakref import ref

import httptools
from django.core.exceptions import ImproperlyConfigured
from gunicorn.errors import AppImportError
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import HANDLED_SIGNALS, Server
from uvicorn_worker import UvicornWorker

from .problem_kinds import document, kind_of

#: Bytes of a request's line and headers.
MAX_HEAD_BYTES = 32 << 10
#: Headers of a request, trailers included.
MAX_HEADERS = 100
#: Bytes of one of them, its name included.
MAX_HEADER_BYTES = 8190
#: Requests of one connection that wait behind the one that is being answered.
MAX_PIPELINED = 16
#: Files that a process has beside its connections: regions, spool, database, metrics, logs.
_OTHER_FILES = 256
#: Seconds for which a connection that is over is listened to, so that the client gets the answer:
#: the kernel takes it back when something arrives that nobody reads.
_LINGER_SECONDS = 2.0
#: Seconds that requests in progress get at a quick stop.
_QUICK_STOP_SECONDS = 1
_HEAD_TOO_LARGE = f"A request's line and headers may have {MAX_HEAD_BYTES >> 10} KB."
#: What offers another protocol. Nobody has to take it up, and we do not.
_OFFERS = (b"upgrade", b"http2-settings")

logger = logging.getLogger(__name__)


class _Refused(Exception):
    """The parser is told to go no further: `refuse` says why."""


class _Transport:
    """A connection's transport, whose end does not take back what was answered."""

    def __init__(self, transport: Any, protocol: Protocol) -> None:
        self._transport = transport
        # Else a connection that is over would wait for the garbage collector, which seldom comes.
        self._protocol = ref(protocol)
        self._loop = protocol.loop
        self._held: list[bytes] = []

    def write(self, data: bytes) -> None:
        """Write, when all that the loop has to say at the moment is said: head and body at once."""
        if not self._held:
            self._loop.call_soon(self.flush)
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
        protocol = self._protocol()
        if protocol is not None and protocol.reading and not self._transport.is_closing():
            protocol.linger()
        else:
            self._transport.close()


class Protocol(HttpToolsProtocol):
    """One connection.

    :ivar reading: whether a request has begun to come in and is not whole.
    :ivar most_late: bytes of a request that are read and thrown away after its answer: of a body
        that may be sent, all of them.
    :ivar most: connections of a process; for one more the longest idle one ends.
    """

    reading = False
    most_late = 1 << 20
    most = 10_000

    def connection_made(self, transport: Any) -> None:
        """Somebody connected, and has so long to send a request."""
        super().connection_made(transport)
        self.transport = _Transport(transport, self)  # type: ignore[assignment]
        self._raw = transport
        self._in_head = True
        #: Bytes that came since the last that were no head (nor trailer, nor frame of a chunk).
        self._head_bytes = 0
        self._head_parsed = 0
        self._header_count = 0
        self._late_bytes = 0
        #: Nothing more is sent, and what comes is thrown away.
        self._lingers = False
        #: What comes is thrown away; the connection ends with the answer that is being made.
        self._deaf = False
        #: The server stops: the request that is coming in is the last.
        self._stops = False
        #: The head of a request that offers another protocol, without the offer.
        self._plain_head: bytes | None = None
        #: What is wrong with the head that is coming in: status, words, header.
        self._wrong: tuple[int, str, str | None] | None = None
        #: What the application is working on, or was last.
        self._running: RequestResponseCycle | None = None
        #: Since when (the loop's clock) the client owes us something.
        self.since: float | None = self.loop.time()
        #: When it last sent something.
        self.heard = self.since
        if len(self.connections) > self.most:
            self._make_room()

    def _make_room(self) -> None:
        """End those that nobody has used for longest; if all are in use, this one."""
        idle = [each for each in self.connections if isinstance(each, Protocol) and each.idle]
        idle.sort(key=lambda each: each.heard)
        # Some at a time, for each look costs.
        for each in idle[: max(1, self.most // 50)]:
            each.end()
        if not idle:
            self._raw.abort()

    @property
    def idle(self) -> bool:
        """Whether no request is under way."""
        answered = self.cycle is None or self.cycle.response_complete
        return answered and not (self.reading or self._lingers or self._deaf)

    def end(self) -> None:
        """Close an idle connection."""
        self._raw.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is over; what was to come behind is for nobody."""
        self.pipeline.clear()
        # The one that the application must be told of, and none that refers back to us.
        self.cycle = self._running  # type: ignore[assignment]
        super().connection_lost(exc)
        self._running = None

    def data_received(self, data: bytes) -> None:
        """Read on."""
        if self._lingers or self._deaf:
            self._late_bytes += len(data)
            if self._late_bytes > self.most_late:
                self._raw.abort()
            return
        self._unset_keepalive_if_required()
        self.heard = self.loop.time()
        if self.since is None:
            self.since = self.heard
        if self._in_head:
            self.reading = True
        self._head_bytes += len(data)
        try:
            self._feed(data)
        except httptools.HttpParserError as error:
            if self._wrong is None:
                self._wrong = (400, f"This is not HTTP: {error}.", None)
        else:
            if self._head_bytes > MAX_HEAD_BYTES:
                self._wrong = (431, _HEAD_TOO_LARGE, None)
        if self._wrong is not None:
            status, message, header = self._wrong
            damaged = status == 400 and not self._in_head
            self.refuse(status, message, header=header, code="bad-transfer" if damaged else "")

    def _feed(self, data: bytes | memoryview) -> None:
        """Parse `data`; where a request offers another protocol the parser stops at its head, and
        another one goes on as if nothing had been offered."""
        while True:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as offered:
                head, self._plain_head = self._plain_head, None
                if head is None:
                    # CONNECT: it is answered, and what follows is for nobody.
                    self.cycle.keep_alive = False
                    self._deaf = True
                    return
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
                self.parser.feed_data(head)
                data = memoryview(data)[offered.args[0] :]
            else:
                return

    def on_message_begin(self) -> None:
        """A request begins, perhaps right behind another one."""
        if len(self.pipeline) >= MAX_PIPELINED:
            # Those before it are answered; whoever sent more sends them again.
            self._in_head = self.reading = True
            self._refuse_head(429, f"{MAX_PIPELINED} requests may wait on one connection.")
        self._in_head = self.reading = True
        self._head_parsed = self._header_count = 0
        if self.since is None:
            self.since = self.loop.time()
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """A piece of its address is there."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header is there; or a trailer, which tells the application nothing."""
        self._header_count += 1
        if self._header_count > MAX_HEADERS:
            self._refuse_head(431, f"A request may have {MAX_HEADERS} headers.")
        size = len(name) + len(value)
        if size > MAX_HEADER_BYTES:
            named = name[:100].decode("latin-1")
            self._refuse_head(431, f"A header may have {MAX_HEADER_BYTES:,} bytes.", named)
        self._count(size + len(": \r\n"))
        if self._in_head:
            super().on_header(name, value)

    def _count(self, size: int) -> None:
        self._head_parsed += size
        if self._head_parsed > MAX_HEAD_BYTES:
            self._refuse_head(431, _HEAD_TOO_LARGE)

    def _refuse_head(self, status: int, message: str, header: str | None = None) -> None:
        self._wrong = (status, message, header)
        raise _Refused(message)

    def on_headers_complete(self) -> None:
        """Its head is there."""
        self._head_bytes = 0
        if self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT":
            self._plain_head = self._head_without_offers()
            return
        self._in_head = False
        super().on_headers_complete()
        if self._stops:
            self.cycle.keep_alive = False

    def _head_without_offers(self) -> bytes:
        version = self.parser.get_http_version().encode()
        lines = [self.parser.get_method() + b" " + self.url + b" HTTP/" + version]
        for name, value in self.headers:
            if name in _OFFERS:
                continue
            if name == b"connection":
                tokens = [token.strip() for token in value.split(b",")]
                value = b", ".join(each for each in tokens if each.lower() not in _OFFERS)
                if not value:
                    continue
            lines.append(name + b": " + value)
        return b"\r\n".join(lines) + b"\r\n\r\n"

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def on_body(self, body: bytes) -> None:
        """A piece of its body is there; it may be answered already."""
        self._head_bytes = 0
        if self.cycle is not None and self.cycle.response_complete:
            self._late_bytes += len(body)
            if self._late_bytes > self.most_late:
                self._raw.abort()
            return
        super().on_body(body)

    def on_message_complete(self) -> None:
        """It is whole."""
        if self._plain_head is not None:
            return
        self._head_bytes = 0
        self.reading = False
        self.since = None
        self._late_bytes = 0
        super().on_message_complete()
        self._in_head = True

    def eof_received(self) -> bool:  # type: ignore[override]
        """The client sends nothing more; it still gets the answers to what it asked.

        :returns: whether the connection stays open for them.
        """
        if self._lingers or self.scheme == "https":
            return False
        if not self.reading:
            return self._close_after(self.cycle)
        if self._end_after_answers():
            return True
        if self._in_head or self.cycle.response_started:
            return False
        self.refuse(400, "The body ends before its end.", code="body-incomplete")
        return True

    def _end_after_answers(self) -> bool:
        """Give up the request that is coming in, if others are before it that wait for an answer.

        :returns: whether there are. The connection ends when they have it.
        """
        before: RequestResponseCycle | None = self.cycle
        if not self._in_head:
            if not self.pipeline or self.pipeline[0][0] is not self.cycle:
                return False
            self.pipeline.popleft()
            before = self.pipeline[0][0] if self.pipeline else self._running
        if not self._close_after(before):
            return False
        self._deaf = True
        return True

    def _close_after(self, cycle: RequestResponseCycle | None) -> bool:
        if cycle is None or cycle.response_complete:
            return False
        cycle.keep_alive = False
        self.cycle = cycle
        self.since = None
        return True

    def shutdown(self) -> None:
        """The server stops; a request that has begun to come in is still served."""
        self._stops = True
        if not (self._in_head and self.reading) or self._lingers or self._deaf:
            super().shutdown()

    def send_400_response(self, msg: str) -> None:
        """What came is not HTTP."""
        self.refuse(400, msg)

    def refuse(
        self, status: int, message: str, *, header: str | None = None, code: str = ""
    ) -> None:
        """Say why a request never reached the application, and be done with the connection.

        :param header: the one at fault.
        :param code: of the problem; without it, what the status says.
        """
        if self._lingers or self._deaf or self._raw.is_closing() or self._end_after_answers():
            return
        cycle = self.cycle
        if cycle is not None and cycle.response_started and not cycle.response_complete:
            self._raw.abort()
            return
        kind = kind_of(status, code or ("malformed-request" if status == 400 else ""))
        body = json.dumps(document(kind, message, status=status, header=header)).encode()
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
            waits = self.cycle is not None and not self.cycle.response_complete
            if self.reading and waits:
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
        from ..gunicorn import server

        self.read_timeout: float = server.READ_TIMEOUT
        # To uvicorn none would be for ever.
        self.config.timeout_graceful_shutdown = max(self.cfg.graceful_timeout, _QUICK_STOP_SECONDS)

    def load_wsgi(self) -> None:
        """Load the application; settings that are wrong are told without a traceback."""
        try:
            super().load_wsgi()
        except ImproperlyConfigured as error:
            raise AppImportError(f"Settings: {error}") from error

    async def _serve(self) -> None:
        from ..conf import conf

        Protocol.most_late = conf.MAX_BATCH_BYTES + (1 << 20)
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        Protocol.most = max(files // 2, files - _OTHER_FILES)
        self.config.app = self.wsgi
        server = _Server(config=self.config)
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGQUIT, self._stop_quickly, server)
        looking = asyncio.create_task(self._look_after(server))
        try:
            await server.serve(sockets=self.sockets)
        finally:
            looking.cancel()
        if not server.started:
            # gunicorn's code for a worker that cannot start: it does not try again for ever.
            os._exit(3)

    def _stop_quickly(self, server: Server) -> None:
        """Stop, also if a stop with more patience has begun."""
        if server.should_exit:
            loop = asyncio.get_running_loop()
            loop.call_later(_QUICK_STOP_SECONDS, setattr, server, "force_exit", True)
        self.config.timeout_graceful_shutdown = _QUICK_STOP_SECONDS
        server.should_exit = True

    async def _look_after(self, server: Server) -> None:
        loop = asyncio.get_running_loop()
        interval = min(0.5, self.read_timeout / 4)
        while True:
            await asyncio.sleep(interval)
            # uvicorn tells the arbiter no more when it stops, which may take longer than TIMEOUT.
            self.notify()
            if os.getppid() != self.ppid and not server.should_exit:
                # Nobody watches over us or would stop us, and a new server could not listen.
                logger.error("The server's main process is gone: this worker stops.")
                server.should_exit = True
            now = loop.time()
            for connection in list(server.server_state.connections):
                if isinstance(connection, Protocol):
                    try:
                        connection.look(now, self.read_timeout)
                    except Exception:
                        # One connection's trouble; the others are looked after all the same.
                        logger.exception("A connection could not be looked after.")
