"""One limit on the whole way: capture, publisher and event log agree, or somebody is told."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from django.test import Client, override_settings

from audit_logging.batch import Batch
from audit_logging.conf import LoggingSettings
from audit_logging.fitting import LIMIT_HEADER
from audit_logging.publisher_client import Publisher
from audit_publisher import metrics, routing
from audit_publisher.codec import decode
from audit_publisher.conf import conf
from audit_publisher.eventlog import TopicFacts
from audit_publisher.in_process import EventLog as InProcess
from audit_publisher.operating import topics
from audit_publisher.operating.topics import ENVELOPE_BYTES, problems
from audit_publisher.testing import make_event
from tests.unit.audit_publisher.conftest import BATCH, URL, Configure, stored
from tests.unit.audit_publisher.test_deliveries import keys, make, url
from tests.unit.audit_publisher.test_views import post

__all__ = ["keys", "make", "url"]

LIMIT = 20_000


def test_one_setting_rules_both(configure: Configure) -> None:
    with override_settings(AUDIT_LOGGING={"MAX_EVENT_BYTES": 123_456}):
        assert conf.MAX_EVENT_BYTES == 123_456
        configure(MAX_EVENT_BYTES=99_000)
        assert conf.MAX_EVENT_BYTES == 99_000
    configure()
    assert conf.MAX_EVENT_BYTES == LoggingSettings({}).MAX_EVENT_BYTES == 2_000_000


def test_every_answer_tells_the_limit(api: Client, configure: Configure) -> None:
    configure(MAX_EVENT_BYTES=LIMIT)
    answers = [
        post(api, URL, make_event()),
        post(api, URL, make_event(response_body="x" * LIMIT)),
        post(api, BATCH, [make_event()]),
        api.get(URL),
        api.get("/v1/config/inventory-api"),
    ]
    assert [answer.status_code for answer in answers] == [200, 413, 200, 405, 200]
    assert {answer[LIMIT_HEADER] for answer in answers} == {str(LIMIT)}


def client(address: str) -> Publisher:
    options = {"PUBLISHER_URL": address, "CONSUMER_ID": "c", "DELIVERY_TIMEOUT": "10"}
    return Publisher(LoggingSettings({f"AUDIT_LOGGING_{k}": v for k, v in options.items()}))


def lines(*sizes: int) -> list[str]:
    return [json.dumps(make_event(response_body="ö" * (size // 2))) for size in sizes]


def refused() -> float:
    return metrics.REJECTED.labels("too_large")._value.get()


@pytest.mark.django_db
@pytest.mark.parametrize("sizes", [(30_000,), (100, 30_000, 200), (30_000, 30_000)])
def test_a_publisher_with_a_smaller_limit_loses_no_event(
    url: str, configure: Configure, sizes: tuple[int, ...]
) -> None:
    configure(MAX_EVENT_BYTES=LIMIT)
    routing.refresh()
    sender = client(url)
    sent = lines(*sizes)
    delivered = sender.send(Batch.of(sent))
    assert delivered.stored == {"published": len(sizes)}
    assert not delivered.refused
    assert not delivered.again
    found = {event["request_id"]: event for event in (decode(each.value) for each in stored())}
    for line, size in zip(sent, sizes, strict=True):
        event = found[json.loads(line)["request_id"]]
        assert event["response_body_state"] == ("omitted_size" if size > LIMIT else "full")
        assert ("MAX_EVENT_BYTES" in event["response_body"]) is (size > LIMIT)
        # What did not make it too large is all there.
        assert event["path"] == json.loads(line)["path"]
    # What it has learned it does not have to be told again.
    before = refused()
    assert sender.send(Batch.of(lines(*sizes))).stored == {"published": len(sizes)}
    assert refused() == before
    sender.close()


@pytest.mark.django_db
def test_an_event_that_fits_in_no_way_is_refused_once(url: str, configure: Configure) -> None:
    configure(MAX_EVENT_BYTES=1000)
    routing.refresh()
    sender = client(url)
    before = refused()
    delivered = sender.send(Batch.of([json.dumps(make_event(path="/" + "x" * 2000))]))
    assert [json.loads(each.reason)["reason"] for each in delivered.refused]
    assert refused() == before + 1
    sender.close()


@pytest.mark.django_db
def test_a_worker_that_appends_by_itself_knows_the_limit(configure: Configure) -> None:
    configure(MAX_EVENT_BYTES=LIMIT)
    routing.refresh()
    delivered = InProcess().send(Batch.of(lines(100, 30_000)))
    assert delivered.stored == {"published": 2}


@pytest.mark.django_db
def test_the_record_of_no_event_passes_its_envelope(configure: Configure) -> None:
    """Names of four bytes a character, and every forwarded header as long as it may be."""
    routing.refresh()
    wide = "\U00020000"
    event = make_event(
        service_name=wide * 200,
        endpoint_name=wide * 1000,
        consumer_id=wide * 64,
        site_id=wide * 64,
        request_ts=1,
        response_ts=1,
        headers=dict.fromkeys(routing.FORWARDED, wide * 64),
    )
    for absent in ("outcome", "request_body_state", "response_body_state"):
        event.pop(absent, None)
    from audit_publisher.serializers import parse_event

    text = json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode()
    http = dict.fromkeys(("traceparent",), "h" * 256)
    _, record = routing.Router(http, 1_790_000_000_000_000).to_record(parse_event(text))
    #: A batch of one: 61 bytes, and for the record and each header some varints.
    overhead = 61 + 30 + 10 * len(record.headers)
    assert record.size + overhead <= len(text) + ENVELOPE_BYTES


# -- what is judged of topics ----------------------------------------------------------------

GOOD = TopicFacts(
    partitions=4, largest_batch=10_000_000, replicas=3, min_insync=2, retention=math.inf
)


def judged(**regions: Any) -> list[tuple[str, bool]]:
    return [(each.kind, each.serious) for each in problems(regions, ["api-audit-events"])]


def changed(**values: Any) -> dict[str, TopicFacts]:
    from dataclasses import replace

    return {"api-audit-events": replace(GOOD, **values)}


def test_topics_as_they_should_be() -> None:
    assert judged(primary=changed(), secondary=changed()) == []
    assert judged(primary=changed(partitions=12), secondary=changed(partitions=12)) == []
    assert judged(primary=changed(), secondary=RuntimeError("down")) == []


@pytest.mark.parametrize(
    ("values", "kind", "serious"),
    [
        ({"partitions": 3}, "partitions", False),
        ({"largest_batch": 2_008_191}, "size", True),
        ({"largest_batch": None}, "unknown", False),
        ({"cleanup": "compact,delete"}, "cleanup", True),
        ({"retention": 3600.0}, "retention", True),
        ({"retention": 2 * 86_400.0}, "retention", False),
        ({"replicas": 1}, "replicas", False),
        ({"min_insync": 1}, "replicas", False),
        ({"min_insync": 3}, "replicas", False),
    ],
)
def test_what_is_wrong_with_a_topic(values: dict[str, Any], kind: str, serious: bool) -> None:
    assert judged(primary=changed(**values)) == [(kind, serious)]
    (problem,) = problems({"primary": changed(**values)}, ["api-audit-events"])
    assert "api-audit-events" in problem.message
    assert problem.cure.endswith((".", "events", "is."))


def test_regions_that_differ() -> None:
    assert judged(primary=changed(), secondary={"api-audit-events": None}) == [("missing", True)]
    (problem,) = problems(
        {"primary": changed(partitions=4), "secondary": changed(partitions=12)},
        ["api-audit-events"],
    )
    assert "primary 4, secondary 12" in problem.message
    assert "--partitions 12" in problem.cure


def test_the_limit_of_a_topic_names_what_would_fit(configure: Configure) -> None:
    (problem,) = problems({"primary": changed(largest_batch=1_048_588)}, ["api-audit-events"])
    assert "2,008,192" in problem.message
    assert "max.message.bytes" in problem.cure
    (suggested,) = [word.strip(".") for word in problem.cure.split() if word.startswith("10403")]
    configure(MAX_EVENT_BYTES=int(suggested))
    assert problems({"primary": changed(largest_batch=1_048_588)}, ["api-audit-events"]) == []
    assert topics.largest_record() == 1_048_588
