"""The embedded event log: one SQLite file, durable, with Kafka's partitions and offsets."""

from __future__ import annotations

import itertools
import json
import math
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from audit_logging.exceptions import SpoolError
from audit_logging.spool import DurableQueue

from ..exceptions import (
    EventLogError,
    OffsetOutOfRange,
    RecordTooLarge,
    RegionUnavailable,
    UnknownTopic,
)
from .base import EventLog, Limits, Receipt, Record, StoredRecord, TopicFacts
from .partitioner import partition_of

#: Streams that are not partitions: a topic's name cannot hold these characters.
_TOPICS = "#topics"
_COMMITS = "#commits"

_POLL_SECONDS = 0.02
_UPKEEP_SECONDS = 60.0


class LocalEventLog(EventLog):
    """One region of the event log in one file.

    :param path: the SQLite file.
    :param create_partitions: partitions of a topic that is made at first use; 0: an unknown topic
        is an error, as with Kafka.
    :param max_record_bytes: largest record, in bytes of its value, key and headers.
    :param retention_seconds: age at which records are forgotten, or None.
    :param retention_bytes: bytes that one partition keeps, or None.
    :param clock: returns epoch seconds.
    """

    def __init__(
        self,
        region: str,
        path: str | Path,
        *,
        create_partitions: int = 0,
        max_record_bytes: int = 10 << 20,
        retention_seconds: float | None = None,
        retention_bytes: int | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.region = region
        self._queue = DurableQueue(path, clock=clock)
        self._clock = clock
        self._create_partitions = create_partitions
        self._max_record_bytes = max_record_bytes
        self._retention_seconds = retention_seconds
        self._retention_bytes = retention_bytes
        self._topics: dict[str, int] = {}
        self._round_robin = itertools.count(os.getpid())
        self._next_upkeep = 0.0
        self._upkeep_lock = threading.Lock()

    def __repr__(self) -> str:
        return f"LocalEventLog({self.region!r}, {str(self._queue.path)!r})"

    # -- topics ---------------------------------------------------------------------------

    def ensure_topic(self, topic: str, partitions: int) -> None:
        with self._errors():
            if topic not in self._known_topics():
                # Two that create it at the same time: the first in the file decides.
                value = json.dumps({"topic": topic, "partitions": partitions}).encode()
                self._queue.append(_TOPICS, [Record(value)])
                self._topics = {}

    def partitions(self, topic: str) -> int:
        count = self._topics.get(topic)
        if count is None:
            with self._errors():
                count = self._known_topics().get(topic)
            if count is None and self._create_partitions:
                self.ensure_topic(topic, self._create_partitions)
                with self._errors():
                    count = self._known_topics().get(topic)
        if count is None:
            raise UnknownTopic(f"There is no topic {topic!r} in {self._queue.path}.")
        return count

    def largest_record(self, topic: str) -> int:
        self.partitions(topic)
        return self._max_record_bytes

    def describe(self, topics: Iterable[str]) -> dict[str, TopicFacts | None]:
        with self._errors():
            known = self._known_topics()
        found: dict[str, TopicFacts | None] = {}
        for topic in topics:
            # One that is made at first use need not be made for a question.
            count = known.get(topic, self._create_partitions)
            found[topic] = TopicFacts(
                partitions=count,
                largest_batch=self._max_record_bytes,
                retention=self._retention_seconds or math.inf,
            )
            if not count:
                found[topic] = None
        return found

    def identity(self) -> str:
        return str(self._queue.path.resolve())

    def _known_topics(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for record in self._queue.read(_TOPICS, 0, max_records=1_000_000):
            entry = json.loads(record.value)
            found.setdefault(entry["topic"], entry["partitions"])
        self._topics = found
        return found

    # -- writing --------------------------------------------------------------------------

    def append(self, topic: str, records: Sequence[Record]) -> list[Receipt]:
        receipts = [Receipt()] * len(records)
        try:
            count = self.partitions(topic)
        except EventLogError as error:
            return [Receipt(error=error)] * len(records)
        by_partition: dict[int, list[int]] = {}
        for index, record in enumerate(records):
            if record.size > self._max_record_bytes:
                receipts[index] = Receipt(
                    error=RecordTooLarge(
                        f"The record has {record.size:,} bytes; the event log takes "
                        f"{self._max_record_bytes:,}."
                    )
                )
                continue
            if record.key is None:
                partition = next(self._round_robin) % count
            else:
                partition = partition_of(record.key, count)
            by_partition.setdefault(partition, []).append(index)
        for partition, indexes in by_partition.items():
            try:
                with self._errors():
                    offsets = self._queue.append(
                        _stream(topic, partition), [records[index] for index in indexes]
                    )
            except EventLogError as error:
                for index in indexes:
                    receipts[index] = Receipt(error=error)
            else:
                for index, offset in zip(indexes, offsets, strict=True):
                    receipts[index] = Receipt(partition, offset)
        self._keep_up(topic, by_partition)
        return receipts

    def _keep_up(self, topic: str, partitions: dict[int, list[int]]) -> None:
        """Now and then, forget what is past its retention in the partitions just written."""
        if self._retention_seconds is None and self._retention_bytes is None:
            return
        now = time.monotonic()
        with self._upkeep_lock:
            if now < self._next_upkeep:
                return
            self._next_upkeep = now + _UPKEEP_SECONDS
        try:
            with self._errors():
                for partition in range(self.partitions(topic)):
                    self.apply_retention(topic, partition)
        except EventLogError:
            # What could not be forgotten now is forgotten later.
            pass

    def apply_retention(self, topic: str, partition: int) -> int:
        """Forget what is past its retention in one partition; return how many records."""
        stream = _stream(topic, partition)
        forgotten = 0
        if self._retention_seconds is not None:
            cutoff = int((self._clock() - self._retention_seconds) * 1_000_000)
            before = self._queue.offset_at(stream, cutoff)
            if before > self._queue.watermarks(stream)[0]:
                forgotten += self._queue.trim(stream, before)
        if self._retention_bytes is not None:
            surplus = self._queue.stats(stream).bytes - self._retention_bytes
            while surplus > 0:
                low, _ = self._queue.watermarks(stream)
                oldest = self._queue.read(stream, low, max_records=1000, max_bytes=4 << 20)
                before = low
                for record in oldest:
                    if surplus <= 0:
                        break
                    surplus -= record.size
                    before = record.offset + 1
                if before == low:
                    break
                forgotten += self._queue.trim(stream, before)
        return forgotten

    # -- reading --------------------------------------------------------------------------

    def watermarks(self, topic: str, partition: int) -> tuple[int, int]:
        self._check(topic, partition)
        with self._errors():
            return self._queue.watermarks(_stream(topic, partition))

    def read(self, topic: str, partition: int, start: int, limits: Limits) -> list[StoredRecord]:
        self._check(topic, partition)
        stream = _stream(topic, partition)
        deadline = time.monotonic() + limits.timeout
        while True:
            with self._errors():
                low, high = self._queue.watermarks(stream)
                if not low <= start <= high:
                    raise OffsetOutOfRange(
                        f"{topic}/{partition} in {self.region}: offset {start} is not within "
                        f"{low} to {high}.",
                        low,
                        high,
                    )
                found = self._queue.read(
                    stream, start, max_records=limits.max_records, max_bytes=limits.max_bytes
                )
            if found and found[0].offset != start:
                # Retention took records between the two looks: the next one says so.
                continue
            if found or time.monotonic() >= deadline:
                return found
            time.sleep(min(_POLL_SECONDS, max(0.0, deadline - time.monotonic())))

    def offset_at(self, topic: str, partition: int, timestamp: int) -> int:
        self._check(topic, partition)
        with self._errors():
            return self._queue.offset_at(_stream(topic, partition), timestamp)

    def _check(self, topic: str, partition: int) -> None:
        count = self.partitions(topic)
        if not 0 <= partition < count:
            raise UnknownTopic(f"{topic} has partitions 0 to {count - 1}; there is no {partition}.")

    # -- progress, for lag tools ----------------------------------------------------------

    def commit(self, group: str, topic: str, partition: int, offset: int) -> None:
        stream = _commit_stream(group, topic, partition)
        with self._errors():
            stored = self._queue.append(stream, [Record(str(offset).encode())])
            self._queue.trim(stream, stored.start)

    def committed(self, group: str, topic: str, partition: int) -> int | None:
        stream = _commit_stream(group, topic, partition)
        with self._errors():
            found = self._queue.read(stream, self._queue.watermarks(stream)[0])
        return int(found[-1].value) if found else None

    def close(self) -> None:
        self._queue.close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (SpoolError, sqlite3.Error, OSError) as error:
            raise RegionUnavailable(f"{self.region}: {error}") from error


def _stream(topic: str, partition: int) -> str:
    return f"{topic}/{partition}"


def _commit_stream(group: str, topic: str, partition: int) -> str:
    return f"{_COMMITS}/{group}/{topic}/{partition}"
