"""For tests of audited services: see the events that requests would have sent, and set flags.

In a test run flags are those of the settings; nothing is looked up in the background.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from .capture import Exchange
from .conf import conf
from .event import AuditEvent, EventBuilder, complete, is_incomplete
from .flags import shared
from .transport import Transport, set_transport


class RecordingTransport(Transport):
    """Builds events at once, in the caller's thread, and keeps them in `events`."""

    def __init__(self) -> None:
        self._builder = EventBuilder(conf)
        self._count = 0
        self.events: list[AuditEvent] = []

    def submit(self, exchange: Exchange) -> None:
        """Build and keep the event."""
        exchange.producer_epoch, exchange.seq = "test", self._count
        self._count += 1
        if is_incomplete(exchange):
            complete(exchange)
        self.events.append(self._builder.build(exchange))

    def flush(self, timeout: float | None = None) -> bool:
        """Nothing waits."""
        return True


@contextmanager
def recorded_events() -> Iterator[list[AuditEvent]]:
    """Give the list of events recorded within the block; nothing leaves the process."""
    transport = RecordingTransport()
    before = set_transport(transport)
    try:
        yield transport.events
    finally:
        set_transport(before)


def refresh_flags() -> None:
    """Put in force what FLAGS_SOURCE says now, from this thread and within its transaction.

    It holds in this process until :func:`reset_flags`.

    :raises Exception: what the source raises; the flags stay as they were.
    """
    shared().refresh()


def reset_flags() -> None:
    """Put the settings' flags in force again."""
    shared().reset()
