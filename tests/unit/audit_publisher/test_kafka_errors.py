"""What each error of a cluster leads to: another region, the disk, a refusal, a new producer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import KafkaError

from audit_publisher.durable.outcome import Outcome
from audit_publisher.durable.spool import Spool
from audit_publisher.eventlog.base import Record
from audit_publisher.eventlog.kafka import KafkaEventLog
from audit_publisher.eventlog.kafka_errors import classify
from audit_publisher.exceptions import (
    Backpressure,
    EventLogError,
    RecordRejected,
    RecordTooLarge,
    RegionUnavailable,
    UnknownTopic,
)
from audit_publisher.publish import Publisher
from tests.support import eventually
from tests.unit.audit_publisher.mock_cluster import INIT_PRODUCER_ID, PRODUCE, MockCluster

pytestmark = pytest.mark.slow

TOPIC = "events"
SPOOL_BYTES = 1 << 20

Clusters = dict[str, MockCluster]


@pytest.fixture(scope="module")
def clusters() -> Iterator[Clusters]:
    with MockCluster(TOPIC) as first, MockCluster(TOPIC) as second:
        yield {"primary": first, "secondary": second}


class Setup:
    """A publisher over both, whose background work is called by hand."""

    def __init__(
        self,
        clusters: Clusters,
        folder: Path,
        max_queued_bytes: int = 4 << 20,
        *,
        probed: bool = True,
    ) -> None:
        self.clusters = clusters
        self.logs = {
            name: KafkaEventLog(
                name,
                cluster.address,
                delivery_timeout=0.6,
                linger=0.005,
                request_timeout=2.0,
                max_queued_bytes=max_queued_bytes,
            )
            for name, cluster in clusters.items()
        }
        self.spool = Spool(folder, SPOOL_BYTES)
        self.publisher = Publisher(
            tuple(self.logs),
            self.spool,
            open_region=self.logs.__getitem__,
            topics=lambda: (TOPIC,),
            cooldown=0.01,
        )
        self.publisher.start = lambda: None  # type: ignore[method-assign]
        if probed:
            self.publisher.probe()

    @property
    def primary(self) -> MockCluster:
        return self.clusters["primary"]

    def publish(self, *values: bytes) -> list[str]:
        items = [(TOPIC, Record(value, key=b"k")) for value in values or (b"event",)]
        return [each.region or each.status for each in self.publisher.publish(items)]

    def back(self) -> None:
        """Return when the first region takes events again."""

        def taken() -> bool:
            self.publisher.probe()
            return self.publish() == ["primary"]

        eventually(taken, 20)


@pytest.fixture
def setup(clusters: Clusters, tmp_path: Path) -> Iterator[Setup]:
    made = Setup(clusters, tmp_path)
    assert made.publish() == ["primary"]
    yield made
    for cluster in clusters.values():
        cluster.heal()
    made.publisher.stop()
    for log in made.logs.values():
        log.close()


#: Errors of a broker for which the next region is tried.
ELSEWHERE = (
    "NOT_ENOUGH_REPLICAS",
    "NOT_ENOUGH_REPLICAS_AFTER_APPEND",
    "TOPIC_AUTHORIZATION_FAILED",
    "CLUSTER_AUTHORIZATION_FAILED",
    "UNKNOWN_TOPIC_OR_PART",
    "KAFKA_STORAGE_ERROR",
    "REQUEST_TIMED_OUT",
    "LEADER_NOT_AVAILABLE",
    "NOT_LEADER_FOR_PARTITION",
    "NETWORK_EXCEPTION",
    "POLICY_VIOLATION",
    "UNKNOWN",
)


@pytest.mark.parametrize("name", ELSEWHERE)
def test_another_region_is_tried_and_the_first_one_again_later(setup: Setup, name: str) -> None:
    setup.primary.answer(PRODUCE, getattr(KafkaError, name))
    assert setup.publish() == ["secondary"]
    # Known by now: no further request waits for it.
    assert setup.publisher.is_shut("primary")
    assert setup.publish() == ["secondary"]
    setup.primary.heal()
    setup.back()


@pytest.mark.parametrize(
    "name", ["MSG_SIZE_TOO_LARGE", "INVALID_RECORD", "INVALID_TIMESTAMP", "RECORD_LIST_TOO_LARGE"]
)
def test_the_record_is_refused_and_no_other_region_is_asked(setup: Setup, name: str) -> None:
    setup.primary.answer(PRODUCE, getattr(KafkaError, name))
    (outcome,) = setup.publisher.publish([(TOPIC, Record(b"event"))])
    assert (outcome.status, outcome.retryable) == ("rejected", False)
    assert isinstance(outcome.error, RecordRejected)
    assert isinstance(outcome.error, RecordTooLarge) == ("TOO_LARGE" in name)
    assert not setup.publisher.is_shut("primary")
    assert setup.spool.size() == (0, 0)


def test_too_large_for_the_log_is_refused_before_it_is_sent(setup: Setup) -> None:
    setup.primary.down()
    (outcome,) = setup.publisher.publish([(TOPIC, Record(b"x" * 10_000_001))])
    assert (outcome.status, outcome.retryable) == ("rejected", False)
    assert isinstance(outcome.error, RecordTooLarge)


@pytest.mark.parametrize(
    "name",
    [
        "OUT_OF_ORDER_SEQUENCE_NUMBER",
        "UNKNOWN_PRODUCER_ID",
        "INVALID_PRODUCER_EPOCH",
        "INVALID_PRODUCER_ID_MAPPING",
    ],
)
def test_a_producer_that_lost_its_place_is_replaced(setup: Setup, name: str) -> None:
    setup.primary.answer(PRODUCE, getattr(KafkaError, name), times=20)
    assert set(setup.publish(b"1", b"2")) <= {"primary", "secondary"}
    setup.primary.heal()
    setup.back()


def test_a_producer_that_gets_no_id(setup: Setup, clusters: Clusters, tmp_path: Path) -> None:
    # One that is new needs an id before it may write; without the right to one it fails for good.
    setup.primary.answer(INIT_PRODUCER_ID, KafkaError.CLUSTER_AUTHORIZATION_FAILED)
    other = Setup(clusters, tmp_path / "other")
    assert other.publish() == ["secondary"]
    setup.primary.heal()
    other.back()
    for log in other.logs.values():
        log.close()


def test_a_broker_that_is_gone(setup: Setup) -> None:
    setup.primary.down()
    assert setup.publish() == ["secondary"]
    setup.primary.heal()
    setup.back()


def test_a_broker_that_acknowledges_too_late(setup: Setup) -> None:
    setup.primary.slow(3000)
    assert setup.publish() == ["secondary"]
    setup.primary.heal()
    setup.back()


def test_everything_is_gone(setup: Setup) -> None:
    for cluster in setup.clusters.values():
        cluster.down()
    assert setup.publish() == ["spooled"]
    for cluster in setup.clusters.values():
        cluster.heal()
    setup.back()
    eventually(lambda: bool(setup.publisher.drain()) or setup.spool.size() == (0, 0))


def test_a_full_queue_goes_to_the_disk_and_a_full_disk_is_said_to_be_busy(
    clusters: Clusters, tmp_path: Path
) -> None:
    setup = Setup(clusters, tmp_path, max_queued_bytes=100_000)
    assert setup.publish() == ["primary"]
    setup.primary.slow(400)
    outcomes = setup.publisher.publish(
        [(TOPIC, Record(bytes([n]) * 30_000, key=b"k")) for n in range(20)]
    )
    # What found room in the queue is published, the rest is on disk, and nothing went elsewhere.
    assert {each.region or each.status for each in outcomes} == {"primary", "spooled"}
    big = [(TOPIC, Record(b"x" * 300_000, key=b"k")) for _ in range(10)]
    outcomes = setup.publisher.publish(big)
    busy = [each for each in outcomes if each.status == "rejected"]
    assert busy
    assert all(each.retryable and isinstance(each.error, Backpressure) for each in busy)
    setup.primary.heal()
    for log in setup.logs.values():
        log.close()


def test_nobody_waits_for_a_region_that_is_used_for_the_first_time(
    clusters: Clusters, tmp_path: Path
) -> None:
    setup = Setup(clusters, tmp_path, probed=False)
    for cluster in clusters.values():
        cluster.slow(20)
    told: list[list[Outcome]] = []
    for _ in range(5):
        setup.publisher.submit([(TOPIC, Record(b"event", key=b"k"))], told.append)
    # Whoever submits may be an event loop, which all requests share.
    assert not told, "the cluster answers later"
    eventually(lambda: len(told) == 5)
    for cluster in clusters.values():
        cluster.heal()
    for log in setup.logs.values():
        log.close()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("_MSG_TIMED_OUT", RegionUnavailable),
        ("_TIMED_OUT", RegionUnavailable),
        ("_TRANSPORT", RegionUnavailable),
        ("_AUTHENTICATION", RegionUnavailable),
        ("_SSL", RegionUnavailable),
        ("_FATAL", RegionUnavailable),
        ("SASL_AUTHENTICATION_FAILED", RegionUnavailable),
        ("TOPIC_AUTHORIZATION_FAILED", RegionUnavailable),
        ("NOT_ENOUGH_REPLICAS", RegionUnavailable),
        ("NOT_ENOUGH_REPLICAS_AFTER_APPEND", RegionUnavailable),
        ("UNKNOWN_TOPIC_OR_PART", UnknownTopic),
        ("_UNKNOWN_TOPIC", UnknownTopic),
        ("MSG_SIZE_TOO_LARGE", RecordTooLarge),
        ("INVALID_RECORD", RecordRejected),
        ("_QUEUE_FULL", Backpressure),
    ],
)
def test_the_meaning_of_an_error(name: str, kind: type[EventLogError]) -> None:
    assert type(classify(KafkaError(getattr(KafkaError, name)), "primary")) is kind
