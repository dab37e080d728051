"""Callers of the publisher, many in one thread: they keep it busy, or keep a pace.

Run as a program (``python -m benchmarks.publish.load``) so that its CPU is its own; it is told
what to do by one line of JSON and answers with one.
"""

from __future__ import annotations

import heapq
import json
import random
import selectors
import socket
import sys
import time
from collections import Counter, deque
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from audit_logging.signing import Signer

from .events import event
from .stack import CONSUMER

#: How long one signature is used.
_SIGN_SECONDS = 0.05


@dataclass
class Orders:
    """What to do.

    :ivar batch: events in one request; 0: single events.
    :ivar connections: requests at the same time.
    :ivar seconds: how long, after `warm_up` seconds that are not counted.
    :ivar pace: requests a second in all; 0: as many as there are answers.
    """

    port: int
    key: str
    batch: int = 100
    size: int = 2000
    connections: int = 16
    seconds: float = 10.0
    warm_up: float = 2.0
    pace: float = 0.0
    distinct: int = 200
    seed: int = 1


@dataclass
class Seen:
    """What came of it; `latencies` in seconds, only where a pace was kept."""

    requests: int = 0
    events: int = 0
    seconds: float = 0.0
    statuses: dict[str, int] = field(default_factory=dict)
    outcomes: dict[str, int] = field(default_factory=dict)
    latencies: list[float] = field(default_factory=list)
    late: int = 0


class _Caller:
    """One connection and the request that is under way on it."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.out: memoryview = memoryview(b"")
        self.answer = b""
        self.due = 0.0


class Load:
    """Callers that are told by `orders`."""

    def __init__(self, orders: Orders) -> None:
        self._orders = orders
        self._signer = Signer(CONSUMER, "1", Path(orders.key))
        self._signed_at = 0.0
        self._head = b""
        self._bodies = self._make_bodies()
        self._next = 0
        self._statuses: Counter[str] = Counter()
        self._outcomes: Counter[str] = Counter()

    def _make_bodies(self) -> list[bytes]:
        random_ = random.Random(self._orders.seed)
        count = self._orders.batch or 1
        bodies = []
        for _ in range(self._orders.distinct):
            lines = [
                json.dumps(event(random_, self._orders.size), separators=(",", ":"))
                for _ in range(count)
            ]
            bodies.append("\n".join(lines).encode())
        return bodies

    def _request(self) -> memoryview:
        body = self._bodies[self._next % len(self._bodies)]
        self._next += 1
        now = time.time()
        if now - self._signed_at > _SIGN_SECONDS:
            signature = self._signer.headers(int(now * 1000))
            lines = "".join(f"{name}: {value}\r\n" for name, value in signature.items())
            where, form = (
                ("/v1/logs/api-requests:batch", "application/x-ndjson")
                if self._orders.batch
                else ("/v1/logs/api-requests", "application/json")
            )
            self._head = (
                f"POST {where} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {form}\r\n{lines}"
            ).encode()
            self._signed_at = now
        return memoryview(b"%sContent-Length: %d\r\n\r\n%s" % (self._head, len(body), body))

    def run(self) -> Seen:
        """Do it; return what came of it."""
        orders = self._orders
        callers = [_Caller(orders.port) for _ in range(orders.connections)]
        selector = selectors.DefaultSelector()
        for caller in callers:
            selector.register(caller.socket, selectors.EVENT_READ, caller)
        began = time.monotonic()
        counted = began + orders.warm_up
        end = counted + orders.seconds
        seen = Seen()
        # In turn: a connection that never says a word is closed after READ_TIMEOUT.
        free = deque(callers)
        # Of an open load: the moments at which requests are due, whoever is free.
        due = [began + n / orders.pace for n in range(1)] if orders.pace else []
        marked = False
        cpu_mark = 0.0
        while (now := time.monotonic()) < end:
            if not marked and now >= counted:
                marked = True
                cpu_mark = now
                sys.stdout.write("counting\n")
                sys.stdout.flush()
            if orders.pace:
                while due and due[0] <= now:
                    moment = heapq.heappop(due)
                    heapq.heappush(due, moment + 1 / orders.pace)
                    if not free:
                        # Nobody is there to ask: told, not hidden.
                        seen.late += marked
                        continue
                    self._send(free.popleft(), moment)
            else:
                while free:
                    self._send(free.popleft(), now)
            wait = max(0.0, min(due[0] - now, 0.05)) if orders.pace else 0.05
            for key, _ in selector.select(wait):
                caller = key.data
                if self._receive(caller):
                    free.append(caller)
                    if marked:
                        seen.requests += 1
                        seen.events += orders.batch or 1
                        if orders.pace:
                            seen.latencies.append(time.monotonic() - caller.due)
        seen.seconds = time.monotonic() - cpu_mark
        seen.statuses, seen.outcomes = dict(self._statuses), dict(self._outcomes)
        return seen

    def _send(self, caller: _Caller, due: float) -> None:
        caller.due = due
        caller.answer = b""
        caller.socket.setblocking(True)
        caller.socket.sendall(self._request())
        caller.socket.setblocking(False)

    def _receive(self, caller: _Caller) -> bool:
        """Read on; return whether the answer is whole."""
        data = caller.socket.recv(1 << 16)
        if not data:
            raise ConnectionError(f"the publisher hung up: {caller.answer[:300]!r}")
        caller.answer += data
        head, blank, body = caller.answer.partition(b"\r\n\r\n")
        if not blank:
            return False
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
        if len(body) < length:
            return False
        self._statuses[head[9:12].decode()] += 1
        for word in ("published", "spooled", "rejected"):
            self._outcomes[word] += body.count(b'"%s"' % word.encode())
        return True


def main() -> None:
    """Read the orders, do them, say what came of it."""
    orders: dict[str, Any] = json.loads(sys.stdin.readline())
    load = Load(Orders(**orders))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    sys.stdout.write(json.dumps(asdict(load.run())) + "\n")


if __name__ == "__main__":
    main()
