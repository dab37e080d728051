"""`python -m benchmarks.publish.memory`: what the publisher does with ten times what it can carry.

Very many connections send large batches as fast as they are answered, while both clusters take
little, and a small spool is soon full. Each answer is noted with its time, and the memory of all
the publisher's processes ten times a second.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import statistics
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.capture.__main__ import machine
from benchmarks.capture.memory import resident
from benchmarks.capture.report import table
from tests.integration.publisher.clients import Clients, event
from tests.integration.publisher.rig import Publisher, publishers, two_regions
from tests.services.base import HOST

_MEGA = 1_000_000
_PATH = "/v1/logs/api-requests:batch"
#: Seconds after which a client gives up: what must not happen.
_TIMEOUT = 30.0
_SAMPLE = 0.1


@dataclass
class Overload:
    """One load.

    :ivar offered, taken: events a second that were sent, and that were made durable.
    :ivar answers: by status.
    :ivar unsaid: refusals without Retry-After.
    :ivar timed_out: requests without an answer within half a minute.
    :ivar broken: connections that ended without an answer.
    :ivar median, slowest: seconds until an answer.
    :ivar before, peak, after: bytes in memory of all processes.
    :ivar recovered: seconds from the end of it all to the first event that a region took.
    """

    what: str
    offered: float = 0.0
    taken: float = 0.0
    answers: dict[str, int] = field(default_factory=dict)
    unsaid: int = 0
    timed_out: int = 0
    broken: int = 0
    median: float = 0.0
    p99: float = 0.0
    slowest: float = 0.0
    before: int = 0
    peak: int = 0
    after: int = 0
    recovered: float = 0.0
    samples: list[int] = field(default_factory=list)


class _Load:
    """Clients that send the same batch again and again, whatever is answered."""

    def __init__(self, port: int, connections: int, events: int, size: int) -> None:
        self._port = port
        self._connections = connections
        self.events = events
        self._request = _request(_batch(events, size))
        self.answers: Counter[int] = Counter()
        self.unsaid = self.timed_out = self.broken = self.sent = self.taken = 0
        self.seconds: list[float] = []

    async def run(self, seconds: float) -> None:
        """Send for so long."""
        self._end = time.monotonic() + seconds
        await asyncio.gather(*(self._client() for _ in range(self._connections)))

    async def _client(self) -> None:
        await asyncio.sleep(random.random())
        streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        while time.monotonic() < self._end:
            began = time.monotonic()
            keep = False
            try:
                async with asyncio.timeout(_TIMEOUT):
                    if streams is None:
                        streams = await asyncio.open_connection(HOST, self._port)
                    keep = await self._ask(*streams)
                self.seconds.append(time.monotonic() - began)
            except TimeoutError:
                self.timed_out += 1
            except (OSError, EOFError, ValueError):
                self.broken += 1
                await asyncio.sleep(0.05)
            if not keep and streams is not None:
                streams[1].transport.abort()
                streams = None
        if streams is not None:
            streams[1].transport.abort()

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Send once; return whether the connection may be used again."""
        self.sent += self.events
        sending = asyncio.create_task(self._send(writer))
        try:
            # A refusal may come before all is sent.
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            length = int(head.partition("content-length:")[2].partition("\r\n")[0])
            body = await reader.readexactly(length)
        finally:
            whole = sending.done() and not sending.cancelled() and sending.exception() is None
            sending.cancel()
            with contextlib.suppress(asyncio.CancelledError, OSError):
                await sending
        status = int(head.split()[1])
        self.answers[status] += 1
        if status == 200:
            items = json.loads(body)["items"]
            self.taken += sum(item["status"] != "rejected" for item in items)
        elif "retry-after:" not in head:
            self.unsaid += 1
        return whole and "connection: close" not in head

    async def _send(self, writer: asyncio.StreamWriter) -> None:
        writer.write(self._request)
        await writer.drain()


def _batch(events: int, size: int) -> bytes:
    chance = random.Random(7)

    def one(number: int) -> bytes:
        body = chance.randbytes(size // 2).hex()
        made = event(str(uuid.UUID(int=number)), 0, request_body=body)
        return json.dumps(made).encode()

    return b"\n".join(map(one, range(events)))


def _request(body: bytes) -> bytes:
    return (
        f"POST {_PATH} HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/x-ndjson\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode() + body


@contextlib.contextmanager
def _sampled(pid: int, samples: list[int]) -> Iterator[None]:
    """Note the memory of a process and all below it, all the time."""
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(_SAMPLE):
            samples.append(resident(pid))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def measure(
    *, seconds: float, connections: int, rate: float, loads: list[tuple[int, int]]
) -> list[Overload]:
    """Measure each load: (events of a batch, bytes of an event's body)."""
    found = []
    options = {"AUDIT_PUBLISHER_SPOOL_MAX_BYTES": str(16 << 20)}
    with two_regions() as regions:
        for events, size in loads:
            with publishers(Publisher(regions, options=options)) as (publisher,):
                assert publisher.pid is not None
                load = _Load(publisher.port, connections, events, size)
                one = f"{connections} connections, batches of {events} events of {size:,} bytes"
                overload = Overload(one, before=resident(publisher.pid))
                for region in regions:
                    region.proxy.slow(rate=rate)
                with _sampled(publisher.pid, overload.samples):
                    began = time.monotonic()
                    asyncio.run(load.run(seconds))
                    took = time.monotonic() - began
                for region in regions:
                    region.heal()
                overload.recovered = _recovery(publisher)
                overload.after = resident(publisher.pid)
                _fill_in(overload, load, took)
                found.append(overload)
                print(table(_HEADS, [_row(overload)]).splitlines()[-1], flush=True)
    return found


def _recovery(publisher: Publisher) -> float:
    """Seconds until a region takes an event."""
    began = time.monotonic()
    with Clients([publisher.port], singles=1, batches=0, rate=20, invalid=False) as clients:
        while time.monotonic() < began + 90:
            time.sleep(0.05)
            if any(each.where[1] for each in list(clients.account.promises.values())):
                break
    return time.monotonic() - began


def _fill_in(overload: Overload, load: _Load, took: float) -> None:
    times: list[float] = sorted(load.seconds)
    overload.offered, overload.taken = load.sent / took, load.taken / took
    overload.answers = {str(status): count for status, count in sorted(load.answers.items())}
    overload.unsaid, overload.timed_out = load.unsaid, load.timed_out
    overload.broken = load.broken
    if times:
        overload.median, overload.slowest = statistics.median(times), times[-1]
        overload.p99 = times[int(len(times) * 0.99)]
    overload.peak = max(overload.samples, default=0)


_HEADS = (
    *("load", "offered, events/s", "taken", "times", "answers", "without Retry-After"),
    *("timed out", "broken", "answer, s: median", "p99", "slowest"),
    *("memory, MB: before", "peak", "after", "back to normal, s"),
)


def _row(one: Overload) -> list[str]:
    ratio = one.offered / one.taken if one.taken else float("inf")
    return [
        one.what,
        f"{one.offered:,.0f}",
        f"{one.taken:,.0f}",
        f"{ratio:.0f}",
        ", ".join(f"{status}: {count:,}" for status, count in one.answers.items()),
        f"{one.unsaid}",
        f"{one.timed_out}",
        f"{one.broken}",
        *(f"{seconds:.2f}" for seconds in (one.median, one.p99, one.slowest)),
        *(f"{size / _MEGA:,.0f}" for size in (one.before, one.peak, one.after)),
        f"{one.recovered:.1f}",
    ]


def main() -> None:
    """Measure, print a table, and write files where they are asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.publish.memory")
    parser.description = __doc__
    parser.add_argument("--seconds", type=float, default=30, help="of each load")
    parser.add_argument("--connections", type=int, default=200)
    parser.add_argument(
        "--rate", type=float, default=200_000, help="bytes a second that a connection carries"
    )
    parser.add_argument("--json", type=Path, help="write every figure there")
    arguments = parser.parse_args()
    print(machine(), flush=True)
    found = measure(
        seconds=arguments.seconds,
        connections=arguments.connections,
        rate=arguments.rate,
        loads=[(100, 2_000), (100, 20_000), (5, 1_000_000)],
    )
    print("\n" + table(_HEADS, [_row(one) for one in found]))
    if arguments.json:
        about: dict[str, Any] = {"machine": machine(), "when": time.strftime("%Y-%m-%d")}
        text = json.dumps({**about, "memory": [asdict(one) for one in found]}, indent=1)
        arguments.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
