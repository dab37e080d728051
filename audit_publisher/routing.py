"""Where an event goes and what travels beside it: topic, record key, forwarded headers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.core.signals import setting_changed
from django.db import DatabaseError, close_old_connections, connections, router

from audit_logging.background import Snapshot
from audit_logging.spool import Header, Record

from . import metrics
from .codec import frame
from .conf import PublisherSettings, conf
from .exceptions import AmbiguousHeader, InvalidEvent, InvalidHeader
from .names import has_control, header_key
from .remembered import Remembered
from .serializers import LogEvent, to_avro

SITE_HEADER = "wm-site-id"
CONSUMER_HEADER = "wm_consumer.id"
REQUEST_ID_HEADER = "request_id"

#: The headers that a record carries, and no others, in these spellings.
FORWARDED = (
    CONSUMER_HEADER,
    "wm_qos.correlation_id",
    "wm_svc.name",
    "wm_svc.version",
    "wm_svc.env",
    SITE_HEADER,
    "traceparent",
)
_BY_KEY = {header_key(name): name for name in FORWARDED}
_SITE, _CONSUMER = header_key(SITE_HEADER), header_key(CONSUMER_HEADER)
#: A name of WSGI's META → the key of the header, if it is one that is forwarded, else "".
_META_KEYS: Remembered[str, str] = Remembered(
    lambda name: (
        key if name.startswith("HTTP_") and (key := header_key(name[5:])) in _BY_KEY else ""
    )
)
#: The name of an event's own header → how the lake spells it, and its key if it is forwarded.
_OWN_NAMES: Remembered[str, tuple[str, str]] = Remembered(
    lambda name: (
        name.lower().replace("_", "-"),
        key if (key := header_key(name)) in _BY_KEY else "",
    )
)
#: The key of the trace context in what :func:`http_headers` finds.
TRACE = header_key("traceparent")

#: Longest header value that is forwarded, in bytes.
MAX_HEADER_BYTES = 256


class _Routes:
    """Topic routes as last read: those in force, and every topic there may be records in."""

    def __init__(self, enabled: Mapping[str, str], topics: tuple[str, ...]) -> None:
        self.enabled = enabled
        self.topics = topics


def _load_routes() -> _Routes:
    from .models import TopicRoute

    try:
        rows = list(
            TopicRoute.objects.order_by("topic").values_list("service_name", "topic", "enabled")
        )
    except DatabaseError:
        there = connections[router.db_for_read(TopicRoute)].introspection.table_names()
        if TopicRoute._meta.db_table in there:
            raise
        # The database of an audited service, whose workers append by themselves: nobody routes.
        rows = []
    return _Routes(
        {service: topic for service, topic, enabled in rows if enabled},
        tuple(dict.fromkeys(topic for _, topic, _ in rows)),
    )


def _snapshot() -> Snapshot[_Routes]:
    return Snapshot(
        _load_routes,
        initial=_Routes({}, ()),
        interval=conf.REFRESH_SECONDS,
        name="audit topic routes",
        load_first=True,
        # The background thread keeps its connection; one that broke must not be used for ever.
        before=close_old_connections,
    )


_routes = _snapshot()


def refresh() -> bool:
    """Read the topic routes now; return whether that worked."""
    return _routes.refresh()


def known() -> bool:
    """Whether topic routes were read at least once. Until then nobody knows where events belong,
    and none is taken."""
    _routes.get()
    return _routes.loaded_at is not None


def topic_for(service_name: str) -> str:
    """The topic of a service's events."""
    return _routes.get().enabled.get(service_name, conf.DEFAULT_TOPIC)


def topics() -> tuple[str, ...]:
    """Every topic that may hold events: the default one and each route's, also of routes that
    are switched off, whose topics may still hold unread records."""
    return tuple(dict.fromkeys((conf.DEFAULT_TOPIC, *_routes.get().topics)))


def record_key(service_name: str, endpoint_name: str) -> bytes:
    """The record's key: one service's endpoint stays in one partition, in order. What is before
    the first slash is the service, for its name has none."""
    return f"{service_name}/{endpoint_name}".encode()


def http_headers(meta: Mapping[str, Any], consumer_id: str = "") -> dict[str, str]:
    """The forwarded headers of an HTTP request, from WSGI's or ASGI's META.

    :param consumer_id: who sent the request, as authenticated; the header of that name is not
        believed, for its other spellings are not signed.
    :raises AmbiguousHeader: two headers mean the same thing.
    :raises InvalidHeader: a value is not text that a record can carry.
    """
    found: dict[str, str] = {}
    seen: set[str] = set()
    for name, raw in meta.items():
        key = _META_KEYS[name]
        if not key:
            continue
        # One name that came twice, or in two spellings, arrives as one value, joined by a comma.
        if key in seen or "," in raw:
            raise AmbiguousHeader(_BY_KEY[key])
        seen.add(key)
        value = _header_text(_BY_KEY[key], raw)
        if value and key != _CONSUMER:
            found[key] = value
    if consumer_id:
        found[_CONSUMER] = _header_text(CONSUMER_HEADER, consumer_id)
    return found


def _header_text(name: str, raw: str) -> str:
    try:
        # WSGI decodes the bytes of a header as Latin-1, whatever they are.
        value = (raw if raw.isascii() else raw.encode("latin-1").decode()).strip(" \t")
    except UnicodeError as error:
        raise InvalidHeader(name, "is not UTF-8.") from error
    if has_control(value):
        raise InvalidHeader(name, "holds a control character.")
    if len(raw) > MAX_HEADER_BYTES:
        raise InvalidHeader(name, f"has {len(raw):,} bytes; {MAX_HEADER_BYTES} are allowed.")
    return value


def _forwardable(value: str) -> bool:
    if value.isascii():
        return len(value) <= MAX_HEADER_BYTES and not has_control(value)
    return len(value.encode()) <= MAX_HEADER_BYTES and not has_control(value)


def consumers_named(event: LogEvent) -> list[tuple[str, str]]:
    """The consumer ids that an event names as its caller's, each with the field it stands in."""
    found = [("consumer_id", (event.consumer_id or "").strip())]
    for name, value in (event.headers or {}).items():
        if _OWN_NAMES[name][1] == _CONSUMER:
            found.append(("headers", value.strip()))
    return [(field, named) for field, named in found if named]


class Router:
    """Makes records of the events of one request.

    :param http: what :func:`http_headers` found in the request.
    :param now: epoch microseconds; the records' timestamp.
    """

    def __init__(self, http: Mapping[str, str], now: int) -> None:
        self._http = http
        self._now = now
        self._topics = _routes.get().enabled
        self._default_topic = conf.DEFAULT_TOPIC

    def to_record(self, event: LogEvent) -> tuple[str, Record]:
        """Return the topic and the record of an event.

        :raises InvalidEvent: the site it names cannot be routed by.
        :raises RegistryError: the schema's id is not known, and the registry does not tell it.
        """
        # Of several spellings of a header's name the first counts.
        shown: dict[str, str] = {}
        own: dict[str, str] = {}
        if event.headers:
            for name, value in event.headers.items():
                spelled, key = _OWN_NAMES[name]
                if spelled not in shown:
                    shown[spelled] = value
                if key and key not in own:
                    own[key] = value.strip()
        http = self._http
        site = (event.site_id or "").strip() or own.get(_SITE) or http.get(_SITE)
        if site and not _forwardable(site):
            where = "site_id" if event.site_id else f"headers.{SITE_HEADER}"
            raise InvalidEvent(
                where, f"it has more than {MAX_HEADER_BYTES} bytes, or holds a control character"
            )
        consumer = (event.consumer_id or "").strip() or own.get(_CONSUMER)
        values = dict(http)
        for key, value in own.items():
            if value:
                values[key] = value
        trace_id = (event.trace_id or "").strip().lower()
        if trace_id not in values.get(TRACE, "").lower():
            # Whoever brought the event was in a trace of its own.
            values.pop(TRACE, None)
        values[_SITE] = site or ""
        values[_CONSUMER] = consumer or http.get(_CONSUMER, "")
        topic = self._topics.get(event.service_name, self._default_topic)
        fields = to_avro(event, headers=shown, site_id=site or None, consumer_id=consumer or None)
        return topic, Record(
            value=frame(fields, topic),
            key=record_key(event.service_name, fields["endpoint_name"]),
            headers=_record_headers(values, event.request_id),
            timestamp=self._now,
        )


def _record_headers(values: Mapping[str, str], request_id: str) -> tuple[Header, ...]:
    headers: list[Header] = []
    for key, name in _BY_KEY.items():
        carried = values.get(key)
        if not carried:
            continue
        if _forwardable(carried):
            headers.append((name, carried.encode()))
        else:
            # The audited service's caller chose it. It stays in the event's own headers: who
            # sends odd headers must not be able to keep a request out of the audit log.
            metrics.HEADERS_LEFT_OUT.labels(name).inc()
    headers.append((REQUEST_ID_HEADER, request_id.encode()))
    return tuple(headers)


def _reconfigure(*, setting: str, **kwargs: Any) -> None:
    global _routes
    if setting == PublisherSettings.prefix:
        _routes.stop(0)
        _routes = _snapshot()


setting_changed.connect(_reconfigure)
