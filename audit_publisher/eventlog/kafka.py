"""The production event log: one Kafka cluster is one region."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ..exceptions import (
    EventLogError,
    OffsetOutOfRange,
    RegionUnavailable,
    UnknownTopic,
    without_frames,
)
from . import kafka_config, kafka_topics
from .base import Errors, EventLog, Limits, Receipt, Record, StoredRecord, TopicFacts
from .kafka_config import load_properties
from .kafka_errors import classify
from .kafka_producer import RecordProducer, Submission
from .kafka_reader import PartitionReader

__all__ = ["KafkaEventLog", "load_properties"]

logger = logging.getLogger(__name__)

#: Partition readers kept at the same time; the one used longest ago is closed first.
MAX_READERS = 8

#: Seconds until a topic that seems not to be there is looked for again.
_SECOND_LOOK = 0.25

#: What a child inherits through fork is kept here, unused: destroying it would wait for threads
#: that the child does not have.
_inherited: list[Any] = []


class KafkaEventLog(EventLog):
    """One region of the event log in a Kafka cluster.

    :param servers: ``host:port,host:port``.
    :param properties: librdkafka's properties of the operator (TLS, SASL).
    :param delivery_timeout: seconds until a record that is not acknowledged counts as not durable
        here (though it may be).
    :param linger: seconds a record may wait for company.
    :param max_queued_bytes: bytes that may wait for acknowledgement.
    :param max_record_bytes: largest record, in bytes of its value, key and headers.
    :param replication: replication factor of topics we create; -1: the broker's default.
    :param request_timeout: seconds for questions about topics and offsets.
    """

    def __init__(
        self,
        region: str,
        servers: str,
        *,
        properties: dict[str, str] | None = None,
        delivery_timeout: float = 2.0,
        linger: float = 0.02,
        max_queued_bytes: int = 64 << 20,
        max_record_bytes: int = 10_000_000,
        replication: int = -1,
        request_timeout: float = 5.0,
    ) -> None:
        self.region = region
        self._servers = servers
        self._properties = dict(properties or {})
        self._delivery_timeout = self.patience = delivery_timeout
        self._linger = linger
        self._max_queued_bytes = max_queued_bytes
        self._max_record_bytes = max_record_bytes
        self._replication = replication
        self._request_timeout = request_timeout
        self._forget()

    def __repr__(self) -> str:
        return f"KafkaEventLog({self.region!r}, {self._servers!r})"

    def _forget(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._producer: RecordProducer | None = None
        self._groups: dict[str, Any] = {}
        self._readers: dict[tuple[str, int], PartitionReader] = {}
        self._known_topics: set[str] = set()
        self._asking = threading.Lock()
        #: topic → when it was last looked for in vain, and the error.
        self._asked: dict[str, tuple[float, EventLogError]] = {}

    def _here(self) -> None:
        """After a fork, start with clients of our own."""
        if self._pid != os.getpid():
            _inherited.append((self._producer, self._groups, self._readers))
            self._forget()

    # -- writing --------------------------------------------------------------------------

    def append(self, topic: str, records: Sequence[Record]) -> list[Receipt]:
        self._here()
        try:
            if topic not in self._known_topics:
                self._learn(topic)
            producer = self._get_producer()
            receipts, fatal = producer.append(topic, records)
        except EventLogError as error:
            return [Receipt(error=error)] * len(records)
        if any(isinstance(each.error, UnknownTopic) for each in receipts):
            self._known_topics.discard(topic)
        if fatal:
            self._drop_producer(producer)
        return receipts

    def submit(self, topic: str, records: Sequence[Record], done: Callable[[Errors], None]) -> None:
        self._here()
        producer = self._producer
        if producer is None or topic not in self._known_topics:
            # To make one and to look for the other takes its time.
            super().submit(topic, records, done)
            return

        def settled(submission: Submission) -> None:
            # A late report may still come to those.
            errors = dict(submission.errors)
            if errors and any(isinstance(each, UnknownTopic) for each in errors.values()):
                self._known_topics.discard(topic)
            done(errors)
            if submission.fatal or producer.failed:
                # Not here: to close it is to wait for the thread that may be calling this.
                threading.Thread(target=self._drop_producer, args=(producer,)).start()

        producer.submit(topic, records, settled)

    def drive(self) -> int:
        self._here()
        return self._producer.drive() if self._producer is not None else 0

    def _learn(self, topic: str) -> None:
        """Make sure that there is a topic: the producer itself would wait long for one that is not.

        One asks at a time, and those that waited meanwhile share the answer.
        """
        came = time.monotonic()
        with self._asking:
            if topic in self._known_topics:
                return
            asked_at, failure = self._asked.get(topic, (0.0, None))
            if failure is not None and asked_at >= came:
                raise failure
            try:
                self._find_topic(topic)
            except EventLogError as error:
                self._asked[topic] = (time.monotonic(), without_frames(error))
                raise
            self._asked.pop(topic, None)
            self._known_topics.add(topic)

    def _find_topic(self, topic: str) -> None:
        """Raise UnknownTopic if a second look finds no topic either.

        A broker learns of a new topic a moment after the controller said that it is made.
        """
        try:
            self._partitions(topic, self._delivery_timeout)
        except UnknownTopic:
            time.sleep(min(_SECOND_LOOK, self._delivery_timeout / 2))
            self._partitions(topic, self._delivery_timeout / 2)

    def _get_producer(self) -> RecordProducer:
        if self._producer is None:
            with self._lock:
                if self._producer is None:
                    with self._errors():
                        self._producer = RecordProducer(
                            self.region,
                            kafka_config.producer(
                                self._servers,
                                self._properties,
                                delivery_timeout=self._delivery_timeout,
                                linger=self._linger,
                                max_queued_bytes=self._max_queued_bytes,
                                max_record_bytes=self._max_record_bytes + 1024,
                            ),
                            delivery_timeout=self._delivery_timeout,
                            max_record_bytes=self._max_record_bytes,
                        )
        return self._producer

    def _drop_producer(self, producer: RecordProducer) -> None:
        """Let go of a producer that failed; the one that took its place stays."""
        with self._lock:
            if self._producer is not producer:
                return
            self._producer = None
        logger.error("Region %s: its producer failed for good; a new one is made.", self.region)
        producer.close(0.0)

    # -- topics ---------------------------------------------------------------------------

    def ensure_topic(self, topic: str, partitions: int) -> None:
        from confluent_kafka import KafkaException
        from confluent_kafka.admin import NewTopic

        with self._errors():
            admin = self._admin()
            # The broker's limit must not be below ours, or the largest events are lost there.
            config = {"max.message.bytes": str(self._max_record_bytes + (64 << 10))}
            new = NewTopic(topic, partitions, self._replication, config=config)
            future = admin.create_topics([new], operation_timeout=self._request_timeout)[topic]
            try:
                future.result(self._request_timeout * 2)
            except TimeoutError as error:
                raise RegionUnavailable(f"{self.region}: no answer in time.") from error
            except KafkaException as error:
                if error.args[0].name() != "TOPIC_ALREADY_EXISTS":
                    raise
        # Made is not yet known: the brokers follow the controller.
        deadline = time.monotonic() + self._request_timeout
        while self.missing([topic]):
            if time.monotonic() > deadline:
                raise RegionUnavailable(f"{self.region}: {topic!r} is made, but not known in time.")
            time.sleep(0.05)

    def partitions(self, topic: str) -> int:
        return self._partitions(topic, self._request_timeout)

    def missing(self, topics: Iterable[str]) -> list[str]:
        known = self._topics(self._request_timeout)
        return [topic for topic in topics if not kafka_topics.exists(known.get(topic))]

    def _topics(self, timeout: float) -> dict[str, Any]:
        with self._errors():
            # All topics: asking for one by name would create it where brokers do that.
            return self._group("audit-meta").list_topics(timeout=timeout).topics

    def _partitions(self, topic: str, timeout: float) -> int:
        found = self._topics(timeout).get(topic)
        if found is None or not kafka_topics.exists(found):
            raise UnknownTopic(f"There is no topic {topic!r} in region {self.region}.")
        return len(found.partitions)

    def describe(self, topics: Iterable[str]) -> dict[str, TopicFacts | None]:
        with self._errors():
            known = self._topics(self._request_timeout)
            return kafka_topics.describe(
                known, topics, self._admin(), self.region, self._request_timeout
            )

    def identity(self) -> str:
        with self._errors():
            metadata = self._group("audit-meta").list_topics(timeout=self._request_timeout)
        return metadata.cluster_id or ""

    def replica_fetch_bytes(self) -> int | None:
        """The smallest ``replica.fetch.max.bytes`` of the brokers; None: they do not tell."""
        with self._errors():
            metadata = self._group("audit-meta").list_topics(timeout=self._request_timeout)
            return kafka_topics.replica_fetch_bytes(
                self._admin(), metadata.brokers, self._request_timeout
            )

    def _admin(self) -> Any:
        from confluent_kafka.admin import AdminClient

        return AdminClient(kafka_config.common(self._servers, self._properties))

    def largest_record(self, topic: str) -> int:
        from confluent_kafka.admin import ConfigResource, ResourceType

        self.partitions(topic)
        with self._errors():
            resource = ConfigResource(ResourceType.TOPIC, topic)
            # Named: a client that nobody has any more ends, and what it was asked with it.
            admin = self._admin()
            future = admin.describe_configs([resource], request_timeout=self._request_timeout)[
                resource
            ]
            try:
                found = future.result(self._request_timeout * 2)
            except TimeoutError as error:
                raise RegionUnavailable(f"{self.region}: no answer in time.") from error
        return min(int(found["max.message.bytes"].value), self._max_record_bytes)

    # -- reading --------------------------------------------------------------------------

    def watermarks(self, topic: str, partition: int) -> tuple[int, int]:
        from confluent_kafka import TopicPartition

        with self._errors():
            answer = self._group("audit-meta").get_watermark_offsets(
                TopicPartition(topic, partition), timeout=self._request_timeout, cached=False
            )
        if answer is None:
            raise RegionUnavailable(f"{self.region}: no watermarks of {topic}/{partition} in time.")
        return answer

    def read(self, topic: str, partition: int, start: int, limits: Limits) -> list[StoredRecord]:
        low, high = self.watermarks(topic, partition)
        if not low <= start <= high:
            raise self._out_of_range(topic, partition, start, low, high)
        try:
            with self._errors():
                return self._reader(topic, partition).read(start, high, limits)
        except OffsetOutOfRange:
            # Retention passed us between the two questions.
            low, high = self.watermarks(topic, partition)
            raise self._out_of_range(topic, partition, start, low, high) from None

    def _out_of_range(
        self, topic: str, partition: int, start: int, low: int, high: int
    ) -> OffsetOutOfRange:
        return OffsetOutOfRange(
            f"{topic}/{partition} in {self.region}: offset {start} is not within {low} to {high}.",
            low,
            high,
        )

    def _reader(self, topic: str, partition: int) -> PartitionReader:
        self._here()
        with self._lock:
            reader = self._readers.pop((topic, partition), None)
            if reader is None:
                settings = kafka_config.consumer(self._servers, self._properties, "audit-read")
                reader = PartitionReader(self.region, topic, partition, settings)
                while len(self._readers) >= MAX_READERS:
                    self._readers.pop(next(iter(self._readers))).close()
            self._readers[topic, partition] = reader
            return reader

    def offset_at(self, topic: str, partition: int, timestamp: int) -> int:
        from confluent_kafka import TopicPartition

        _, high = self.watermarks(topic, partition)
        with self._errors():
            # Kafka knows milliseconds: rounding down never misses a record.
            wanted = TopicPartition(topic, partition, timestamp // 1000)
            (found,) = self._group("audit-meta").offsets_for_times(
                [wanted], timeout=self._request_timeout
            )
            if found.error is not None:
                raise classify(found.error, self.region)
        return found.offset if found.offset >= 0 else high

    # -- progress, for lag tools ----------------------------------------------------------

    def commit(self, group: str, topic: str, partition: int, offset: int) -> None:
        from confluent_kafka import TopicPartition

        with self._errors():
            self._group(group).commit(
                offsets=[TopicPartition(topic, partition, offset)], asynchronous=False
            )

    def committed(self, group: str, topic: str, partition: int) -> int | None:
        from confluent_kafka import TopicPartition

        with self._errors():
            (found,) = self._group(group).committed(
                [TopicPartition(topic, partition)], timeout=self._request_timeout * 2
            )
        return found.offset if found.offset >= 0 else None

    # -- clients --------------------------------------------------------------------------

    def _group(self, name: str) -> Any:
        """The client that asks and commits for a group; it never reads."""
        self._here()
        client = self._groups.get(name)
        if client is None:
            from confluent_kafka import Consumer

            with self._lock:
                client = self._groups.get(name)
                if client is None:
                    settings = kafka_config.consumer(self._servers, self._properties, name)
                    client = self._groups[name] = Consumer(settings)
        return client

    def close(self) -> None:
        if self._pid != os.getpid():
            return
        with self._lock:
            if self._producer is not None:
                self._producer.close(self._delivery_timeout)
            for client in (*self._readers.values(), *self._groups.values()):
                client.close()
            self._forget()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        from confluent_kafka import KafkaException

        try:
            yield
        except KafkaException as error:
            raise classify(error.args[0], self.region) from error
