"""Appending to Kafka: records in, and one call when every record's fate is known."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from ..exceptions import Backpressure, EventLogError, RecordTooLarge, RegionUnavailable
from .base import Receipt, Record
from .kafka_errors import classify, is_fatal

logger = logging.getLogger(__name__)

#: Bytes that a record's key and headers stay below.
_BESIDE_VALUE = 64 << 10
#: What delivery reports are waited for at a time by the thread that does nothing else, seconds.
_PATIENCE = 0.1


class Submission:
    """The records of one append, and what is known of them.

    Reports come on one thread at a time; whoever submits may be on another.

    :ivar errors: why records are not durable, by index.
    :ivar places: (partition, offset) of those that are, by index, where it was asked for.
    :ivar fatal: the producer is of no more use.
    """

    __slots__ = (
        *("errors", "places", "fatal", "deadline", "_region", "_done", "_known", "_reported"),
        *("_expected", "_ended"),
    )

    def __init__(
        self, region: str, count: int, deadline: float, done: Callable[[Submission], None]
    ) -> None:
        self.errors: dict[int, EventLogError] = {}
        self.places: dict[int, tuple[int, int]] | None = None
        self.fatal = False
        self.deadline = deadline
        self._region = region
        self._done = done
        self._known = bytearray(count)
        self._reported = 0
        self._expected = -1
        self._ended = threading.Lock()

    @property
    def settled(self) -> bool:
        """Whether every fate is known."""
        return self._ended.locked()

    def refuse(self, index: int, error: EventLogError) -> None:
        """A record was not even taken; for the submitting thread."""
        self.errors[index] = error
        self._known[index] = 1

    def report(self, index: int, error: Any, message: Any) -> None:
        """The delivery report of one record. It must not raise: whoever polls would get it."""
        if error is not None:
            self.fatal = self.fatal or is_fatal(error)
            self.errors[index] = classify(error, self._region)
        elif self.places is not None:
            self.places[index] = (message.partition(), message.offset())
        # Last: whoever gives up meanwhile takes what is known, and has no error, for durable.
        self._known[index] = 1
        self._reported += 1
        if self._reported == self._expected:
            self._end()

    def expect(self, count: int) -> None:
        """All is submitted, and so many reports will come."""
        self._expected = count
        # Either we see the last report here, or the last report sees what is expected.
        if self._reported == count:
            self._end()

    def give_up(self, timeout: float) -> None:
        """Nobody waits longer. What has no report may be durable all the same: readers know
        duplicates by request_id."""
        late = RegionUnavailable(f"{self._region}: no acknowledgement within {timeout:g} s.")
        for index, known in enumerate(self._known):
            if not known:
                self.errors.setdefault(index, late)
        self._end()

    def _end(self) -> None:
        if self._ended.acquire(blocking=False):
            self._done(self)


class RecordProducer:
    """A Kafka producer whose delivery reports are served by a thread of its own, until somebody
    drives it.

    Nobody calls `flush`: it would wait for other threads' records and defeat batching. Each
    append waits for its own reports alone.

    :param settings: librdkafka's settings.
    :param delivery_timeout: seconds until a record without a report counts as not durable.
    :param max_record_bytes: largest record.
    """

    def __init__(
        self,
        region: str,
        settings: dict[str, Any],
        *,
        delivery_timeout: float,
        max_record_bytes: int,
    ) -> None:
        from confluent_kafka import Producer

        self._region = region
        self._delivery_timeout = delivery_timeout
        self._max_record_bytes = max_record_bytes
        self._producer = Producer({**settings, "error_cb": self._on_error})
        #: In the order of their deadlines.
        self._open: deque[Submission] = deque()
        self._closing = False
        self._driven = False
        self._failed: Any = None
        self._thread = threading.Thread(
            target=self._poll, name=f"audit kafka {region}", daemon=True
        )
        self._thread.start()

    @property
    def failed(self) -> bool:
        """Whether it is of no more use."""
        return self._failed is not None

    def submit(
        self,
        topic: str,
        records: Sequence[Record],
        done: Callable[[Submission], None],
        *,
        places: bool = False,
    ) -> Submission:
        """Send `records`; `done` is called once, when every fate is known.

        :param places: whether partitions and offsets are wanted.
        """
        from confluent_kafka import KafkaException

        deadline = time.monotonic() + self._delivery_timeout
        submission = Submission(self._region, len(records), deadline, done)
        if places:
            submission.places = {}
        produce, largest, report = self._producer.produce, self._max_record_bytes, submission.report
        sent = 0
        # A value of this size fits with any key and headers that the publisher makes.
        plain = largest - _BESIDE_VALUE
        for index, record in enumerate(records):
            if len(record.value) > plain and record.size > largest:
                error: EventLogError = RecordTooLarge(
                    f"The record has {record.size:,} bytes; the event log takes {largest:,}."
                )
                submission.refuse(index, error)
                continue
            try:
                produce(
                    topic,
                    record.value,
                    record.key,
                    timestamp=record.timestamp // 1000,
                    headers=list(record.headers),
                    on_delivery=partial(report, index),
                )
                sent += 1
            except BufferError:
                error = Backpressure(f"{self._region}: MAX_QUEUED_BYTES wait already.")
                submission.refuse(index, error)
            except KafkaException as failure:
                submission.fatal = submission.fatal or is_fatal(failure.args[0])
                submission.refuse(index, classify(failure.args[0], self._region))
        if sent:
            self._open.append(submission)
        submission.expect(sent)
        if self._closing:
            # Nobody serves its reports any more.
            submission.give_up(0.0)
        return submission

    def append(self, topic: str, records: Sequence[Record]) -> tuple[list[Receipt], bool]:
        """Append `records`; return their receipts, and whether this producer is of no more use."""
        settled = threading.Event()
        submission = self.submit(topic, records, lambda _: settled.set(), places=True)
        # Whoever serves the reports gives up at the deadline; this is for one that does not.
        if not settled.wait(self._delivery_timeout + 2 * _PATIENCE):
            submission.give_up(self._delivery_timeout)
        places = submission.places or {}
        receipts = [
            Receipt(*places.get(index, (-1, -1)), error=submission.errors.get(index))
            for index in range(len(records))
        ]
        return receipts, submission.fatal or self.failed

    def drive(self) -> int:
        """Serve what reports are there; the thread that did ends."""
        self._driven = True
        self._producer.poll(0)
        self._sweep()
        return len(self._open)

    def close(self, timeout: float) -> None:
        """Wait up to `timeout` seconds for what is in flight, and end the thread."""
        if timeout > 0:
            self._producer.flush(timeout)
        self._closing = True
        if self._thread is not threading.current_thread():
            self._thread.join(1.0)
        self._producer.purge()
        # Their reports hold what they report to.
        self._producer.poll(0)
        while self._open:
            self._open.popleft().give_up(0.0)

    def _poll(self) -> None:
        while not self._closing and not self._driven:
            try:
                self._producer.poll(_PATIENCE)
                self._sweep()
            except Exception:
                logger.exception("Region %s: a delivery report failed.", self._region)
                time.sleep(_PATIENCE)

    def _sweep(self) -> None:
        """Forget what is settled, and give up what is late."""
        now = time.monotonic()
        submissions = self._open
        while submissions:
            try:
                first = submissions[0]
            except IndexError:
                return
            if not first.settled:
                if first.deadline > now:
                    return
                first.give_up(self._delivery_timeout)
            try:
                submissions.remove(first)
            except ValueError:
                # By the thread that served the reports until now.
                return

    def _on_error(self, error: Any) -> None:
        if is_fatal(error):
            self._failed = error
        # An outage is one line of the publisher's, and hundreds of the library's.
        logger.debug("Region %s: %s", self._region, error.str())
