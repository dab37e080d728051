"""The bounded buffer in memory between the request threads and the background threads."""

from __future__ import annotations

import threading
from collections import deque
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
        return len(self._queue) * 5 >= self.max_events * 4 or self._bytes * 5 >= self.max_bytes * 4

    def put(self, exchange: Exchange) -> Refused | None:
        """Add `exchange`; return None, or why it was refused."""
        size = exchange.size
        with self._lock:
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
                self._bytes -= exchange.size
                taken.append(exchange)
        return taken
