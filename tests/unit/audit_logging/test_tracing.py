"""Spans by OpenTelemetry's own SDK, and nothing at all without it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from celery.contrib.testing.worker import start_worker
from django.test import Client
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from audit_logging import celery, tasks, tracing
from audit_logging.batch import Batch, pack
from audit_logging.conf import LoggingSettings
from audit_logging.delivery import Deliverer
from audit_logging.event import AuditEvent
from audit_logging.outcome import Delivered
from audit_logging.publisher_client import Publisher
from audit_logging.transport import Transport
from tests.support import eventually

REPOSITORY = Path(__file__).resolve().parents[3]
SENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Spans:
    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = self.provider.get_tracer("the service's own")

    def __getitem__(self, name: str) -> ReadableSpan:
        (span,) = self.all(name)
        return span

    def all(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.exporter.get_finished_spans() if span.name == name]


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Spans:
    found = Spans()
    # There is one provider in a process, which cannot be taken back.
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", found.provider)
    return found


def ids(span: ReadableSpan) -> str:
    context = span.get_span_context()
    assert context is not None
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def parent_of(span: ReadableSpan) -> int | None:
    return span.parent.span_id if span.parent else None


def span_id(span: ReadableSpan) -> int:
    return span.get_span_context().span_id  # type: ignore[union-attr]


# -- requests ----------------------------------------------------------------------------------


def test_the_traceparent_of_the_active_span(spans: Spans) -> None:
    assert tracing.current_traceparent() is None
    with spans.tracer.start_as_current_span("request") as active:
        assert tracing.current_traceparent() == ids(active)  # type: ignore[arg-type]
    assert tracing.current_traceparent() is None


@pytest.mark.parametrize("sent", ["", "nonsense", "00-" + "0" * 60, SENT[:54]])
def test_what_a_request_sent_counts_if_it_is_something(spans: Spans, sent: str) -> None:
    meta = {"HTTP_TRACEPARENT": sent} if sent else {}
    assert tracing.traceparent_of(meta) == sent
    with spans.tracer.start_as_current_span("request") as active:
        assert tracing.traceparent_of({"HTTP_TRACEPARENT": SENT}) == SENT
        assert tracing.traceparent_of(meta) == ids(active)  # type: ignore[arg-type]


def in_a_span(get_response: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A middleware as OpenTelemetry's, before ours."""

    def middleware(request: Any) -> Any:
        with trace.get_tracer("outer").start_as_current_span("request"):
            return get_response(request)

    return middleware


@pytest.mark.parametrize("sent", [{}, {"traceparent": "nonsense"}])
def test_an_event_belongs_to_the_span_that_it_is_served_in(
    spans: Spans, audited: Any, events: list[AuditEvent], sent: dict[str, str]
) -> None:
    audited.MIDDLEWARE = [f"{__name__}.in_a_span", *audited.MIDDLEWARE]
    Client().get("/hello", headers=sent)
    traceparent = ids(spans["request"])
    assert events[0].trace_id == traceparent[3:35]
    # So it reaches the event log, whose records carry it.
    assert events[0].headers["traceparent"] == traceparent


def test_the_callers_trace_comes_first(
    spans: Spans, audited: Any, events: list[AuditEvent]
) -> None:
    audited.MIDDLEWARE = [f"{__name__}.in_a_span", *audited.MIDDLEWARE]
    Client().get("/hello", headers={"traceparent": SENT})
    assert events[0].trace_id == SENT[3:35]


# -- batches -----------------------------------------------------------------------------------


def lines(count: int) -> list[str]:
    return [
        json.dumps(
            {"headers": {"traceparent": f"00-{n + 1:032x}-{n + 1:016x}-01"}}, separators=(",", ":")
        )
        for n in range(count)
    ]


def test_a_span_is_linked_to_a_few_of_its_requests(spans: Spans) -> None:
    with tracing.span("deliver", kind="client", batch=pack(lines(2) * 2 + lines(50)), events=54):
        pass
    span = spans["audit deliver"]
    assert [link.context.trace_id for link in span.links] == [1, 2, 3, 4, 5]
    assert span.attributes == {"audit.events": 54}
    assert span.kind is trace.SpanKind.CLIENT


@pytest.mark.parametrize(
    "batch",
    [
        b"",
        b"damaged",
        pack(["{}"]),
        pack(lines(1))[:20],
        pack([json.dumps({"body": f'"traceparent":"{SENT}"'})]),
    ],
)
def test_a_batch_that_tells_of_no_request_has_no_links(spans: Spans, batch: bytes) -> None:
    with tracing.span("deliver", batch=batch):
        pass
    assert not spans["audit deliver"].links


def test_an_error_shows_its_type_and_nothing_that_a_caller_sent(spans: Spans) -> None:
    with pytest.raises(ValueError, match="hush"), tracing.span("deliver"):
        raise ValueError("hush")
    span = spans["audit deliver"]
    assert (span.status.status_code, span.status.description) == (
        trace.StatusCode.ERROR,
        "ValueError",
    )
    assert "hush" not in span.to_json()


def test_a_provider_that_fails_holds_nothing_up(
    spans: Spans, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError

    monkeypatch.setattr(spans.provider, "get_tracer", broken)
    done = []
    with tracing.span("deliver"):
        done.append(1)
    assert done


class Recorder:
    """A target of deliveries that takes everything."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []

    def send(self, batch: Batch) -> Delivered:
        self.batches.append(batch)
        return Delivered(stored={"published": batch.count})


def test_one_trace_from_the_service_over_the_broker_to_the_delivery(
    spans: Spans,
    audited: Any,
    options: Callable[..., LoggingSettings],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    audited.AUDIT_LOGGING = audited.AUDIT_LOGGING | {"DATA_DIR": tmp_path / "data"}
    target = Recorder()
    deliverer = Deliverer(target, options())
    monkeypatch.setattr(tasks, "get_deliverer", lambda: deliverer)
    celery.forget_connection()
    transport = Transport(celery.send_batch, options())
    try:
        from audit_logging.transport import set_transport

        before = set_transport(transport)
        Client().get("/hello", headers={"traceparent": SENT})
        Client().get("/hello", headers={"traceparent": SENT})
        set_transport(before)
        eventually(lambda: spans.all("audit batch"))
        app = celery.make_app()
        with start_worker(app, pool="solo", perform_ping_check=False, shutdown_timeout=30):
            eventually(lambda: sum(batch.count for batch in target.batches) == 2)
            eventually(lambda: len(spans.all("audit receive")) == len(spans.all("audit send")))
    finally:
        transport.close()
        deliverer.stop()
    batch, send = spans.all("audit batch")[0], spans.all("audit send")[0]
    receive, deliver = spans.all("audit receive")[0], spans.all("audit deliver")[0]
    assert batch.parent is None
    assert parent_of(send) == span_id(batch)
    assert parent_of(receive) == span_id(send)
    assert parent_of(deliver) == span_id(receive)
    assert len({ids(span)[3:35] for span in (batch, send, receive, deliver)}) == 1
    # One link for the one trace of both requests.
    for span in (send, deliver):
        assert [f"{link.context.trace_id:032x}" for link in span.links] == [SENT[3:35]]


def test_the_delivery_says_so_to_the_publisher(
    spans: Spans, options: Callable[..., LoggingSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, str]] = []
    publisher = Publisher(options(PUBLISHER_URL="http://127.0.0.1:9"))

    def request(*args: Any, headers: dict[str, str], **kwargs: Any) -> None:
        seen.append(headers)
        raise OSError("away")

    monkeypatch.setattr(publisher._pool, "request", request)
    deliverer = Deliverer(publisher, options(DELIVERY_RETRIES=0))
    deliverer.deliver(Batch.of(lines(1)).message(), 1)
    deliverer.stop()
    span = spans["audit deliver"]
    assert seen[0]["traceparent"] == ids(span)
    assert span.status.description == "RetryLater"


# -- without it --------------------------------------------------------------------------------

WITHOUT = """
import sys
sys.modules["opentelemetry"] = None
from django.conf import settings
settings.configure()
from audit_logging import tracing
assert tracing.current_traceparent() is None
assert tracing.traceparent_of({}) == ""
assert tracing.traceparent_of({"HTTP_TRACEPARENT": "x"}) == "x"
assert tracing.headers() == {}
with tracing.span("batch", parent={"traceparent": "x"}, batch=b"x", events=1):
    pass
"""
NOT_SET_UP = """
from opentelemetry import trace
from audit_logging import tracing
assert tracing.current_traceparent() is None
with tracing.span("batch", events=1):
    assert not trace.get_current_span().get_span_context().is_valid
    assert tracing.headers() == {}
"""


@pytest.mark.parametrize("program", [WITHOUT, NOT_SET_UP], ids=["not installed", "not set up"])
def test_nothing_happens_without_it(program: str) -> None:
    environ = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    environ.pop("DJANGO_SETTINGS_MODULE", None)
    subprocess.run([sys.executable, "-c", program], env=environ, timeout=60, check=True)
