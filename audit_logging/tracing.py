"""Traces: where OpenTelemetry is installed and set up, our own steps show in it; else nothing.

Each batch has a span for each of its steps, linked to the requests of a few of its events; there
is never a span for each event. One trace runs from the building of a batch over the broker and the
worker to the publisher, and the events keep the traces of their own requests.
"""

from __future__ import annotations

import logging
import re
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

try:
    from opentelemetry import trace
    from opentelemetry.context import Context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ImportError:
    trace = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

Kind = Literal["internal", "server", "client", "producer", "consumer"]

#: Requests that a span is linked to, and how much of a batch is looked at for them.
MAX_LINKS = 5
_LOOKED_AT = 1 << 16
_GZIP = 31
#: As the events' headers have it. Bodies are escaped in an event, so that none can look like it.
_TRACEPARENT = re.compile(rb'"traceparent":"(00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2})"')


def set_up() -> bool:
    """Whether this process has a provider of traces: without one there are no spans."""
    return trace is not None and getattr(trace, "_TRACER_PROVIDER", trace) is not None


def current_traceparent() -> str | None:
    """Return the active span's ``traceparent``, or None; for request threads: one look-up."""
    # Looking for a span is most of what this would cost.
    if not set_up():
        return None
    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return None
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def traceparent_of(meta: Mapping[str, Any]) -> str:
    """Return the request's ``traceparent``; where it sent none, that of the span it is served in.

    For request threads: without OpenTelemetry it costs looking at the header.
    """
    sent: str = meta.get("HTTP_TRACEPARENT", "")
    if trace is None or (len(sent) >= 55 and sent[2] == sent[35] == sent[52] == "-"):
        return sent
    return current_traceparent() or sent


def headers() -> dict[str, str]:
    """Return what tells the next process of the active span: to be sent along, possibly empty."""
    carrier: dict[str, str] = {}
    if trace is not None:
        TraceContextTextMapPropagator().inject(carrier)
    return carrier


@contextmanager
def span(
    name: str,
    *,
    kind: Kind = "internal",
    parent: Mapping[str, Any] | None = None,
    batch: bytes = b"",
    **attributes: int | str,
) -> Iterator[None]:
    """Show what happens within as a span; not for request threads of an audited service.

    :param parent: what another process's :func:`headers` gave, if there is no active span here.
    :param batch: its events' traces, a few of them, are linked.
    :param attributes: shown with the prefix ``audit.``.
    """
    started = _start(name, kind, parent, batch, attributes)
    if started is None:
        yield
        return
    # Of an error its type alone: messages may quote what a caller sent.
    with trace.use_span(started, record_exception=False, set_status_on_exception=False):
        try:
            yield
        except BaseException as error:
            started.set_status(trace.Status(trace.StatusCode.ERROR, type(error).__name__))
            raise
        finally:
            started.end()


def _start(
    name: str,
    kind: Kind,
    parent: Mapping[str, Any] | None,
    batch: bytes,
    attributes: Mapping[str, int | str],
) -> Any:
    """Return a new span, or None where there is nobody to show it to."""
    if trace is None:
        return None
    try:
        provider = trace.get_tracer_provider()
        if isinstance(provider, (trace.ProxyTracerProvider, trace.NoOpTracerProvider)):
            return None
        links = [trace.Link(context) for context in _contexts(batch)] if batch else []
        return provider.get_tracer("audit_logging").start_span(
            f"audit {name}",
            context=_context(parent),
            kind=trace.SpanKind[kind.upper()],
            links=links,
            attributes={f"audit.{key}": value for key, value in attributes.items()},
        )
    except Exception:
        # A provider of the service's own; no event is held up for a span.
        logger.debug("no span could be started", exc_info=True)
        return None


def _context(parent: Mapping[str, Any] | None) -> Context | None:
    if parent is None or trace.get_current_span().get_span_context().is_valid:
        return None
    carrier = {
        name: value
        for name in ("traceparent", "tracestate")
        if isinstance(value := parent.get(name), str)
    }
    return TraceContextTextMapPropagator().extract(carrier)


def _contexts(batch: bytes) -> list[Any]:
    """The span contexts that the first events of a batch (see batch.py) came with."""
    try:
        text = zlib.decompressobj(_GZIP).decompress(batch, _LOOKED_AT)
    except zlib.error:
        return []
    found = dict.fromkeys(match.group(1).decode() for match in _TRACEPARENT.finditer(text))
    contexts = []
    for traceparent in list(found)[:MAX_LINKS]:
        context = trace.get_current_span(
            TraceContextTextMapPropagator().extract({"traceparent": traceparent}, Context())
        ).get_span_context()
        if context.is_valid:
            contexts.append(context)
    return contexts
