"""A proxy between a client and the GCS emulator that goes wrong on demand, once or always."""

from __future__ import annotations

import http.client
import json
import math
import re
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

#: What a request does: `commit` is the one after which the object is there.
KINDS = ("commit", "start", "part", "read", "other")

#: Reasons that the real service gives beside a status.
REASONS = {401: "authError", 403: "forbidden", 412: "conditionNotMet", 429: "rateLimitExceeded"}


@dataclass
class Fault:
    """One thing that goes wrong.

    :ivar action: ``status`` (answered without asking the emulator), ``before``, ``during`` and
        ``after`` (the connection is cut at that point of the request's work), ``silent`` (no answer
        ever), ``slow`` (the answer takes `seconds`, byte by byte), ``slow_body`` (the request is
        read so slowly), ``half`` (half of the answer, then a cut), ``mangle`` (one byte of the
        request's body is another one).
    :ivar kinds: the requests it befalls, of KINDS.
    :ivar times: how many of them.
    """

    action: str
    kinds: tuple[str, ...] = ("commit",)
    times: float = math.inf
    status: int = 0
    seconds: float = 0.0
    reason: str = ""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: FaultProxy

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except OSError:
            self.close_connection = True

    def _serve(self) -> None:
        kind = self._kind()
        fault = self.proxy.take(kind)
        action = fault.action if fault else ""
        length = int(self.headers.get("Content-Length") or 0)
        if action == "during":
            half = self.rfile.read(length // 2)
            self._forward(half, give_up=True)
            return self._cut()
        if action == "slow_body":
            body = self._read_slowly(length, fault.seconds)
        else:
            body = self.rfile.read(length)
        if action == "status":
            return self._refuse(fault)
        if action == "before":
            return self._cut()
        if action == "silent":
            self.proxy.closed.wait(60)
            return self._cut()
        if action == "mangle":
            body = body[: length // 2] + bytes([body[length // 2] ^ 1]) + body[length // 2 + 1 :]
        status, headers, answer = self._forward(body)
        if action == "after":
            return self._cut()
        self._answer(status, headers, answer, fault)
        return None

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = _serve

    def _kind(self) -> str:
        query = parse_qs(urlsplit(self.path).query)
        upload = query.get("uploadType", [""])[0]
        if self.command == "PUT" and upload == "resumable":
            found = re.match(r"bytes (\d+)-(\d+)/(\d+)", self.headers.get("Content-Range", ""))
            last = found is not None and int(found[2]) + 1 == int(found[3])
            return "commit" if last else "part"
        if self.command == "POST" and upload:
            return "commit" if upload == "multipart" else "start"
        return "read" if query.get("alt") == ["media"] else "other"

    def _forward(self, body: bytes, give_up: bool = False) -> Any:
        upstream = http.client.HTTPConnection(self.proxy.upstream, timeout=30)
        upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in ("connection",):
                upstream.putheader(name, value)
        upstream.endheaders(body)
        if give_up:
            upstream.close()
            return None
        response = upstream.getresponse()
        answer = response.read()
        headers = [
            (name, value.replace(self.proxy.upstream, self.proxy.address))
            for name, value in response.getheaders()
            if name.lower() not in ("transfer-encoding", "content-length", "connection")
        ]
        upstream.close()
        return response.status, headers, answer

    def _refuse(self, fault: Fault) -> None:
        reason = fault.reason or REASONS.get(fault.status, "backendError")
        error = {"code": fault.status, "message": reason, "errors": [{"reason": reason}]}
        answer = json.dumps({"error": error}).encode()
        self._answer(fault.status, [("Content-Type", "application/json")], answer, None)

    def _answer(
        self, status: int, headers: list[tuple[str, str]], answer: bytes, fault: Fault | None
    ) -> None:
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        if fault is None or not answer:
            self.wfile.write(answer)
        elif fault.action == "half":
            self.wfile.write(answer[: len(answer) // 2])
            self._cut()
        elif fault.action == "slow":
            pieces = min(len(answer), 20)
            size = math.ceil(len(answer) / pieces)
            for start in range(0, len(answer), size):
                self.proxy.closed.wait(fault.seconds / pieces)
                self.wfile.write(answer[start : start + size])
        else:
            self.wfile.write(answer)

    def _read_slowly(self, length: int, seconds: float) -> bytes:
        pieces, body = 20, b""
        while len(body) < length:
            self.proxy.closed.wait(seconds / pieces)
            body += self.rfile.read(min(math.ceil(length / pieces), length - len(body)))
        return body

    def _cut(self) -> None:
        # A reset, as of a machine that is gone; a plain close would be a polite end.
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.connection.close()
        self.close_connection = True

    def log_message(self, *args: Any) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def server_bind(self) -> None:
        # Small, so that a slow reader is felt by the writer.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)
        super().server_bind()

    def handle_error(self, *args: Any) -> None:
        # A client that has given up.
        pass


class FaultProxy:
    """Forwards to `upstream` (host:port), but for the fault that is set.

    :ivar seen: the kind of each request, in order.
    """

    def __init__(self, upstream: str) -> None:
        self.upstream = upstream
        self.seen: list[str] = []
        self.closed = threading.Event()
        self._fault: Fault | None = None
        self._lock = threading.Lock()
        self._server = _Server(
            ("127.0.0.1", 0), type("Handler", (_Handler,), {"proxy": self}), bind_and_activate=True
        )
        self.address = f"127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.daemon = True
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    @contextmanager
    def failing(self, fault: Fault) -> Iterator[None]:
        """Let `fault` happen inside the block."""
        self._fault = fault
        try:
            yield
        finally:
            self._fault = None

    def take(self, kind: str) -> Fault | None:
        """The fault that befalls a request of this kind now."""
        with self._lock:
            self.seen.append(kind)
            fault = self._fault
            if fault is None or kind not in fault.kinds or fault.times <= 0:
                return None
            fault.times -= 1
            return fault

    def close(self) -> None:
        self.closed.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
