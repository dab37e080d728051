"""Delivery: from a worker to where events are durable; kept in a spool when that takes none.

A batch ends in one of three places, each durable: with the publisher (it answered that it is), in
this host's delivery spool (to be sent again), or among the dead letters (it is refused for good).
Several processes drain one spool, each record leased to one of them.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from . import dead_letter_file, metrics, tracing
from .background import Loop
from .batch import Batch
from .breaker import Breaker
from .chance import chance
from .conf import LoggingSettings, conf
from .dead_letter_file import DEAD_STREAM
from .exceptions import (
    BatchUnreadable,
    Declined,
    DeliveryRefused,
    RetryLater,
    SpoolFull,
)
from .gauges import SpoolGauges
from .outcome import Delivered, Refusal, Target
from .publisher_client import BATCH_PATH, Publisher
from .seldom import Seldom
from .spool import DurableQueue, Record, StoredRecord

__all__ = [
    "BATCH_PATH",
    "DEAD_STREAM",
    "RETRY_STREAM",
    "Delivered",
    "Deliverer",
    "PerProcess",
    "Publisher",
    "get_deliverer",
    "get_publisher",
]

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: The stream of the delivery spool: batches to send again.
RETRY_STREAM = "delivery"

#: A batch declined so often is split, so that only the event at fault waits; its parts at once.
SPLIT_AFTER = 3
#: A single event declined so often, and in the spool for so many seconds, is given up. Both, as
#: the reason may be a mistake of an operator's, and an hour is what it takes to notice one.
GIVE_UP_AFTER = 15
GIVE_UP_SECONDS = 3600.0
#: Seconds that a declined batch waits: doubled each time, to this.
LONGEST_DELAY = 300.0
#: Seconds that a worker waits for the next try with a batch in hand; longer is the spool's affair.
LONGEST_PAUSE = 2.0

_EVENTS, _PART = "events", "part"


class Deliverer:
    """Sends batches, retries, and keeps what cannot be sent; one per process.

    :param target: where batches go.
    """

    def __init__(
        self,
        target: Target,
        options: LoggingSettings = conf,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.target = target
        self._options = options
        self._sleep = sleep
        self._clock = clock
        self.spool = DurableQueue(
            options.DATA_DIR / "delivery-spool.sqlite3",
            max_bytes=options.SPOOL_MAX_BYTES,
            clock=clock,
        )
        self.dead_letters = dead_letter_file.open_file(options)
        self.breaker = Breaker(to="publisher")
        self._seldom = Seldom(logger)
        self._gauges = SpoolGauges(self.spool, RETRY_STREAM, "delivery")
        self._drain = Loop(self.drain_step, name="audit-delivery-drain")
        self._letters = Loop(self._letters_step, name="audit-dead-letters")

    def start(self) -> None:
        """Begin to replay the spool, and to move dead letters, in the background."""
        self._drain.ensure_running()
        if self._options.DEAD_LETTERS == "database":
            self._letters.ensure_running()

    def stop(self) -> None:
        """End the background work."""
        self._drain.stop(1.0)
        self._letters.stop(1.0)

    # -- one batch --------------------------------------------------------------------------

    def deliver(self, payload: str, events: int) -> None:
        """Bring the batch of one Celery message to a durable place.

        :raises SpoolError: the publisher is away and the spool does not take it either; the
            broker still has it.
        """
        try:
            batch = Batch.from_message(payload, events)
        except BatchUnreadable as error:
            self._bury([_damaged(payload.encode("utf-8", "replace"), events, error)])
            return
        # One that asks whether the publisher is back asks once.
        tries = 1 + self._options.DELIVERY_RETRIES if self.breaker.closed else 1
        for attempt in range(tries):
            if not self.breaker.admits(self._options.DELIVERY_TIMEOUT):
                break
            try:
                again = self._send(batch)
            except RetryLater as error:
                asked = error.retry_after or 0.0
                # Who asks for a longer pause than a worker can make gets it.
                if attempt + 1 < tries and asked <= LONGEST_PAUSE:
                    self._sleep(max(self._pause(attempt), asked))
                    continue
                self.breaker.failed(error.retry_after)
                self._seldom.say(logging.WARNING, "deliveries are spooled: %s", error)
                break
            except Declined as error:
                # It is there, and answers.
                self.breaker.succeeded()
                self._say_declined(batch, error)
                break
            self.breaker.succeeded()
            if not again:
                return
            batch = Batch.of(again)
            if attempt + 1 < tries:
                self._sleep(self._pause(attempt))
        self._keep(batch)

    def hand_over(self, batch: Batch) -> None:
        """Bring one batch to a durable place with a single try, for callers that have a spool.

        :raises RetryLater: the publisher is away; the caller still has the batch.
        :raises SpoolError: a part of it could not be kept; the caller still has the batch.
        """
        try:
            again = self._send(batch)
        except Declined as error:
            # Here and not with the caller: this spool finds the event at fault.
            self._say_declined(batch, error)
            self._keep(batch)
            return
        if again:
            self._keep(Batch.of(again))

    def _say_declined(self, batch: Batch, error: Declined) -> None:
        self._seldom.say(
            logging.WARNING, "%s events are not taken, and spooled: %s", batch.count, error
        )

    @staticmethod
    def _pause(attempt: int) -> float:
        return min(LONGEST_PAUSE, 0.1 * 2**attempt) * (0.5 + chance.random())

    def _send(self, batch: Batch) -> list[str]:
        """Send; account for what was settled; return the lines to send again."""
        began = time.monotonic()
        try:
            with tracing.span("deliver", kind="client", batch=batch.packed, events=batch.count):
                result = self.target.send(batch)
        except RetryLater:
            metrics.delivery_failures.inc(reason="unavailable")
            raise
        except Declined:
            metrics.delivery_failures.inc(reason="declined")
            raise
        except DeliveryRefused as error:
            refusal = Refusal(batch.lines()[0], str(error), error.status)
            result = Delivered(refused=[refusal])
        except BatchUnreadable as error:
            result = Delivered(refused=[_damaged(batch.packed, batch.count, error)])
        finally:
            metrics.delivery_seconds.observe(time.monotonic() - began)
        if not batch.count:
            # Producer records, which travel by themselves and are no events: they are not counted,
            # and one that is refused would be out of date by the time somebody looks at it.
            if result.refused:
                logger.warning(
                    "what processes have numbered is refused, so that losses cannot be named: %s%s",
                    result.refused[0].reason,
                    _hint(result.refused[0]),
                )
            return result.again
        for status, count in result.stored.items():
            metrics.delivered.inc(count, status=status)
        if result.refused:
            self._bury(result.refused)
        return result.again

    def _keep(self, batch: Batch) -> None:
        self.spool.append(RETRY_STREAM, [_record(batch)])
        metrics.spooled.inc(batch.count, reason="publisher_down")
        self._gauges.measure()
        self.start()

    def _bury(self, refused: list[Refusal]) -> None:
        try:
            dead_letter_file.bury(self.dead_letters, refused)
        except SpoolFull as error:
            # To wait for room would hold up every good event behind these.
            lost = sum(refusal.events for refusal in refused)
            metrics.rejected.inc(lost, reason="dead_letters_full")
            self._seldom.say(logging.ERROR, "%s events are LOST, refused for good: %s", lost, error)
        self.start()

    # -- in the background ------------------------------------------------------------------

    def _letters_step(self) -> float:
        # Not at the top: it holds a model, which wants Django's apps to be there.
        from .dead_letters import Mover

        return Mover(self.dead_letters, self.target, self.breaker, self._options).step()

    def drain_step(self) -> float:
        """Send one batch of the spool; return the seconds until the next is due."""
        self._gauges.now_and_then()
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
        if not self.breaker.admits(self._options.DELIVERY_TIMEOUT):
            self.spool.release(RETRY_STREAM, records, tried=False)
            return 0.5
        record = records[0]
        count = int(dict(record.headers).get(_EVENTS) or b"1")
        try:
            batch = Batch.from_record(record.value, count)
            again = self._send(batch)
        except BatchUnreadable as error:
            self._bury([_damaged(record.value, count, error)])
            self.spool.settle(RETRY_STREAM, records)
            return 0.0
        except RetryLater as error:
            self.breaker.failed(error.retry_after)
            # It says nothing of this batch, which stays the first.
            self.spool.release(RETRY_STREAM, records, tried=False)
            return 0.5
        except Declined as error:
            self.breaker.succeeded()
            self._declined(record, batch, error)
            return 0.0
        self.breaker.succeeded()
        # Lines, not batch.count: producer records are no events.
        if again and len(again) == len(batch.lines()):
            self.spool.release(RETRY_STREAM, records, self._delay(record))
            return 0.0
        if again:
            try:
                # Stored again before the old record goes: a crash between leaves both, and the
                # lake has each event once.
                self.spool.append(RETRY_STREAM, [_record(Batch.of(again), record.timestamp)])
            except SpoolFull:
                # So it does if all are sent again.
                self.spool.release(RETRY_STREAM, records, self._delay(record))
                return 0.0
        if self.spool.settle(RETRY_STREAM, records):
            metrics.replayed.inc(max(0, batch.count - len(again)), spool="delivery")
        self._gauges.measure()
        return 0.0

    def _declined(self, record: StoredRecord, batch: Batch, error: Declined) -> None:
        """Put aside a batch that is not taken, so that the others pass."""
        try:
            if error.by_content and batch.count > 1:
                if record.attempts >= SPLIT_AFTER or _PART in dict(record.headers):
                    self._split(record, batch.lines())
                    return
            elif error.by_content and self._hopeless(record):
                # Producer records are no events: nobody could do anything about one any more.
                if batch.count:
                    dead_letter_file.bury(
                        self.dead_letters, [Refusal(batch.lines()[0], str(error), error.status)]
                    )
                self.spool.settle(RETRY_STREAM, [record])
                self._gauges.measure()
                return
        except BatchUnreadable as damage:
            self._bury([_damaged(batch.packed, batch.count, damage)])
            self.spool.settle(RETRY_STREAM, [record])
            return
        except SpoolFull as full:
            self._seldom.say(
                logging.WARNING,
                "%s events that are not taken stay in the spool: %s",
                batch.count,
                full,
            )
        self.spool.release(RETRY_STREAM, [record], self._delay(record))

    def _split(self, record: StoredRecord, lines: list[str]) -> None:
        middle = len(lines) // 2
        parts = [
            _record(Batch.of(half), record.timestamp, part=True)
            for half in (lines[:middle], lines[middle:])
            if half
        ]
        # Before the old one goes: see drain_step().
        self.spool.append(RETRY_STREAM, parts)
        self.spool.settle(RETRY_STREAM, [record])

    def _hopeless(self, record: StoredRecord) -> bool:
        age = self._clock() - record.timestamp / 1_000_000
        return record.attempts >= GIVE_UP_AFTER and age >= GIVE_UP_SECONDS

    @staticmethod
    def _delay(record: StoredRecord) -> float:
        return min(LONGEST_DELAY, 2.0 ** min(record.attempts, 16)) * (0.75 + chance.random() / 2)


def _record(batch: Batch, timestamp: int = 0, *, part: bool = False) -> Record:
    headers: tuple[tuple[str, bytes], ...] = ((_EVENTS, str(batch.count).encode()),)
    if part:
        headers += ((_PART, b"1"),)
    return Record(batch.packed, headers=headers, timestamp=timestamp)


def _hint(refusal: Refusal) -> str:
    """What to ask where a producer record is taken for an event that lacks its fields."""
    by_form = refusal.status in (400, 422)
    if refusal.status is None:
        try:
            by_form = bool(json.loads(refusal.reason)["field"])
        except (ValueError, KeyError, TypeError):
            by_form = False
    return ". Is the publisher older than this service?" if by_form else ""


def _damaged(value: bytes, events: int, error: Exception) -> Refusal:
    return Refusal(base64.b64encode(value).decode("ascii"), str(error), events=events)


class PerProcess(Generic[T]):
    """One thing for each process, made on first use: connections never cross a fork.

    :param make: makes it.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._made: tuple[int, T] | None = None
        self._locks: dict[int, threading.Lock] = {}

    def __call__(self) -> T:
        """Return this process's."""
        pid = os.getpid()
        made = self._made
        if made is not None and made[0] == pid:
            return made[1]
        # A lock of this process's own: one that a fork copied may be locked for ever.
        with self._locks.setdefault(pid, threading.Lock()):
            if self._made is None or self._made[0] != pid:
                self._made = (pid, self._make())
            return self._made[1]

    def forget(self) -> None:
        """Make a new one at the next call. For tests."""
        self._made = None


def _make_deliverer() -> Deliverer:
    from .handover import make_target

    return Deliverer(make_target(conf))


#: Return this process's client of the publisher.
get_publisher = PerProcess(Publisher)
#: Return this process's deliverer.
get_deliverer = PerProcess(_make_deliverer)
