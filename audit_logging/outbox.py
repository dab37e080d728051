"""Outbox: where a batch goes, to the broker or else to the local spool; and the replay."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable

from . import metrics, tracing
from .breaker import Breaker
from .conf import LoggingSettings
from .exceptions import RetryLater, SpoolError, SpoolFull
from .gauges import SpoolGauges
from .spool import DurableQueue, Record, StoredRecord

logger = logging.getLogger(__name__)

#: The stream of the capture spool: one record is one batch of events, as it goes to Celery.
STREAM = "capture"
EVENTS_HEADER = "events"

IDLE = 1.0
_WARN_EVERY = 10.0
#: After so many tries a batch of the spool lets others pass: it may be itself what the broker
#: does not take, for its size. Before that the broker is likely down, and order worth keeping.
_PATIENCE = 5
_LONGEST_DELAY = 300.0

#: Sends one batch, see batch.py, of so many events; raises when it is not accepted.
Send = Callable[[bytes, int], None]
#: What became of a batch: the counter of its place, and the labels.
Outcome = tuple[metrics.Counter, dict[str, str]]


class Outbox:
    """One process's way out for batches.

    :param send: hands a batch to the broker; raises on failure.
    """

    def __init__(self, send: Send, options: LoggingSettings) -> None:
        self._send = send
        self._options = options
        self.spool = DurableQueue(
            options.DATA_DIR / "capture-spool.sqlite3", max_bytes=options.SPOOL_MAX_BYTES
        )
        self._gauges = SpoolGauges(self.spool, STREAM, "capture")
        self._warned: dict[str, float] = {}
        self.fresh()

    def fresh(self) -> None:
        """Forget what a parent process knew of the broker."""
        self.breaker = Breaker(to="broker")
        #: Since when (monotonic) a batch has been on its way to the broker.
        self.sending_since: float | None = None
        self._replay_at = 0.0
        #: Events lost that no line of the log has told yet.
        self._lost_since = 0

    def dispatch(self, batch: bytes, count: int) -> Outcome:
        """Send a batch to the broker; spool it if that does not take it."""
        if self.breaker.allows and self._try_send(batch, count):
            return metrics.queued, {}
        return self.keep(batch, count, "broker_down")

    def keep(self, batch: bytes, count: int, reason: str) -> Outcome:
        """Spool a batch, if it may be."""
        if self._options.OVERFLOW == "drop":
            return metrics.rejected, {"reason": "overflow_drop"}
        record = Record(batch, headers=((EVENTS_HEADER, str(count).encode()),))
        try:
            self.spool.append(STREAM, [record])
        except SpoolError as error:
            self._lost(count, error)
            lost = "spool_full" if isinstance(error, SpoolFull) else "spool_unavailable"
            return metrics.rejected, {"reason": lost}
        self._gauges.measure()
        return metrics.spooled, {"reason": reason}

    def replay(self) -> float:
        """Send what lies in the spool; return how long to wait for more to do."""
        now = time.monotonic()
        if now < self._replay_at:
            return min(IDLE, self._replay_at - now)
        self._gauges.now_and_then()
        if not self.breaker.allows:
            return IDLE
        # Nothing was ever spooled on this host: leave the disk alone.
        if not self.spool.path.exists():
            self._replay_at = now + IDLE
            return IDLE
        try:
            records = self.spool.lease(
                STREAM, seconds=60.0, owner=f"{os.getpid()}", max_records=1, max_bytes=64 << 20
            )
            if not records:
                self._replay_at = now + IDLE
                return IDLE
            return self._replay_one(records[0])
        except SpoolError as error:
            # Sent and not settled: it is sent again later, and the lake has each event once.
            self.warn("the spool cannot be replayed: %s", error)
            self._replay_at = now + IDLE
            return IDLE

    def _replay_one(self, record: StoredRecord) -> float:
        count = int(dict(record.headers).get(EVENTS_HEADER) or b"1")
        if not self._try_send(record.value, count):
            excess = record.attempts - _PATIENCE
            delay = min(_LONGEST_DELAY, 2.0 ** min(excess, 16)) if excess >= 0 else 0.0
            self.spool.release(STREAM, [record], delay)
            return IDLE
        if self.spool.settle(STREAM, [record]):
            metrics.replayed.inc(count, spool="capture")
        self._gauges.measure()
        return 0.0

    def _try_send(self, batch: bytes, count: int) -> bool:
        self.sending_since = time.monotonic()
        try:
            with tracing.span("send", kind="producer", batch=batch, events=count):
                self._send(batch, count)
        except Exception as error:  # noqa: BLE001 - whatever the broker's client raises
            # The publisher, where it is asked directly, may say how long it wants to be left alone.
            self.not_taken(error, error.retry_after if isinstance(error, RetryLater) else None)
            return False
        finally:
            self.sending_since = None
        self.breaker.succeeded()
        return True

    def not_taken(self, error: object, retry_after: float | None = None) -> None:
        """The broker did not take a batch: leave it alone for a while.

        :param retry_after: seconds that it asked for.
        """
        self.breaker.failed(retry_after)
        self.warn("events are not taken, and spooled: %s", error)

    def _lost(self, count: int, error: SpoolError) -> None:
        if not count:
            # It travels as a batch of no events; a later one says the same again.
            self.warn("what this process has numbered is not told to the publisher: %s", error)
            return
        # As the line is kept back most of the time, each gives the sum since the last.
        self._lost_since += count
        if self.warn("%s events are LOST: %s", self._lost_since, error):
            self._lost_since = 0

    def warn(self, message: str, *args: object) -> bool:
        """Log a warning, each kind once in a while; return whether it was logged now."""
        now = time.monotonic()
        if now - self._warned.get(message, float("-inf")) < _WARN_EVERY:
            return False
        self._warned[message] = now
        logger.warning(message, *args)
        return True
