"""Appending to Kafka: records in, one receipt each when every fate is known."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from ..exceptions import Backpressure, EventLogError, RecordTooLarge, RegionUnavailable
from .base import Receipt, Record
from .kafka_errors import classify, is_fatal

logger = logging.getLogger(__name__)


class _Batch:
    """The records of one append, and what is known of them."""

    def __init__(self, region: str, count: int) -> None:
        self.receipts: list[Receipt | None] = [None] * count
        self.fatal = False
        self.settled = threading.Event()
        self._region = region
        self._open = count
        self._lock = threading.Lock()

    def settle(self, index: int, receipt: Receipt) -> None:
        with self._lock:
            if self.receipts[index] is None:
                self.receipts[index] = receipt
                self._open -= 1
                if not self._open:
                    self.settled.set()

    def reporter(self, index: int) -> Callable[[Any, Any], None]:
        """The delivery callback of one record. It must not raise: whoever polls would get it."""

        def report(error: Any, message: Any) -> None:
            if error is None:
                self.settle(index, Receipt(message.partition(), message.offset()))
                return
            self.fatal = self.fatal or is_fatal(error)
            self.settle(index, Receipt(error=classify(error, self._region)))

        return report


class RecordProducer:
    """A Kafka producer with a thread of its own that serves delivery reports.

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
        self._closing = False
        self._failed: Any = None
        self._thread = threading.Thread(
            target=self._poll, name=f"audit kafka {region}", daemon=True
        )
        self._thread.start()

    def append(self, topic: str, records: Sequence[Record]) -> tuple[list[Receipt], bool]:
        """Append `records`; return their receipts, and whether this producer is of no more use."""
        from confluent_kafka import KafkaException

        batch = _Batch(self._region, len(records))
        for index, record in enumerate(records):
            if record.size > self._max_record_bytes:
                error: EventLogError = RecordTooLarge(
                    f"The record has {record.size:,} bytes; the event log takes "
                    f"{self._max_record_bytes:,}."
                )
                batch.settle(index, Receipt(error=error))
                continue
            try:
                self._producer.produce(
                    topic,
                    value=record.value,
                    key=record.key,
                    headers=list(record.headers),
                    timestamp=record.timestamp // 1000,
                    on_delivery=batch.reporter(index),
                )
            except BufferError:
                error = Backpressure(f"{self._region}: MAX_QUEUED_BYTES wait already.")
                batch.settle(index, Receipt(error=error))
            except KafkaException as failure:
                batch.fatal = batch.fatal or is_fatal(failure.args[0])
                batch.settle(index, Receipt(error=classify(failure.args[0], self._region)))
        if records and not batch.settled.wait(self._delivery_timeout):
            # It may be durable all the same: readers know duplicates by request_id.
            late = RegionUnavailable(
                f"{self._region}: no acknowledgement within {self._delivery_timeout:g} s."
            )
            for index in range(len(records)):
                batch.settle(index, Receipt(error=late))
        receipts = [receipt for receipt in batch.receipts if receipt is not None]
        return receipts, batch.fatal or self._failed is not None

    def close(self, timeout: float) -> None:
        """Wait up to `timeout` seconds for what is in flight, and end the thread."""
        if timeout > 0:
            self._producer.flush(timeout)
        self._closing = True
        if self._thread is not threading.current_thread():
            self._thread.join(1.0)
        self._producer.purge()

    def _poll(self) -> None:
        while not self._closing:
            try:
                self._producer.poll(0.1)
            except Exception:
                logger.exception("Region %s: a delivery report failed.", self._region)
                time.sleep(0.1)

    def _on_error(self, error: Any) -> None:
        if is_fatal(error):
            self._failed = error
        logger.info("Region %s: %s", self._region, error.str())
