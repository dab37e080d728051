"""The server's worker: gunicorn's threads, but no client can hold one by sending nothing.

Gunicorn's own waits without end for the rest of a request line, of a header or of a body, each
time in a thread, and lets go of a connection in its main loop, where a client that does not hang
up stops everybody for two seconds.
"""

from __future__ import annotations

import errno
import json
import selectors
import socket
import time
from collections import deque
from functools import partial
from typing import Any

from gunicorn import util
from gunicorn.http.errors import NoMoreData
from gunicorn.http.unreader import SocketUnreader
from gunicorn.workers.gthread import TConn, ThreadWorker

from .problem_kinds import document, kind_of

#: Seconds that the rest of a body nobody read may take before its connection is given up.
_DRAIN_SECONDS = 0.1
#: Seconds and bytes for which a closed connection is listened to, so that the client gets the
#: answer: the kernel takes it back when something arrives that nobody reads.
_LINGER_SECONDS = 2.0
_LINGER_BYTES = 1 << 16


def _write_problem(sock: Any, status: int, reason: str, message: str) -> None:
    """Say why a request never reached the application, as the application says such things."""
    kind = kind_of(status, "malformed-request" if status == 400 else "")
    said = "".join(character for character in message[:200] if character.isprintable())
    body = json.dumps(document(kind, f"{kind.title}. {said}".strip(), status=status)).encode()
    head = [
        f"HTTP/1.1 {status} {reason}",
        "Connection: close",
        "Content-Type: application/problem+json",
        f"Content-Length: {len(body)}",
    ]
    if kind.retryable:
        head.append("Retry-After: 30")
    util.write_nonblock(sock, "\r\n".join(head).encode() + b"\r\n\r\n" + body)


# Gunicorn has no hook for what it answers by itself.
util.write_error = _write_problem


class ReadTimeout(NoMoreData, TimeoutError):
    """The client took too long. In the head of a request the connection is just closed."""


class _TimedReader(SocketUnreader):
    """Reads a request from a socket until its time is over.

    :param seconds: for the whole request, head and body.
    """

    def __init__(self, sock: Any, seconds: float) -> None:
        super().__init__(sock)
        self._seconds = seconds
        self.restart()

    def restart(self) -> None:
        """The next request begins."""
        self._deadline = time.monotonic() + self._seconds

    def chunk(self, size_hint: int | None = None) -> bytes:
        allowed = self.sock.gettimeout()
        left = self._deadline - time.monotonic()
        if left > 0:
            self.sock.settimeout(left if allowed is None else min(left, allowed))
            try:
                return super().chunk(size_hint)
            except TimeoutError:
                pass
            finally:
                self.sock.settimeout(allowed)
        raise ReadTimeout


class _Connection(TConn):
    def __init__(self, worker: Worker, sock: Any, client: Any, listener: Any) -> None:
        super().__init__(worker.cfg, sock, client, listener)
        self._worker = worker
        self.drained = 0

    def init(self) -> None:
        fresh = not self.initialized
        super().init()
        if self.is_http2:
            return
        if fresh:
            buffered = self.parser.unreader.take_buffered()
            self.parser.unreader = _TimedReader(self.sock, self._worker.read_timeout)
            self.parser.unreader.unread(buffered)
        else:
            self.parser.unreader.restart()

    def close(self, graceful: bool = False) -> None:
        if not (graceful and self._worker.linger(self)):
            super().close(graceful=graceful and not self._worker.alive)


class Worker(ThreadWorker):
    """A threaded worker in which a connection has a thread only while there is something to do.

    :ivar read_timeout: seconds for reading one request.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        from .gunicorn import server

        self.read_timeout: float = server.READ_TIMEOUT
        self._lingering: deque[_Connection] = deque()

    def accept(self, listener: Any) -> None:
        """Take a connection; a thread gets it when its first byte is there."""
        try:
            sock, client = listener.accept()
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.ECONNABORTED, errno.EWOULDBLOCK):
                raise
            return
        self.nr_conns += 1
        conn = _Connection(self, sock, client, listener.getsockname())
        conn.timeout = time.monotonic() + self.read_timeout
        self.pending_conns.append(conn)
        self.poller.register(
            conn.sock, selectors.EVENT_READ, partial(self.on_pending_socket_readable, conn)
        )

    def handle_request(self, req: Any, conn: Any) -> Any:
        """Answer a request; a client that does not read the answer is no error of ours."""
        # Also for requests that came in one piece with the one before, which nothing reads again.
        conn.sock.settimeout(self.read_timeout)
        try:
            return super().handle_request(req, conn)
        except TimeoutError as error:
            raise ReadTimeout from error

    def _keepalive_after(self, conn: Any, keepalive: bool) -> bool:
        # What was not read by now is not waited for: the answer may be a 401 to anybody.
        return keepalive and bool(
            conn.parser.finish_body(deadline=time.monotonic() + _DRAIN_SECONDS)
        )

    def linger(self, conn: _Connection) -> bool:
        """Close our half of a connection; the rest when the client did, or is too slow.

        :return: False if there is nothing left to wait for.
        """
        if not self.alive:
            return False
        try:
            conn.sock.shutdown(socket.SHUT_WR)
            conn.sock.setblocking(False)
            self.poller.register(conn.sock, selectors.EVENT_READ, partial(self._drain, conn))
        except (OSError, ValueError, KeyError):
            return False
        conn.timeout = time.monotonic() + _LINGER_SECONDS
        self._lingering.append(conn)
        return True

    def _drain(self, conn: _Connection, sock: Any) -> None:
        try:
            data = sock.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        conn.drained += len(data)
        if not data or conn.drained > _LINGER_BYTES:
            self._lingering.remove(conn)
            self._forget(conn)

    def murder_pending(self) -> None:
        """Close what was waited for long enough."""
        super().murder_pending()
        now = time.monotonic()
        while self._lingering and self._lingering[0].timeout <= now:
            self._forget(self._lingering.popleft())

    def _forget(self, conn: _Connection) -> None:
        try:
            self.poller.unregister(conn.sock)
        except (OSError, KeyError, ValueError):
            pass
        conn.close()
