"""Events in memory: the bounded buffer behind the request threads, and what a thread took of it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal

from .capture import Exchange

Refused = Literal["buffer_full", "buffer_bytes"]


class Buffer:
    """A queue bounded by count and by bytes.

    The lock is held for a few instructions at a time, never while anything waits or does I/O.

    :param max_events: events at most; with `overflow`, the level from which others must help.
    :param max_bytes: bytes at most, bodies and all; one event is taken whatever its size.
    :param overflow: somebody takes events out when there are too many, so that a burst is bounded
        by its bytes alone; without, what passes `max_events` is refused.
    """

    def __init__(self, max_events: int, max_bytes: int, *, overflow: bool = False) -> None:
        self.max_events = max_events
        self.overflow = overflow
        self.max_bytes = max_bytes
        self._many = max_events * 0.8
        self._large = max_bytes * 0.8
        self._queue: deque[Exchange] = deque()
        self._bytes = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._queue)

    @property
    def bytes(self) -> int:
        """Bytes held now, about."""
        return self._bytes

    @property
    def nearly_full(self) -> bool:
        """Whether the buffer is 80 % full, by count or by bytes."""
        return len(self._queue) >= self._many or self._bytes >= self._large

    @property
    def pressure(self) -> float:
        """How near events are to be lost: from 1 on, there is no time for naps."""
        by_bytes = self._bytes / self._large
        return by_bytes if self.overflow else max(by_bytes, len(self._queue) / self._many)

    def put(self, exchange: Exchange, number: Callable[[], int]) -> Refused | None:
        """Number and add `exchange`; return None, or why it was refused.

        :param number: gives the exchange's number. Called under the lock, so that numbers are
            given in the order of the queue, and by one thread at a time. One that is refused has
            its number too: it is missed by it.
        """
        size = exchange.weigh()
        with self._lock:
            exchange.seq = number()
            if not self.overflow and len(self._queue) >= self.max_events:
                return "buffer_full"
            if self._queue and self._bytes + size > self.max_bytes:
                return "buffer_bytes"
            self._queue.append(exchange)
            self._bytes += size
        return None

    def take(self, max_events: int) -> list[Exchange]:
        """Remove and return up to `max_events`, oldest first."""
        taken: list[Exchange] = []
        with self._lock:
            while self._queue and len(taken) < max_events:
                exchange = self._queue.popleft()
                self._bytes -= exchange.weight
                taken.append(exchange)
        return taken


#: A packed batch, see batch.py, and how many events are in it.
Parcel = tuple[bytes, int]


@dataclass
class Held:
    """What a hand gives up: events in each of the three forms they have there."""

    exchanges: list[Exchange] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    parcels: list[Parcel] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.exchanges) + len(self.lines) + sum(count for _, count in self.parcels)


class Hand:
    """What one background thread has taken out of the buffer and not yet found a place for.

    Each exchange is in here until it is part of a line, each line until it is part of a parcel,
    and each parcel until it has a place, so that at the end of the process whatever a thread was
    doing can be seen and taken over. Whoever owned the hand learns from the return values that it
    does not any more.
    """

    def __init__(self) -> None:
        #: Held by the owner while it works on what is in the hand.
        self.at_work = threading.Lock()
        self._lock = threading.Lock()
        self._exchanges: deque[Exchange] = deque()
        self._lines: list[str] = []
        self._parcels: deque[Parcel] = deque()
        self._size = 0
        self._closed = False

    def __len__(self) -> int:
        with self._lock:
            parcels = sum(count for _, count in self._parcels)
            return len(self._exchanges) + len(self._lines) + parcels

    def take(self, buffer: Buffer, max_events: int) -> int:
        """Take up to `max_events` from `buffer`; none while the hand is surrendered."""
        with self._lock:
            if self._closed:
                return 0
            taken = buffer.take(max_events)
            self._exchanges.extend(taken)
        return len(taken)

    def next(self, most: int = 1, max_bytes: int = 1) -> list[Exchange]:
        """The exchanges to encode next, one at least if there is one; they stay in the hand.

        :param most: how many at most.
        :param max_bytes: bytes of memory they may have, beside the first.
        """
        found: list[Exchange] = []
        size = 0
        with self._lock:
            for exchange in islice(self._exchanges, most):
                size += exchange.weight
                if found and size > max_bytes:
                    break
                found.append(exchange)
        return found

    def encoded(self, exchange: Exchange, line: str | None, size: int = 0) -> bool:
        """Replace `exchange` by its line, or by nothing; return whether it was still ours."""
        with self._lock:
            if not self._exchanges or self._exchanges[0] is not exchange:
                return False
            self._exchanges.popleft()
            if line is not None:
                self._lines.append(line)
                self._size += size
            return True

    def packed(self, exchanges: list[Exchange], parcels: list[Parcel]) -> bool:
        """Replace `exchanges` by the parcels made of them; return whether they were still ours."""
        with self._lock:
            held = list(islice(self._exchanges, len(exchanges)))
            if len(held) < len(exchanges) or any(
                one is not other for one, other in zip(held, exchanges, strict=True)
            ):
                return False
            for _ in exchanges:
                self._exchanges.popleft()
            self._parcels.extend(parcels)
            return True

    @property
    def size(self) -> int:
        """Bytes of the lines in the hand."""
        return self._size

    def lines(self) -> list[str]:
        """The lines that want to be packed; they stay in the hand until :meth:`sealed`."""
        with self._lock:
            return list(self._lines)

    def sealed(self, lines: list[str], batch: bytes) -> None:
        """Replace the lines by the parcel made of them, if they are still ours."""
        with self._lock:
            if self._lines[: len(lines)] == lines:
                del self._lines[: len(lines)]
                self._size = 0
                self._parcels.append((batch, len(lines)))

    def parcel(self) -> Parcel | None:
        """The parcel that wants a place; it stays in the hand until :meth:`placed`."""
        with self._lock:
            return self._parcels[0] if self._parcels else None

    def placed(self, parcel: Parcel) -> bool:
        """The parcel has a place; return whether it was still ours, and so ours to count."""
        with self._lock:
            if not self._parcels or self._parcels[0] is not parcel:
                return False
            self._parcels.popleft()
            return True

    def surrender(self) -> Held:
        """Give up everything, and take no more until :meth:`reopen`."""
        with self._lock:
            held = Held(list(self._exchanges), self._lines, list(self._parcels))
            self._lines, self._size = [], 0
            self._exchanges.clear()
            self._parcels.clear()
            self._closed = True
            return held

    def receive(self, held: Held) -> None:
        """Take over what another hand surrendered."""
        with self._lock:
            self._exchanges.extend(held.exchanges)
            self._lines += held.lines
            self._parcels.extend(held.parcels)

    def reopen(self) -> None:
        """Take from the buffer again."""
        with self._lock:
            self._closed = False
