"""The event log suite against each backend, and what only one of them has."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from audit_publisher.eventlog.base import EventLog, Limits, Record
from audit_publisher.eventlog.local import LocalEventLog
from audit_publisher.exceptions import OffsetOutOfRange, RegionUnavailable, UnknownTopic
from tests.contracts.eventlog import MAX_RECORD_BYTES, EventLogContract, OpenLog, errors, records


class TestLocal(EventLogContract):
    """One SQLite file."""

    @pytest.fixture
    def open_log(self, tmp_path: Path) -> OpenLog:
        return lambda: LocalEventLog(
            "primary", tmp_path / "log.sqlite3", max_record_bytes=MAX_RECORD_BYTES
        )

    def test_topics_are_made_at_first_use_when_wanted(self, tmp_path: Path) -> None:
        log = LocalEventLog("primary", tmp_path / "made.sqlite3", create_partitions=2)
        assert log.append("events", records(1))[0].error is None
        assert log.partitions("events") == 2

    def test_a_disk_that_fails_is_a_region_that_is_down(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        log = LocalEventLog("primary", tmp_path / "file" / "log.sqlite3")
        with pytest.raises(RegionUnavailable):
            log.ensure_topic("events", 1)
        assert isinstance(log.append("events", records(1))[0].error, RegionUnavailable)

    def test_retention_by_age(self, tmp_path: Path) -> None:
        log = LocalEventLog(
            "primary", tmp_path / "log.sqlite3", retention_seconds=60, clock=lambda: 1000.0
        )
        log.ensure_topic("events", 1)
        log.append("events", [Record(b"x", timestamp=n * 1_000_000) for n in (900, 939, 940, 990)])
        # The first append of a process does the upkeep too.
        assert log.watermarks("events", 0) == (2, 4)
        assert log.apply_retention("events", 0) == 0
        with pytest.raises(OffsetOutOfRange):
            log.read("events", 0, 1, Limits(timeout=0))

    def test_retention_by_size(self, tmp_path: Path) -> None:
        log = LocalEventLog("primary", tmp_path / "log.sqlite3", retention_bytes=3000)
        log.ensure_topic("events", 1)
        log.append("events", [Record(b"x" * 968) for _ in range(10)])
        assert log.watermarks("events", 0) == (7, 10)
        log.append("events", [Record(b"y" * 968)])
        assert log.apply_retention("events", 0) == 1
        assert log.watermarks("events", 0) == (8, 11)


@pytest.mark.services
class TestKafka(EventLogContract):
    """A real cluster."""

    @pytest.fixture
    def open_log(self, kafka_primary: Any) -> Iterator[OpenLog]:
        from audit_publisher.eventlog.kafka import KafkaEventLog

        opened: list[EventLog] = []

        def opener() -> EventLog:
            opened.append(
                KafkaEventLog(
                    "primary",
                    kafka_primary.address,
                    max_record_bytes=MAX_RECORD_BYTES,
                    delivery_timeout=10,
                    request_timeout=15,
                )
            )
            return opened[-1]

        yield opener
        for log in opened:
            log.close()

    def test_a_broker_that_dies_costs_the_delivery_timeout_and_no_more(self) -> None:
        from audit_publisher.eventlog.kafka import KafkaEventLog
        from tests.services.fixtures import serve
        from tests.services.kafka import Kafka

        with serve(Kafka("dying", own=True)) as broker:
            log = KafkaEventLog("primary", broker.address, delivery_timeout=2.0)
            log.ensure_topic("events", 1)
            assert log.append("events", records(1))[0].error is None
            broker.kill()
            # Ten times the timeout: on a loaded machine still far below librdkafka's own minutes.
            for most in (20, 20):
                started = time.monotonic()
                (receipt,) = log.append("events", records(1))
                assert isinstance(receipt.error, RegionUnavailable)
                assert not isinstance(receipt.error, UnknownTopic)
                assert time.monotonic() - started < most
            log.close()

    def test_all_topics_are_asked_for_at_once(self, log: Any, topic: str) -> None:
        client = log._group("audit-meta")
        asked: list[object] = []

        class Counting:
            def list_topics(self, **kwargs: Any) -> Any:
                asked.append(kwargs)
                return client.list_topics(**kwargs)

        log._groups["audit-meta"] = Counting()
        assert log.missing([topic, "no-such", topic, "nor-this"]) == ["no-such", "nor-this"]
        log._groups["audit-meta"] = client
        assert len(asked) == 1

    def test_a_topic_that_its_broker_learns_of_late(self, log: Any, topic: str) -> None:
        client = log._group("audit-meta")
        late = 2

        class Behind:
            """The first answers are from before the topic was made."""

            def list_topics(self, **kwargs: Any) -> Any:
                nonlocal late
                late -= 1
                found = client.list_topics(**kwargs)
                if late >= 0:
                    found.topics.pop(made, None)
                return found

        made = topic
        log._groups["audit-meta"] = Behind()
        late = 1
        receipts = log.append(topic, records(2))
        assert errors(receipts) == []
        made = f"{topic}-late"
        late = 3
        log.ensure_topic(made, 1)
        assert log.partitions(made) == 1
        log._groups["audit-meta"] = client

    def test_two_that_see_the_same_failure_drop_one_producer(self, log: Any, topic: str) -> None:
        assert errors(log.append(topic, records(1))) == []
        failed = log._producer
        log._drop_producer(failed)
        assert errors(log.append(topic, records(1))) == []
        newer = log._producer
        log._drop_producer(failed)
        assert log._producer is newer is not failed
        assert errors(log.append(topic, records(1))) == []

    def test_a_region_that_never_answered(self) -> None:
        from audit_publisher.eventlog.kafka import KafkaEventLog

        log = KafkaEventLog("secondary", "127.0.0.1:1", delivery_timeout=0.5, request_timeout=0.5)
        (receipt,) = log.append("events", records(1))
        assert isinstance(receipt.error, RegionUnavailable)
        with pytest.raises(RegionUnavailable, match="secondary"):
            log.watermarks("events", 0)
        log.close()
