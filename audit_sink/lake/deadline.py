"""A hard end for calls over HTTP, however slowly the other side goes on answering.

Time-outs of sockets bound the wait for the next byte, and a server that gives one byte a second is
never late. So a call runs inside :func:`deadline`: when its time is over, its connections are shut
down, whatever they are waiting for, and the retry policy finds no time left.
"""

from __future__ import annotations

import heapq
import itertools
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from requests import PreparedRequest, Response
from requests.adapters import HTTPAdapter
from requests.exceptions import ReadTimeout
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool


class _Scope:
    """One call's time, and the sockets that it uses."""

    def __init__(self, seconds: float) -> None:
        self.ends = time.monotonic() + seconds
        self._sockets: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._over = False
        self.closed = False
        _watchdog.add(self)

    @property
    def left(self) -> float:
        return self.ends - time.monotonic()

    def watch(self, sock: socket.socket) -> None:
        with self._lock:
            self._sockets.add(sock)
            if self._over:
                _shut(sock)

    def close(self) -> None:
        with self._lock:
            # From here on the sockets are another call's.
            self.closed = True
            self._sockets.clear()

    def expire(self) -> None:
        with self._lock:
            if not self.closed:
                self._over = True
                for sock in self._sockets:
                    _shut(sock)


def _shut(sock: socket.socket) -> None:
    try:
        # The plain socket beneath TLS: a goodbye would wait for an answer.
        socket.socket.shutdown(sock, socket.SHUT_RDWR)
    except OSError:
        # It has ended already.
        pass


class _Watchdog:
    """Ends scopes in time: one thread for all, which a call that ends in time does not wake."""

    def __init__(self) -> None:
        self._waiting: list[tuple[float, int, _Scope]] = []
        self._number = itertools.count()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def add(self, scope: _Scope) -> None:
        with self._changed:
            heapq.heappush(self._waiting, (scope.ends, next(self._number), scope))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="bucket-deadlines")
                self._thread.daemon = True
                self._thread.start()
            elif self._waiting[0][2] is scope:
                self._changed.notify()

    def _run(self) -> None:
        while True:
            self._next().expire()

    def _next(self) -> _Scope:
        """Wait for a scope whose time is over, and take it out."""
        with self._changed:
            while True:
                while self._waiting and self._waiting[0][2].closed:
                    heapq.heappop(self._waiting)
                left = self._waiting[0][2].left if self._waiting else None
                if left is not None and left <= 0:
                    return heapq.heappop(self._waiting)[2]
                self._changed.wait(left)


_watchdog = _Watchdog()
_current = threading.local()


def _forked() -> None:
    # The thread has stayed with the parent.
    global _watchdog
    _watchdog = _Watchdog()


os.register_at_fork(after_in_child=_forked)


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """End what this thread does over a :class:`DeadlineAdapter` after `seconds`.

    Inside another one, nothing changes: the outer one counts.
    """
    outer: _Scope | None = getattr(_current, "scope", None)
    if outer is not None:
        yield
        return
    _current.scope = scope = _Scope(seconds)
    try:
        yield
    finally:
        _current.scope = None
        scope.close()


def time_left(otherwise: float) -> float:
    """Seconds until the deadline, 0 when it is past; `otherwise` where there is none."""
    scope: _Scope | None = getattr(_current, "scope", None)
    return otherwise if scope is None else max(0.0, scope.left)


def _watch(sock: Any) -> None:
    scope: _Scope | None = getattr(_current, "scope", None)
    if scope is not None and isinstance(sock, socket.socket):
        scope.watch(sock)


class _Connection(HTTPConnection):
    def connect(self) -> None:
        super().connect()
        _watch(self.sock)

    def request(self, *args: Any, **kwargs: Any) -> None:
        # A connection that is kept from an earlier call.
        _watch(self.sock)
        super().request(*args, **kwargs)


class _TlsConnection(HTTPSConnection):
    def connect(self) -> None:
        super().connect()
        _watch(self.sock)

    def request(self, *args: Any, **kwargs: Any) -> None:
        _watch(self.sock)
        super().request(*args, **kwargs)


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _TlsPool(HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


class DeadlineAdapter(HTTPAdapter):
    """Mounted on a session, it keeps the session's requests within :func:`deadline`."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": _Pool, "https": _TlsPool}

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(*args, **kwargs)
        manager.pool_classes_by_scheme = {"http": _Pool, "https": _TlsPool}
        return manager

    def send(
        self,
        request: PreparedRequest,
        stream: bool = False,
        timeout: Any = None,
        verify: Any = True,
        cert: Any = None,
        proxies: Any = None,
    ) -> Response:
        left = time_left(float("inf"))
        if left <= 0:
            raise ReadTimeout("the time for this call is over", request=request)
        if left != float("inf"):
            timeout = min(timeout, left) if isinstance(timeout, (int, float)) else left
        return super().send(request, stream, timeout, verify, cert, proxies)
