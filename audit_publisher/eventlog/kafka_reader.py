"""Reading one partition of a Kafka topic by explicit position; no group, so no rebalance."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Any

from ..exceptions import OffsetOutOfRange
from .base import Limits, StoredRecord
from .kafka_errors import classify


class PartitionReader:
    """One partition's consumer, kept between reads so that its prefetched records are used.

    :param settings: librdkafka's settings of the consumer.
    """

    def __init__(self, region: str, topic: str, partition: int, settings: dict[str, Any]) -> None:
        from confluent_kafka import Consumer

        self._region = region
        self._topic = topic
        self._partition = partition
        self._consumer = Consumer(settings)
        self._position: int | None = None
        #: Consumed, but beyond the limits of the read that consumed them.
        self._ahead: deque[StoredRecord] = deque()
        self._lock = threading.Lock()

    def read(self, start: int, high: int, limits: Limits) -> list[StoredRecord]:
        """Return records from `start` on: up to the limits, or to `high`, the end as known now."""
        with self._lock:
            try:
                return self._read(start, high, limits)
            except BaseException:
                # Where the consumer stands is no longer known.
                self._position = None
                self._ahead.clear()
                raise

    def close(self) -> None:
        """Let go of the consumer."""
        with self._lock:
            self._consumer.close()

    def _read(self, start: int, high: int, limits: Limits) -> list[StoredRecord]:
        self._seek(start)
        found: list[StoredRecord] = []
        size = 0
        deadline = time.monotonic() + limits.timeout
        while len(found) < limits.max_records:
            if not self._ahead and not self._fetch(
                limits.max_records - len(found), deadline, found
            ):
                break
            while self._ahead and len(found) < limits.max_records:
                size += self._ahead[0].size
                if found and size > limits.max_bytes:
                    self._position = found[-1].offset + 1
                    return found
                found.append(self._ahead.popleft())
            if found and found[-1].offset + 1 >= high and not self._ahead:
                break
        if found:
            self._position = found[-1].offset + 1
        return found

    def _seek(self, start: int) -> None:
        if self._position == start and (not self._ahead or self._ahead[0].offset >= start):
            return
        from confluent_kafka import TopicPartition

        self._ahead.clear()
        self._consumer.assign([TopicPartition(self._topic, self._partition, start)])
        self._position = start

    def _fetch(self, wanted: int, deadline: float, found: list[StoredRecord]) -> bool:
        """Fill `_ahead`; return False at the partition's end or when the time is over.

        Asks for what is there already, and waits for a single message: asking for many waits the
        whole time whenever there are fewer.
        """
        while True:
            messages = self._consumer.consume(min(wanted, 5000), 0)
            if not messages:
                left = deadline - time.monotonic()
                message = self._consumer.poll(min(max(left, 0.0), 0.2))
                messages = [message] if message is not None else []
                if not messages and left <= 0:
                    return False
            ended = False
            for message in messages:
                error = message.error()
                if error is None:
                    self._ahead.append(_stored(message))
                elif error.name() == "_PARTITION_EOF":
                    ended = True
                elif error.name() == "_AUTO_OFFSET_RESET":
                    raise OffsetOutOfRange(
                        f"{self._region}: {self._topic}/{self._partition}: {error.str()}", -1, -1
                    )
                elif not error.retriable():
                    raise classify(error, self._region)
            if self._ahead:
                return True
            if ended and (found or time.monotonic() >= deadline):
                return False


def _stored(message: Any) -> StoredRecord:
    _, milliseconds = message.timestamp()
    return StoredRecord(
        value=message.value() or b"",
        key=message.key(),
        headers=tuple(message.headers() or ()),
        timestamp=milliseconds * 1000,
        offset=message.offset(),
    )
