"""The event log's contract: a partitioned, durable, append-only log of records.

Kafka is the production backend, a local SQLite file the embedded one; both pass the suite in
``tests/contracts/eventlog.py`` unchanged. One instance is one *region*.
"""

from __future__ import annotations

import logging
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from audit_logging.spool import Record, StoredRecord

from ..exceptions import EventLogError, RegionUnavailable, UnknownTopic

__all__ = ["Errors", "EventLog", "Limits", "Receipt", "Record", "StoredRecord", "TopicFacts"]

logger = logging.getLogger(__name__)

#: Why records are not durable, by their index; the others are.
Errors = Mapping[int, EventLogError]

#: Threads of each region for what can only be waited for.
_WAITING_THREADS = 8
_pools: dict[tuple[int, str], ThreadPoolExecutor] = {}


def _pool(region: str) -> ThreadPoolExecutor:
    """A region's threads in this process: a dead one keeps none of another's; a fork has none."""
    found = _pools.get((os.getpid(), region))
    if found is None:
        made = ThreadPoolExecutor(_WAITING_THREADS, thread_name_prefix=f"audit append {region}")
        found = _pools.setdefault((os.getpid(), region), made)
    return found


@dataclass(frozen=True, slots=True)
class Limits:
    """How much one :meth:`EventLog.read` may return.

    :ivar max_records: records at most.
    :ivar max_bytes: bytes of records at most; one record is returned even if it is larger.
    :ivar timeout: seconds to wait for the first record; 0 looks once.
    """

    max_records: int = 10_000
    max_bytes: int = 32 << 20
    timeout: float = 0.5


@dataclass(frozen=True, slots=True)
class Receipt:
    """What became of one appended record.

    :ivar partition: where it is, or -1 when it failed.
    :ivar offset: its offset there, or -1 when it failed.
    :ivar error: None when the record is durable; otherwise why it is not (or may not be):
        :class:`~audit_publisher.exceptions.RegionUnavailable` (try another region),
        :class:`~audit_publisher.exceptions.RecordRejected` (no region will take it) or
        :class:`~audit_publisher.exceptions.Backpressure` (try again later).
    """

    partition: int = -1
    offset: int = -1
    error: EventLogError | None = None


@dataclass(frozen=True, slots=True)
class TopicFacts:
    """What one region says of one topic; None or "" where it does not tell, or has no such thing.

    :ivar partitions: how many there are.
    :ivar largest_batch: bytes that one batch of records may have, its own overhead included.
    :ivar replicas: copies of each partition; the smallest number.
    :ivar min_insync: copies that must have a record before it is acknowledged.
    :ivar retention: seconds that a record is kept, by age; ``math.inf`` for ever.
    :ivar cleanup: ``delete``, ``compact`` or both.
    """

    partitions: int
    largest_batch: int | None = None
    replicas: int | None = None
    min_insync: int | None = None
    retention: float | None = None
    cleanup: str = ""


class EventLog(ABC):
    """One region of the event log. Thread-safe; made per process, never shared across a fork."""

    #: The region's name: ``primary`` or ``secondary``.
    region: str
    #: Seconds that something submitted may wait for its turn.
    patience: float = 10.0

    @abstractmethod
    def append(self, topic: str, records: Sequence[Record]) -> list[Receipt]:
        """Append `records`; return one receipt each, in order, when every fate is known.

        Records with the same key go to the same partition, in order. Never raises for a record's
        fate; that is in its receipt.
        """

    def submit(self, topic: str, records: Sequence[Record], done: Callable[[Errors], None]) -> None:
        """Append `records` without waiting; `done` is called once, when every fate is known.

        :param done: gets an error for each record that is not durable, as :class:`Receipt` has
            them. Called on any thread, possibly before this returns; it must neither wait nor
            raise.
        """
        deadline = time.monotonic() + self.patience
        _pool(self.region).submit(self._append_and_tell, topic, records, done, deadline)

    def _append_and_tell(
        self,
        topic: str,
        records: Sequence[Record],
        done: Callable[[Errors], None],
        deadline: float,
    ) -> None:
        if time.monotonic() > deadline:
            # Those before it wait for a region that does not answer.
            late = RegionUnavailable(f"{self.region}: nobody got to it in time.")
            done(dict.fromkeys(range(len(records)), late))
            return
        try:
            receipts = self.append(topic, records)
        except Exception as error:
            logger.exception("Region %s failed in an unexpected way.", self.region)
            failure = RegionUnavailable(f"{self.region}: {error}")
            done(dict.fromkeys(range(len(records)), failure))
            return
        done({n: each.error for n, each in enumerate(receipts) if each.error is not None})

    def drive(self) -> int:
        """Serve what is ready of what was submitted, from the caller's thread, at once.

        A process that calls this again and again spares itself the thread that would, and with it
        the interpreter's hand-overs.

        :return: how many submissions are still open.
        """
        return 0

    @abstractmethod
    def ensure_topic(self, topic: str, partitions: int) -> None:
        """Make `topic` with `partitions` if it does not exist.

        :raises RegionUnavailable: the region does not answer.
        """

    @abstractmethod
    def partitions(self, topic: str) -> int:
        """Return the number of partitions of `topic`.

        :raises UnknownTopic: there is no such topic.
        :raises RegionUnavailable: the region does not answer.
        """

    def missing(self, topics: Iterable[str]) -> list[str]:
        """Return those of `topics` that there are not.

        :raises RegionUnavailable: the region does not answer.
        """
        found = []
        for topic in topics:
            try:
                self.partitions(topic)
            except UnknownTopic:
                found.append(topic)
        return found

    def describe(self, topics: Iterable[str]) -> dict[str, TopicFacts | None]:
        """Return what is known of each of `topics`; None for one that does not exist.

        :raises RegionUnavailable: the region does not answer.
        """
        found: dict[str, TopicFacts | None] = {}
        for topic in topics:
            try:
                found[topic] = TopicFacts(self.partitions(topic), self.largest_record(topic))
            except UnknownTopic:
                found[topic] = None
        return found

    def identity(self) -> str:
        """Return what tells this log from every other one, whatever its address; "" where it
        does not tell.

        :raises RegionUnavailable: the region does not answer.
        """
        return ""

    @abstractmethod
    def largest_record(self, topic: str) -> int:
        """Return how many bytes a record of `topic` may have.

        :raises UnknownTopic: there is no such topic.
        :raises RegionUnavailable: the region does not answer.
        """

    @abstractmethod
    def watermarks(self, topic: str, partition: int) -> tuple[int, int]:
        """Return (low, high): the first offset still kept, and the next one to be written."""

    @abstractmethod
    def read(self, topic: str, partition: int, start: int, limits: Limits) -> list[StoredRecord]:
        """Return records from offset `start` on, in order; empty when there are none yet.

        :raises OffsetOutOfRange: `start` is below the low or above the high watermark.
        """

    @abstractmethod
    def offset_at(self, topic: str, partition: int, timestamp: int) -> int:
        """Return the first offset at or after `timestamp` (epoch micros); the high watermark
        when there is none."""

    @abstractmethod
    def commit(self, group: str, topic: str, partition: int, offset: int) -> None:
        """Publish `offset` (the next to be read) for lag tools; our own progress is elsewhere."""

    @abstractmethod
    def committed(self, group: str, topic: str, partition: int) -> int | None:
        """Return what :meth:`commit` last stored, or None."""

    @abstractmethod
    def close(self) -> None:
        """Flush and let go of connections; safe to call twice."""
