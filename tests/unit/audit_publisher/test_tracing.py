"""A delivery's trace goes on in the publisher; the events in it keep their own."""

from __future__ import annotations

import json

import pytest
from django.test import Client
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from audit_publisher import eventlog
from audit_publisher.conf import conf
from audit_publisher.eventlog import Limits
from audit_publisher.testing import make_event

from .conftest import BATCH, URL

THE_DELIVERYS = "00-11111111111111111111111111111111-2222222222222222-01"
AN_EVENTS = "00-33333333333333333333333333333333-4444444444444444-01"


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    # There is one provider in a process, which cannot be taken back.
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    return exporter


def stored() -> list[bytes | None]:
    """The traceparent of each record in the event log."""
    log = eventlog.get_region("primary")
    topic = conf.DEFAULT_TOPIC
    found = []
    for partition in range(log.partitions(topic)):
        for record in log.read(topic, partition, 0, Limits()):
            found.append(dict(record.headers).get("traceparent"))
    return found


def test_a_batch_is_one_span_of_its_deliverys_trace(
    api: Client, spans: InMemorySpanExporter
) -> None:
    events = [
        make_event(trace_id=AN_EVENTS[3:35], headers={"traceparent": AN_EVENTS}),
        make_event(trace_id=None, headers={}),
        make_event(trace_id=AN_EVENTS[3:35], headers={}),
    ]
    answer = api.post(
        BATCH,
        "\n".join(json.dumps(event) for event in events),
        content_type="application/x-ndjson",
        headers={"traceparent": THE_DELIVERYS},
    )
    assert [item["status"] for item in answer.json()["items"]] == ["published"] * 3
    (span,) = spans.get_finished_spans()
    assert span.name == "audit publish"
    assert span.kind is trace.SpanKind.SERVER
    assert span.attributes == {"audit.events": 3}
    assert span.parent is not None
    assert f"00-{span.parent.trace_id:032x}-{span.parent.span_id:016x}-01" == THE_DELIVERYS
    assert sorted(stored(), key=str) == sorted([AN_EVENTS.encode(), None, None], key=str)


def test_a_single_event_without_a_trace_has_its_requests(
    api: Client, spans: InMemorySpanExporter
) -> None:
    event = make_event(trace_id=None, headers={})
    answer = api.post(
        URL, event, content_type="application/json", headers={"traceparent": THE_DELIVERYS}
    )
    assert answer.status_code == 200
    assert stored() == [THE_DELIVERYS.encode()]


@pytest.mark.parametrize("sent", ["", "nonsense", "00-" + "0" * 32 + "-" + "0" * 16 + "-01"])
def test_what_is_no_trace_makes_a_new_one(
    api: Client, spans: InMemorySpanExporter, sent: str
) -> None:
    api.post(
        BATCH,
        json.dumps([make_event()]),
        content_type="application/json",
        headers={"traceparent": sent} if sent else {},
    )
    (span,) = spans.get_finished_spans()
    assert span.parent is None


def test_a_request_that_is_refused_before_its_events_are_looked_at_has_no_span(
    api: Client, spans: InMemorySpanExporter
) -> None:
    assert api.post(BATCH, "[", content_type="application/json").status_code == 400
    assert spans.get_finished_spans() == ()
