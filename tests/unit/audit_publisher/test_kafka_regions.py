"""Two real clusters as two regions: the first dies, comes back, and no event is lost."""

from __future__ import annotations

import time
import uuid
from pathlib import Path
from typing import Any

import pytest

from audit_publisher.durable.spool import Spool
from audit_publisher.eventlog import EventLog, Limits, Record
from audit_publisher.eventlog.kafka import KafkaEventLog
from audit_publisher.publish import Publisher
from tests.services.fixtures import serve
from tests.services.kafka import Kafka

pytestmark = pytest.mark.services


def values(log: EventLog, topic: str) -> list[bytes]:
    found: list[bytes] = []
    _, high = log.watermarks(topic, 0)
    while len(found) < high:
        found += [record.value for record in log.read(topic, 0, len(found), Limits(timeout=10))]
    return found


def test_failover_and_failback(kafka_secondary: Any, tmp_path: Path) -> None:
    topic = f"failover-{uuid.uuid4().hex[:8]}"
    with serve(Kafka("failing", own=True)) as broker:
        logs = {
            "primary": KafkaEventLog(
                "primary", broker.address, delivery_timeout=2.0, request_timeout=2.0
            ),
            "secondary": KafkaEventLog("secondary", kafka_secondary.address, delivery_timeout=5.0),
        }
        for log in logs.values():
            log.ensure_topic(topic, 1)
        asked: list[str] = []

        def open_region(name: str) -> EventLog:
            asked.append(name)
            return logs[name]

        publisher = Publisher(
            tuple(logs),
            Spool(tmp_path, 1 << 20),
            open_region=open_region,
            topics=lambda: (topic,),
            cooldown=0.5,
        )
        # Background work is called by hand: the test decides what happens first.
        publisher.start = lambda: None  # type: ignore[method-assign]
        sent: list[bytes] = []

        def publish() -> str | None:
            sent.append(f"event-{len(sent)}".encode())
            (outcome,) = publisher.publish([(topic, Record(sent[-1], key=b"k"))])
            assert outcome.status == "published"
            return outcome.region

        # The second region's connection is made before it is needed, as the background does.
        publisher.probe()
        logs["secondary"].append(topic, [])
        assert publish() == "primary"

        broker.kill()
        started = time.monotonic()
        assert publish() == "secondary"
        # One delivery timeout, and not librdkafka's own of minutes.
        assert time.monotonic() - started < 20
        # That a dead region costs no second request its timeout is counted, not timed.
        asked.clear()
        assert publish() == "secondary"
        assert asked == ["secondary"]

        broker.start()
        deadline = time.monotonic() + 60
        while publish() != "primary":
            assert time.monotonic() < deadline
            publisher.probe()
            time.sleep(0.1)

        # A record whose acknowledgement was lost may be in both: never in none.
        assert set(values(logs["primary"], topic) + values(logs["secondary"], topic)) == set(sent)
        for log in logs.values():
            log.close()
