"""Clients that send events at a rate, and an account of what each event was promised."""

from __future__ import annotations

import http.client
import itertools
import json
import random
import threading
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from tests.services.base import HOST

SINGLE = "/v1/logs/api-requests"
BATCH = "/v1/logs/api-requests:batch"
#: One of so many events breaks the contract, and is refused for good.
_INVALID_EACH = 8
_TIMEOUT = 15.0
_PAUSE = 0.05
#: Seconds for the last promises, once nothing new is sent.
_END = 30.0

_numbers = itertools.count(1)


@dataclass
class Promise:
    """What a client knows of one event.

    :ivar begun: when the client had it (monotonic seconds).
    :ivar sent: when it sent it first.
    :ivar kept: seconds from having it to the answer that it is durable; None without one.
    :ivar where: the status in that answer, and the region.
    :ivar refused: it was refused for good.
    :ivar tries: how often it was sent.
    """

    begun: float
    sent: float = 0.0
    kept: float | None = None
    where: tuple[str, str | None] = ("", None)
    refused: bool = False
    tries: int = 0


@dataclass
class Account:
    """All events, by request_id, and every answer."""

    promises: dict[str, Promise] = field(default_factory=dict)
    #: (status, has Retry-After) → answers; 0 is a broken connection.
    answers: Counter[tuple[int, bool]] = field(default_factory=Counter)
    #: Statuses of items of answers: what the publisher's own counters should say.
    items: Counter[str] = field(default_factory=Counter)
    #: Requests without an answer: nobody knows what became of their events.
    unanswered: int = 0
    slowest: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def durable(self) -> set[str]:
        """Those that were promised to be durable."""
        return {name for name, each in self.promises.items() if each.kept is not None}

    @property
    def refused(self) -> set[str]:
        """Those refused for good."""
        return {name for name, each in self.promises.items() if each.refused}

    def seconds(self, since: float, until: float) -> tuple[list[float], list[float]]:
        """Of those that came to be within a time: seconds from sending them to the promise, and
        from having them; each in ascending order."""
        kept = [
            (each.kept - (each.sent - each.begun), each.kept)
            for each in list(self.promises.values())
            if each.kept is not None and since <= each.begun < until
        ]
        return sorted(sent for sent, _ in kept), sorted(had for _, had in kept)


class Clients:
    """Some that send one event at a time, and some that send what has come to be meanwhile as a
    batch. Each has keys of its own and goes on to the next event when the last one is durable, so
    that the order of a key's events is known. What is not durable is sent again, as it was.

    :param ports: of publishers; a client turns to the next when its own does not answer.
    :param rate: events a second of all together; 0: as fast as answers come. An event's time
        begins when it was due, also while its client still waits for the one before.
    :param single_rate: events a second of the first kind, of those.
    :param burst: events that come to be together, for the second kind.
    :param padding: bytes of each event's request body.
    """

    def __init__(
        self,
        ports: Sequence[int],
        *,
        singles: int = 4,
        batches: int = 4,
        rate: float = 200.0,
        single_rate: float | None = None,
        burst: int = 1,
        padding: int = 200,
        largest: int = 100,
        invalid: bool = True,
        retry: bool = True,
    ) -> None:
        self.account = Account()
        self.ended = threading.Event()
        self.ports = tuple(ports)
        self.padding = padding
        self.largest = largest
        self.invalid = invalid
        self.retry = retry
        if single_rate is None:
            single_rate = rate * singles / (singles + batches)
        one, many = single_rate / max(1, singles), (rate - single_rate) / max(1, batches)
        self._clients = [_Client(self, one, 1, batch=False) for _ in range(singles)]
        self._clients += [_Client(self, many, burst, batch=True) for _ in range(batches)]
        self._threads = [threading.Thread(target=one.run, daemon=True) for one in self._clients]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: object, *exc: object) -> None:
        if kind is not None:
            # The test failed: what still waits, waits in vain.
            self.retry = False
        self.stop()

    def stop(self) -> None:
        """Let every client end with a promise for what it has sent."""
        self.ended.set()
        deadline = time.monotonic() + _END
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        self.retry = False
        alive = sum(thread.is_alive() for thread in self._threads)
        if alive:
            raise AssertionError(f"{alive} clients still wait for an answer")

    def sent(self) -> int:
        """How many events are durable by now."""
        return sum(one.done for one in self._clients)


def event(request_id: str, padding: int, **changes: Any) -> dict[str, Any]:
    """An event as clients send it, of 700 bytes and its padding."""
    now = round(time.time(), 6)
    return {
        "request_id": request_id,
        "service_name": "inventory-api",
        "endpoint_name": "iac/v1/inventory",
        "path": "/iac/v1/inventory?store=4108",
        "method": "POST",
        "request_body": "x" * padding,
        "response_body": '{"status":"ACCEPTED"}',
        "response_code": 202,
        "request_ts": now - 0.042,
        "response_ts": now,
        "headers": {"content-type": "application/json", "wm-svc.env": "prod"},
        "trace_id": "0af7651916cd43dd8448eb211c80319c",
        "consumer_id": "8f1f4b66-3f6c-4d24-9f6b-2b6d6a2f7a10",
        "site_id": "1704989259133687000",
        "outcome": "completed",
        **changes,
    }


class _Client:
    def __init__(self, clients: Clients, rate: float, burst: int, *, batch: bool) -> None:
        self._all = clients
        self._gap = burst / rate if rate else 0.0
        self._burst = burst
        self._batch = batch
        self._key = next(_numbers)
        self._events = itertools.count()
        self._port = self._key
        self._connection: http.client.HTTPConnection | None = None
        self.done = 0

    # One after the other ------------------------------------------------------------------

    def run(self) -> None:
        ended = self._all.ended
        # Not all at the same moment.
        due = time.monotonic() + self._gap * random.random()
        while not ended.is_set():
            now = time.monotonic()
            if due > now:
                ended.wait(due - now)
                continue
            batch = {}
            while due <= now and len(batch) < (self._all.largest if self._batch else 1):
                for _ in range(self._burst):
                    request_id, event = self._make()
                    self._all.account.promises[request_id] = Promise(due if self._gap else now)
                    batch[request_id] = event
                due += self._gap
            self._deliver(batch)
        self._hang_up()

    def _make(self) -> tuple[str, bytes]:
        number = next(self._events)
        request_id = str(uuid.UUID(int=self._key << 64 | number))
        changes: dict[str, Any] = {}
        if self._all.invalid and number % _INVALID_EACH == _INVALID_EACH - 1:
            changes["response_code"] = 5000
        changes["endpoint_name"] = f"client-{self._key}"
        made = event(request_id, self._all.padding, **changes)
        return request_id, json.dumps(made).encode()

    def _deliver(self, waiting: dict[str, bytes]) -> None:
        """Send until each has its promise."""
        while waiting:
            now = time.monotonic()
            for request_id in waiting:
                promise = self._all.account.promises[request_id]
                promise.tries += 1
                promise.sent = promise.sent or now
            settled, pause = self._send(waiting)
            for request_id in settled:
                del waiting[request_id]
            if not self._all.retry:
                return
            if waiting:
                time.sleep(pause)

    def _send(self, waiting: dict[str, bytes]) -> tuple[list[str], float]:
        """Send once; return what needs no further try, and seconds to wait before the next."""
        account = self._all.account
        if self._batch:
            path, kind, body = BATCH, "application/x-ndjson", b"\n".join(waiting.values())
        else:
            path, kind, (body,) = SINGLE, "application/json", waiting.values()
        started = time.monotonic()
        try:
            status, retry_after, answer = self._post(path, kind, body)
        except (OSError, http.client.HTTPException, ValueError):
            self._hang_up()
            self._port += 1
            with account.lock:
                account.answers[0, False] += 1
                account.unanswered += 1
            return [], _PAUSE
        with account.lock:
            account.answers[status, retry_after is not None] += 1
            account.slowest = max(account.slowest, time.monotonic() - started)
        # A real client waits as long as it is told to; here that would be most of a test.
        pause = min(float(retry_after or _PAUSE), 10 * _PAUSE)
        return self._note(waiting, status, answer), pause

    def _note(self, waiting: dict[str, bytes], status: int, answer: Any) -> list[str]:
        now = time.monotonic()
        if status != 200:
            items = [{"status": "rejected", "retryable": status in {408, 429, 500, 503}}]
            items *= len(waiting)
        else:
            items = answer["items"] if self._batch else [answer]
        settled = []
        account = self._all.account
        for request_id, item in zip(waiting, items, strict=True):
            with account.lock:
                account.items[item["status"]] += 1
            promise = account.promises[request_id]
            if item["status"] == "rejected":
                if not item["retryable"]:
                    promise.refused = True
                    settled.append(request_id)
                continue
            assert item["request_id"] == request_id, (item, request_id)
            promise.kept = now - promise.begun
            promise.where = (item["status"], item.get("region"))
            settled.append(request_id)
            self.done += 1
        return settled

    def _post(self, path: str, kind: str, body: bytes) -> tuple[int, str | None, Any]:
        if self._connection is None:
            port = self._all.ports[self._port % len(self._all.ports)]
            self._connection = http.client.HTTPConnection(HOST, port, timeout=_TIMEOUT)
        self._connection.request("POST", path, body, {"Content-Type": kind})
        with self._connection.getresponse() as response:
            content = response.read()
            if response.will_close:
                self._hang_up()
            return response.status, response.getheader("Retry-After"), json.loads(content)

    def _hang_up(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
