"""Producer records: taken in batches alone, validated, and put beside the events."""

from __future__ import annotations

import json
import time
from typing import Any

import jsonschema
import pytest
from django.test import Client
from prometheus_client.parser import text_string_to_metric_families

from audit_logging import monitoring
from audit_logging.conf import LoggingSettings
from audit_logging.producers import Producer
from audit_publisher import intake
from audit_publisher.authentication import Sender
from audit_publisher.http import openapi
from audit_publisher.producer_records import MAX_BYTES, is_producer_record
from audit_publisher.testing import make_event, make_producer_record
from tests.unit.audit_publisher.conftest import BATCH, LEGACY, URL, stored
from tests.unit.audit_publisher.test_views import post


def count(name: str, **labels: str) -> float:
    page = monitoring.exposition()[0].decode()
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            if sample.name == f"audit_publisher_{name}_total" and sample.labels == labels:
                return sample.value
    return 0.0


def items(response: Any) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.content
    found: list[dict[str, Any]] = response.json()["items"]
    return found


def test_a_record_is_answered_like_an_event_and_lies_in_the_events_topic(api: Client) -> None:
    event, record = make_event(), make_producer_record(dropped={"buffer_full": 3})
    answers = items(post(api, BATCH, [event, record]))
    assert answers[1] == {
        "request_id": record["request_id"],
        "status": "published",
        "region": "primary",
        "retryable": False,
        "error": None,
    }
    (found,) = [each for each in stored() if each.headers[0][0] == "audit-record"]
    assert found.headers[0] == ("audit-record", b"producer")
    assert found.key == f"inventory-api/{record['producer_epoch']}".encode()
    assert json.loads(found.value) == record
    assert len(stored()) == 2


def test_what_a_capture_process_says_is_valid(api: Client, tmp_path: Any) -> None:
    options = LoggingSettings(
        {
            "AUDIT_LOGGING_DATA_DIR": str(tmp_path),
            "AUDIT_LOGGING_SERVICE_NAME": "inventory-ü",
        }
    )
    producer = Producer(options)
    producer.number()
    lines = [producer.record(state, time.time()) for state in ("open", "closed", "lost")]
    body = "\n".join([json.dumps(make_event()), *lines]).encode()
    answers = items(post(api, BATCH, body, "application/x-ndjson"))
    assert [each["status"] for each in answers] == ["published"] * 4
    schema = {"$ref": "#/components/schemas/ProducerRecord", **openapi.document()}
    for line in lines:
        jsonschema.Draft202012Validator(schema).validate(json.loads(line))


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"seq": -1}, "seq"),
        ({"seq": "7"}, "seq"),
        ({"state": "dead"}, "state"),
        ({"producer_epoch": ""}, "producer_epoch"),
        ({"producer_epoch": "a\n"}, "producer_epoch"),
        ({"producer_epoch": "x" * 65}, "producer_epoch"),
        ({"service_name": "a\x00"}, "service_name"),
        ({"host": "\u202e"}, "host"),
        ({"at": time.time() * 1000}, "at"),
        ({"at": 0}, "at"),
        ({"started_at": -1}, "started_at"),
        ({"dropped": {"x": -1}}, "dropped"),
        ({"dropped": {str(n): n for n in range(51)}}, "dropped"),
        ({"skipped": {"x": "y" * 9000}}, ""),
        ({"request_id": "x"}, "request_id"),
    ],
)
def test_what_is_wrong_is_named_and_counted(api: Client, wrong: dict[str, Any], field: str) -> None:
    before = {name: count(name) for name in ("events_received", "producer_records")}
    answers = items(post(api, BATCH, [make_producer_record(**wrong), make_event()]))
    assert answers[0]["status"] == "rejected"
    assert not answers[0]["retryable"]
    assert answers[0]["error"]["field"].startswith(field)
    assert answers[1]["status"] == "published"
    assert count("events_received") == before["events_received"] + 2
    assert count("producer_records") == before["producer_records"]
    assert len(stored()) == 1


def test_received_is_still_published_and_spooled_and_rejected(api: Client) -> None:
    before = [
        count("events_received"),
        count("events_published", region="primary"),
        count("events_rejected", reason="invalid"),
        count("producer_records"),
    ]
    post(api, BATCH, [make_event(), make_producer_record(), make_producer_record(seq=None)])
    after = [
        count("events_received"),
        count("events_published", region="primary"),
        count("events_rejected", reason="invalid"),
        count("producer_records"),
    ]
    assert [now - then for now, then in zip(after, before, strict=True)] == [3, 2, 1, 1]


@pytest.mark.parametrize("url", [URL, LEGACY])
def test_a_record_by_itself_is_refused(api: Client, url: str) -> None:
    assert post(api, url, make_producer_record()).status_code == 422
    assert stored() == []


def test_a_sender_may_not_speak_for_another_service(db: None) -> None:
    sender = Sender(services=frozenset({"orders-api"}))
    data = [
        json.dumps(make_producer_record(service_name=name)).encode()
        for name in ("orders-api", "inventory-api")
    ]
    results = intake.take(data, {}, sender, time.time_ns() // 1000)
    assert [each.outcome.status for each in results] == ["published", "rejected"]
    error = intake.error_of(results[1].outcome)
    assert error is not None
    assert error["field"] == "service_name"


def test_the_site_of_the_request_that_brought_it_is_not_the_records(api: Client) -> None:
    post(api, BATCH, [make_producer_record()], HTTP_WM_SITE_ID="1704989474816248000")
    (found,) = stored()
    assert [name for name, _ in found.headers] == ["audit-record", "request_id"]


@pytest.mark.parametrize(
    "event",
    [
        {"path": '/x?"record":"producer"'},
        {"headers": {"record": "producer"}},
        {"request_body": json.dumps({"record": "producer"})},
    ],
)
def test_an_event_that_speaks_of_records_is_an_event(api: Client, event: dict[str, Any]) -> None:
    made = make_event(**event)
    assert not is_producer_record(json.dumps(made).encode())
    assert items(post(api, BATCH, [made]))[0]["status"] == "published"
    assert stored()[0].headers[0][0] != "audit-record"


def test_a_record_larger_than_any_true_one_is_refused(api: Client) -> None:
    record = make_producer_record(unknown="x" * MAX_BYTES)
    assert items(post(api, BATCH, [record, make_event()]))[0]["status"] == "rejected"
