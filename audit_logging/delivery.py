"""Delivery: from a Celery worker to the publisher; kept in a spool when that does not take it.

A batch ends in one of three places, each durable: with the publisher (it answered that it is), in
the worker's delivery spool (to be sent again), or in the dead-letter store (it is refused for
good). Several processes drain one spool, each record leased to one of them.
"""

from __future__ import annotations

import logging
import os
import random
import time
from collections.abc import Callable

from . import metrics
from .background import Loop
from .breaker import Breaker
from .conf import LoggingSettings, conf
from .exceptions import Declined, DeliveryRefused, RetryLater, SpoolError, SpoolFull
from .publisher_client import BATCH_PATH, Delivered, Publisher
from .spool import DurableQueue, Record, StoredRecord

__all__ = [
    "BATCH_PATH",
    "DEAD_STREAM",
    "RETRY_STREAM",
    "Delivered",
    "Deliverer",
    "Publisher",
    "get_deliverer",
    "get_publisher",
]

logger = logging.getLogger(__name__)

#: Streams of the delivery spool: batches to send again, and single events refused for good.
RETRY_STREAM = "delivery"
DEAD_STREAM = "dead-letters"

#: A batch declined so often is split, so that only the event at fault waits; its parts at once.
SPLIT_AFTER = 3
#: A single event declined so often, and in the spool for so many seconds, is given up. Both, as
#: the reason may be a mistake of an operator's, and an hour is what it takes to notice one.
GIVE_UP_AFTER = 15
GIVE_UP_SECONDS = 3600.0
#: Seconds that a declined batch waits: doubled each time, to this.
LONGEST_DELAY = 300.0

_PART = "part"


class Deliverer:
    """Sends batches, retries, and keeps what cannot be sent; one per worker process."""

    def __init__(
        self,
        publisher: Publisher,
        options: LoggingSettings = conf,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._publisher = publisher
        self._options = options
        self._sleep = sleep
        self._clock = clock
        self.spool = DurableQueue(
            options.DATA_DIR / "delivery-spool.sqlite3",
            max_bytes=options.SPOOL_MAX_BYTES,
            clock=clock,
        )
        self.dead_letters = DurableQueue(
            options.DATA_DIR / "dead-letters.sqlite3", max_bytes=options.SPOOL_MAX_BYTES
        )
        self.breaker = Breaker()
        self._drain = Loop(self.drain_step, name="audit-delivery-drain")

    def start(self) -> None:
        """Begin to replay the spool in the background."""
        self._drain.ensure_running()

    def stop(self) -> None:
        """End the background replay."""
        self._drain.stop(1.0)

    def deliver(self, payload: str) -> None:
        """Bring one batch to a durable place.

        :raises SpoolError: the publisher is away and the spool does not take it either; the
            broker still has it.
        """
        lines = payload.split("\n")
        tries = 1 + self._options.DELIVERY_RETRIES
        for attempt in range(tries):
            if not self.breaker.allows:
                break
            try:
                again = self._send(lines)
            except RetryLater as error:
                if attempt + 1 < tries:
                    self._sleep(max(self._pause(attempt), min(error.retry_after or 0.0, 2.0)))
                    continue
                self.breaker.failed(error.retry_after)
                logger.warning("deliveries are spooled: %s", error)
                break
            except Declined as error:
                logger.warning("%s events are not taken, and spooled: %s", len(lines), error)
                break
            self.breaker.succeeded()
            if not again:
                return
            lines = again
            if attempt + 1 < tries:
                self._sleep(self._pause(attempt))
        self._keep(lines)

    @staticmethod
    def _pause(attempt: int) -> float:
        return min(2.0, 0.1 * 2**attempt) * (0.5 + random.random())  # noqa: S311

    def _send(self, lines: list[str]) -> list[str]:
        """Send; account for what was settled; return the lines to send again."""
        try:
            result = self._publisher.send(lines)
        except RetryLater:
            metrics.delivery_failures.inc(reason="unavailable")
            raise
        except Declined:
            metrics.delivery_failures.inc(reason="declined")
            raise
        except DeliveryRefused as error:
            result = Delivered(refused=[(line, str(error)) for line in lines])
        for status, count in result.stored.items():
            metrics.delivered.inc(count, status=status)
        if result.refused:
            self._bury(result.refused)
        return result.again

    def _keep(self, lines: list[str]) -> None:
        self.spool.append(RETRY_STREAM, [_record(lines)])
        metrics.spooled.inc(len(lines), reason="publisher_down")
        self._measure()
        self.start()

    def _measure(self) -> None:
        try:
            metrics.spool_bytes.set(self.spool.used_bytes(), spool="delivery")
        except SpoolError:
            # The next write says what is wrong with it.
            pass

    def _bury(self, refused: list[tuple[str, str]]) -> None:
        try:
            self._to_dead_letters(refused)
        except SpoolFull as error:
            # To wait for room would hold up every good event behind these.
            metrics.rejected.inc(len(refused), reason="dead_letters_full")
            logger.error("%s events are LOST, refused for good: %s", len(refused), error)

    def _to_dead_letters(self, refused: list[tuple[str, str]]) -> None:
        records = [
            Record(line.encode(), headers=(("reason", why.encode()),)) for line, why in refused
        ]
        self.dead_letters.append(DEAD_STREAM, records)
        metrics.dead_lettered.inc(len(refused))
        logger.error(
            "%s events are refused for good and kept as dead letters: %s",
            len(refused),
            refused[0][1],
        )

    def drain_step(self) -> float:
        """Send one batch of the spool; return the seconds until the next is due."""
        if not self.breaker.allows:
            return 0.5
        if not self.spool.path.exists():
            return 1.0
        records = self.spool.lease(
            RETRY_STREAM,
            seconds=max(60.0, 4 * self._options.DELIVERY_TIMEOUT),
            owner=str(os.getpid()),
            max_records=1,
            max_bytes=64 << 20,
        )
        if not records:
            return 1.0
        record = records[0]
        lines = record.value.decode().split("\n")
        try:
            again = self._send(lines)
        except RetryLater as error:
            self.breaker.failed(error.retry_after)
            # It says nothing of this batch, which stays the first.
            self.spool.release(RETRY_STREAM, records, tried=False)
            return 0.5
        except Declined as error:
            self._declined(record, lines, error)
            return 0.0
        self.breaker.succeeded()
        if len(again) == len(lines):
            self.spool.release(RETRY_STREAM, records, self._delay(record))
            return 0.0
        if again:
            try:
                # Stored again before the old record goes: a crash between leaves both, and the
                # lake has each event once.
                self.spool.append(RETRY_STREAM, [_record(again, record.timestamp)])
            except SpoolFull:
                # So it does if all are sent again.
                self.spool.release(RETRY_STREAM, records, self._delay(record))
                return 0.0
        if self.spool.settle(RETRY_STREAM, records):
            metrics.replayed.inc(len(lines) - len(again), spool="delivery")
        self._measure()
        return 0.0

    def _declined(self, record: StoredRecord, lines: list[str], error: Declined) -> None:
        """Put aside a batch that is not taken, so that the others pass."""
        try:
            if error.by_content and len(lines) > 1:
                if record.attempts >= SPLIT_AFTER or _PART in dict(record.headers):
                    self._split(record, lines)
                    return
            elif error.by_content and self._hopeless(record):
                self._to_dead_letters([(lines[0], str(error))])
                self.spool.settle(RETRY_STREAM, [record])
                self._measure()
                return
        except SpoolFull as full:
            logger.warning("%s events that are not taken stay in the spool: %s", len(lines), full)
        self.spool.release(RETRY_STREAM, [record], self._delay(record))

    def _split(self, record: StoredRecord, lines: list[str]) -> None:
        middle = len(lines) // 2
        parts = [
            _record(half, record.timestamp, part=True) for half in (lines[:middle], lines[middle:])
        ]
        # Before the old one goes: see drain_step().
        self.spool.append(RETRY_STREAM, parts)
        self.spool.settle(RETRY_STREAM, [record])

    def _hopeless(self, record: StoredRecord) -> bool:
        age = self._clock() - record.timestamp / 1_000_000
        return record.attempts >= GIVE_UP_AFTER and age >= GIVE_UP_SECONDS

    @staticmethod
    def _delay(record: StoredRecord) -> float:
        return min(LONGEST_DELAY, 2.0 ** min(record.attempts, 16)) * (0.75 + random.random() / 2)  # noqa: S311


def _record(lines: list[str], timestamp: int = 0, *, part: bool = False) -> Record:
    headers: tuple[tuple[str, bytes], ...] = (("events", str(len(lines)).encode()),)
    if part:
        headers += ((_PART, b"1"),)
    return Record("\n".join(lines).encode(), headers=headers, timestamp=timestamp)


_publisher: tuple[int, Publisher] | None = None
_deliverer: tuple[int, Deliverer] | None = None


def get_publisher() -> Publisher:
    """Return this process's client of the publisher."""
    global _publisher
    if _publisher is None or _publisher[0] != os.getpid():
        _publisher = (os.getpid(), Publisher())
    return _publisher[1]


def get_deliverer() -> Deliverer:
    """Return this process's deliverer."""
    global _deliverer
    if _deliverer is None or _deliverer[0] != os.getpid():
        _deliverer = (os.getpid(), Deliverer(get_publisher()))
    return _deliverer[1]
