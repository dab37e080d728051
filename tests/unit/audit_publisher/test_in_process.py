"""DELIVERY = "kafka": a worker appends to the event log, by the publisher's own rules."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.db import DatabaseError

from audit_logging import handover
from audit_logging.batch import Batch, pack
from audit_logging.conf import LoggingSettings
from audit_logging.dead_letter_file import DEAD_STREAM
from audit_logging.delivery import RETRY_STREAM, Deliverer
from audit_logging.exceptions import BatchUnreadable, Declined, DeliveryUnavailable, RetryLater
from audit_publisher import eventlog, publish, routing
from audit_publisher.conf import conf
from audit_publisher.eventlog import Limits
from audit_publisher.exceptions import StorageExhausted
from audit_publisher.in_process import EventLog
from audit_publisher.models import TopicRoute
from audit_publisher.testing import make_event
from tests.services.kafka import Kafka
from tests.unit.audit_publisher.conftest import CONSUMER, Configure

pytestmark = pytest.mark.django_db


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Deliverer]]:
    """Makes what a worker has with DELIVERY=kafka."""
    made = []

    def make(**values: Any) -> Deliverer:
        values = {
            "DELIVERY": "kafka",
            "CONSUMER_ID": CONSUMER,
            "DATA_DIR": tmp_path / "capture",
            "DELIVERY_RETRIES": 0,
        } | values
        chosen = LoggingSettings({f"AUDIT_LOGGING_{key}": str(v) for key, v in values.items()})
        routing.refresh()
        deliverer = Deliverer(handover.make_target(chosen), chosen)
        deliverer.start = lambda: None  # type: ignore[method-assign]
        made.append(deliverer)
        return deliverer

    yield make
    for deliverer in made:
        deliverer.stop()


def lines(*events: dict[str, Any]) -> list[str]:
    return [json.dumps(event) for event in events]


def stored(region: str = "primary") -> dict[str, dict[str, bytes | None]]:
    """The records of a region: headers by request id."""
    log = eventlog.get_region(region)
    found: dict[str, dict[str, bytes | None]] = {}
    for partition in range(log.partitions(conf.DEFAULT_TOPIC)):
        at, high = log.watermarks(conf.DEFAULT_TOPIC, partition)
        while at < high:
            for record in log.read(conf.DEFAULT_TOPIC, partition, at, Limits(timeout=10)):
                headers = dict(record.headers)
                found[(headers["request_id"] or b"").decode()] = headers
                at = record.offset + 1
    return found


def deliver(deliverer: Deliverer, *events: dict[str, Any]) -> None:
    batch = Batch.of(lines(*events))
    deliverer.deliver(batch.message(), batch.count)


def test_a_batch_of_a_worker_is_in_the_event_log(make: Callable[..., Deliverer]) -> None:
    deliverer = make()
    assert isinstance(deliverer.target, EventLog)
    events = [make_event(consumer_id=None) for _ in range(20)]
    deliver(deliverer, *events)
    found = stored()
    assert set(found) == {event["request_id"] for event in events}
    # Who sent it is known without a signature.
    assert {headers["wm_consumer.id"] for headers in found.values()} == {CONSUMER.encode()}


def test_each_event_has_its_own_outcome(make: Callable[..., Deliverer]) -> None:
    deliverer = make()
    good = make_event()
    deliver(
        deliverer,
        good,
        make_event(path=None),
        make_event(request_ts=time.time() - 400 * 86_400),
    )
    assert set(stored()) == {good["request_id"]}
    reasons = [
        json.loads(dict(record.headers)["reason"] or b"")["field"]
        for record in deliverer.dead_letters.read(DEAD_STREAM, 0)
    ]
    assert reasons == ["path", "request_ts"]
    assert deliverer.spool.stats(RETRY_STREAM).records == 0


def test_the_second_region_and_then_the_spool(
    make: Callable[..., Deliverer], configure: Configure, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    configure(
        PRIMARY_URL=f"local://{tmp_path}/file/one.sqlite3",
        SECONDARY_URL=f"local://{tmp_path}/two.sqlite3",
    )
    event, other = make_event(), make_event()
    deliver(make(), event)
    assert set(stored("secondary")) == {event["request_id"]}
    configure(PRIMARY_URL=f"local://{tmp_path}/file/one.sqlite3")
    deliver(make(), other)
    spool = publish.get_publisher().spool
    assert [dict(r.headers)["request_id"] for r in spool.oldest(conf.DEFAULT_TOPIC, 9)] == [
        other["request_id"].encode()
    ]


def test_no_place_at_all_keeps_the_batch_with_the_worker(
    make: Callable[..., Deliverer], configure: Configure, tmp_path: Path, monkeypatch: Any
) -> None:
    (tmp_path / "file").write_text("in the way")
    configure(PRIMARY_URL=f"local://{tmp_path}/file/one.sqlite3")
    publisher = publish.get_publisher()

    def full(topic: str, records: Any) -> None:
        raise StorageExhausted("full")

    with monkeypatch.context() as patched:
        patched.setattr(publisher.spool, "append", full)
        deliverer = make()
        event = make_event()
        with pytest.raises(RetryLater, match="No durable place"):
            deliverer.target.send(Batch.of(lines(event)))
        deliver(deliverer, event)
    assert deliverer.spool.stats(RETRY_STREAM).records == 1
    assert not deliverer.breaker.allows
    deliverer.breaker.succeeded()
    deliverer.drain_step()
    assert deliverer.spool.stats(RETRY_STREAM).records == 0


def test_our_own_failure_is_not_the_end_of_a_batch(
    make: Callable[..., Deliverer], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any) -> None:
        raise RuntimeError("a bug")

    deliverer = make()
    monkeypatch.setattr("audit_publisher.in_process.take", broken)
    with pytest.raises(Declined, match="a bug"):
        deliverer.target.send(Batch.of(lines(make_event())))
    deliver(deliverer, make_event())
    assert deliverer.spool.stats(RETRY_STREAM).records == 1


def test_a_damaged_batch(make: Callable[..., Deliverer]) -> None:
    with pytest.raises(BatchUnreadable):
        make().target.send(Batch(pack(lines(make_event()))[:-9], 1))


def test_what_is_not_installed_is_said(
    make: Callable[..., Deliverer], settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert handover.event_log_problem() == ""
    with monkeypatch.context() as patched:
        patched.setattr(handover, "EVENT_LOG", "audit_publisher.not_there.EventLog")
        with pytest.raises(DeliveryUnavailable, match=r"pip install 'django-api-audit\[publisher"):
            make()
    monkeypatch.setattr("django.apps.apps.is_installed", lambda app: False)
    with pytest.raises(DeliveryUnavailable, match="Add it to INSTALLED_APPS"):
        make()


@pytest.mark.services
def test_straight_to_kafka(
    make: Callable[..., Deliverer], configure: Configure, kafka_primary: Kafka
) -> None:
    topic = f"straight-{uuid.uuid4().hex[:8]}"
    configure(PRIMARY_URL=f"kafka://{kafka_primary.address}", DEFAULT_TOPIC=topic)
    eventlog.get_region("primary").ensure_topic(topic, 2)
    events = [make_event() for _ in range(50)]
    deliver(make(), *events)
    assert set(stored()) == {event["request_id"] for event in events}


def test_routes_that_were_never_read_keep_events_where_they_are(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dead(*args: Any, **kwargs: Any) -> None:
        raise DatabaseError("gone")

    configure()
    log, batch = EventLog(), Batch.of(lines(make_event()))
    with monkeypatch.context() as without:
        without.setattr(TopicRoute.objects, "order_by", dead)
        assert routing.refresh() is False
        with pytest.raises(RetryLater, match="routes"):
            log.send(batch)
    assert stored() == {}
    assert routing.refresh()
    assert log.send(batch).stored == {"published": 1}
