"""The largest event the whole way, and what a real cluster says of its topics."""

from __future__ import annotations

import json
import random
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from django.test import Client

from audit_logging.batch import Batch
from audit_logging.conf import LoggingSettings
from audit_logging.doctor.examinations import Asked
from audit_logging.event import AuditEvent, EventBuilder
from audit_publisher import checks, eventlog, health, metrics, publish
from audit_publisher.codec import decode
from audit_publisher.doctor import regions as doctor
from audit_publisher.eventlog import Limits
from audit_publisher.operating import topics
from audit_publisher.testing import make_event
from tests.unit.audit_publisher.conftest import BATCH, URL, Configure
from tests.unit.audit_publisher.test_views import post

pytestmark = [pytest.mark.services, pytest.mark.django_db]

LIMIT = 2_000_000


@pytest.fixture
def topic(kafka_primary: Any, configure: Configure, monkeypatch: pytest.MonkeyPatch) -> str:
    """A topic that takes exactly what the largest event needs, and no byte more."""
    name = f"limits-{uuid.uuid4().hex[:8]}"
    configure(
        PRIMARY_URL=f"kafka://{kafka_primary.address}",
        DEFAULT_TOPIC=name,
        REQUEST_TIMEOUT=10,
        DELIVERY_TIMEOUT=10,
    )
    kafka_primary.create_topics({name: 4}, {"max.message.bytes": topics.largest_record()})
    monkeypatch.setattr(health, "PATIENCE", 60.0)
    return name


@pytest.fixture
def regions(
    kafka_primary: Any, kafka_secondary: Any, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """Both clusters, and a topic that neither of them has yet."""
    name = f"health-{uuid.uuid4().hex[:8]}"
    configure(
        PRIMARY_URL=f"kafka://{kafka_primary.address}",
        SECONDARY_URL=f"kafka://{kafka_secondary.address}",
        DEFAULT_TOPIC=name,
        REQUEST_TIMEOUT=10,
    )
    monkeypatch.setattr(health, "PATIENCE", 60.0)
    monkeypatch.setattr(health, "_started", False)
    monkeypatch.setattr(health, "_began", time.monotonic())
    # The test looks by hand: a look in the background that began before would come in between.
    monkeypatch.setattr(publish.Publisher, "start", lambda self: None)
    yield name
    for cluster in (kafka_primary, kafka_secondary):
        if name in cluster.admin().list_topics(timeout=10).topics:
            cluster.delete_topics([name])


def read_back(topic: str) -> list[dict[str, Any]]:
    log = eventlog.get_region("primary")
    found: list[dict[str, Any]] = []
    for partition in range(log.partitions(topic)):
        offset, high = log.watermarks(topic, partition)
        while offset < high:
            records = log.read(topic, partition, offset, Limits(timeout=5))
            found += [decode(record.value) for record in records]
            offset += len(records)
    return found


def event_of(size: int) -> bytes:
    """An event of exactly `size` bytes that no compression makes smaller than it is."""
    # One byte a character in JSON and in Avro; random, so that lz4 leaves it as it is.
    letters = [chr(code) for code in range(0x20, 0x7F) if chr(code) not in '"\\']
    event = make_event(response_body="")
    room = size - len(json.dumps(event).encode())
    event["response_body"] = "".join(random.choices(letters, k=room))
    data = json.dumps(event).encode()
    assert len(data) == size
    return data


def test_the_largest_event_passes_and_one_byte_more_does_not(api: Client, topic: str) -> None:
    data = event_of(LIMIT)
    response = post(api, URL, data)
    assert (response.status_code, response.json()["status"]) == (200, "published")
    assert post(api, BATCH, b"[" + data + b"]").json()["items"][0]["status"] == "published"
    spooled = publish.get_publisher().spool.size()
    failovers = metrics.FAILOVERS.labels("primary", "unavailable")._value.get()

    larger = event_of(LIMIT + 1)
    assert post(api, URL, larger).status_code == 413
    (item,) = post(api, BATCH, b"[" + larger + b"]").json()["items"]
    assert (item["status"], item["retryable"]) == ("rejected", False)
    # At the door: no region is asked, none is given up, nothing goes to the disk.
    assert publish.get_publisher().spool.size() == spooled == (0, 0)
    assert metrics.FAILOVERS.labels("primary", "unavailable")._value.get() == failovers
    sent = json.loads(data)
    found = read_back(topic)
    assert [event["response_body"] == sent["response_body"] for event in found] == [True, True]


def test_what_capture_makes_as_large_as_it_may_is_taken(api: Client, topic: str) -> None:
    options = LoggingSettings({"AUDIT_LOGGING_SERVICE_NAME": "inventory-api"})
    assert options.MAX_EVENT_BYTES == LIMIT
    sent = json.loads(event_of(LIMIT - 1000))
    sent["response_body"] += "\N{SNOWMAN}" * 20
    known = {name: sent[name] for name in sent if name in AuditEvent.__dataclass_fields__}
    line = EventBuilder(options).encode(AuditEvent(**known))
    assert LIMIT - 2000 < len(line.encode()) <= LIMIT
    response = api.post(
        BATCH,
        Batch.of([line]).packed,
        content_type="application/x-ndjson",
        headers={"content-encoding": "gzip"},
    )
    assert [item["status"] for item in response.json()["items"]] == ["published"]
    (event,) = read_back(topic)
    assert event["response_body"] == sent["response_body"]


def test_a_cluster_with_kafka_s_own_limit_is_found_before_the_first_large_event(
    api: Client, regions: str, kafka_primary: Any, kafka_secondary: Any
) -> None:
    kafka_primary.create_topics({regions: 4}, {"max.message.bytes": 1_048_588})
    kafka_secondary.create_topics({regions: 4})
    publish.get_publisher().probe()
    report = api.get("/health/ready").json()
    assert report["status"] == "degraded"
    (problem,) = report["problems"]
    assert "region primary takes records up to 1,048,588 bytes (max.message.bytes)" in problem
    (error,) = [each for each in checks.check_regions() if each.id == "audit_publisher.E008"]
    assert "AUDIT_PUBLISHER_MAX_EVENT_BYTES" in str(error.hint)


def test_states_of_two_real_regions(
    api: Client, regions: str, kafka_primary: Any, kafka_secondary: Any
) -> None:
    def look(probe: str = "ready") -> tuple[int, dict[str, Any]]:
        publish.get_publisher().probe()
        response = api.get(f"/health/{probe}")
        return response.status_code, response.json()

    # The wrong name, in both: nothing would ever be published.
    status, report = look()
    assert (status, report["status"]) == (503, "failing")
    assert all("AUDIT_PUBLISHER_DEFAULT_TOPIC" in line for line in report["problems"])
    assert "audit_publisher.E006" in {each.id for each in checks.check_regions()}
    # In one of them.
    kafka_primary.create_topics({regions: 4})
    status, report = look()
    assert (status, report["status"]) == (200, "degraded"), report
    assert report["regions"]["secondary"]["missing_topics"] == [regions]
    assert look("startup")[0] == 503
    # In both, with other partitions.
    kafka_secondary.create_topics({regions: 6})
    status, report = look()
    assert (status, report["status"]) == (200, "degraded"), report
    assert "primary 4, secondary 6" in report["problems"][0]
    assert look("startup")[0] == 200


def test_what_a_real_cluster_tells_of_a_topic(regions: str, kafka_primary: Any) -> None:
    kafka_primary.create_topics(
        {regions: 3},
        {"retention.ms": 3_600_000, "cleanup.policy": "compact,delete", "min.insync.replicas": 1},
    )
    log: Any = eventlog.get_region("primary")
    facts = log.describe([regions, "no-such-topic"])
    assert facts["no-such-topic"] is None
    told = facts[regions]
    assert (told.partitions, told.replicas, told.min_insync) == (3, 1, 1)
    assert (told.retention, told.cleanup) == (3600.0, "compact,delete")
    assert told.largest_batch == 10_485_760
    assert log.replica_fetch_bytes() == 1_048_576
    log.close()


def test_the_doctor_and_two_real_regions(
    regions: str, kafka_primary: Any, kafka_secondary: Any
) -> None:
    kafka_primary.create_topics({regions: 4, f"{regions}_DLQ": 1}, {"retention.ms": 3_600_000})
    kafka_secondary.create_topics({regions: 4}, {"max.message.bytes": 1_048_588})
    try:
        found = list(doctor.regions(Asked()))
    finally:
        kafka_primary.delete_topics([f"{regions}_DLQ"])
    said = {
        level: " ".join(each.message for each in found if each.level == level)
        for level in ("ok", "warning", "FAIL")
    }
    for region, cluster in (("primary", kafka_primary), ("secondary", kafka_secondary)):
        assert f"{region} (kafka://{cluster.address}) answers" in said["ok"]
    assert "keeps records for 1 hours" in said["FAIL"]
    assert f"Region secondary has no topic '{regions}_DLQ'" in said["FAIL"]
    assert "region secondary takes records up to 1,048,588 bytes" in said["FAIL"]
    assert "has one copy (replication factor 1)" in said["warning"]
    assert "replica.fetch.max.bytes" in said["warning"]
    assert all(each.cure for each in found if each.level != "ok")


def test_two_addresses_of_one_cluster_are_no_second_region(
    kafka_primary: Any, configure: Configure, topic: str
) -> None:
    port = kafka_primary.address.rpartition(":")[2]
    configure(
        PRIMARY_URL=f"kafka://127.0.0.1:{port}",
        SECONDARY_URL=f"kafka://localhost:{port}",
        DEFAULT_TOPIC=topic,
        REQUEST_TIMEOUT=10,
    )
    assert checks.check_combinations() == []
    assert "audit_publisher.E004" in {each.id for each in checks.check_regions()}
    found = [each for each in doctor.regions(Asked()) if "one and the same" in each.message]
    assert [each.level for each in found] == ["FAIL"]
