"""AuditEvent: one audited HTTP interaction, and how it is built from what the middleware saw.

Runs on the background thread: all parsing, redaction and encoding happens here.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import operator
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from json.encoder import c_make_encoder, encode_basestring  # type: ignore[attr-defined]
from typing import Any

from django.conf import settings
from django.urls import resolve

from .capture import Exchange
from .conf import LoggingSettings
from .content import UNKNOWN_TYPE, Body, is_recordable, media_label
from .fingerprint import Fingerprints
from .redaction import MASK, Redactor

_TRACEPARENT = re.compile(r"^[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?$")
_ROUTE_CONVERTER = re.compile(r"<(?:[\w.]+:)?(\w+)>")
_ROUTE_GROUP = re.compile(r"\(\?P<(\w+)>(?:[^()]|\([^()]*\))*\)")

# What the publisher refuses in what people filter by: nobody's request is to be refused for it.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")

#: The endpoint of a request that no route matched. Its path would make endless endpoints.
UNMATCHED = "unmatched"

# Bounds of single fields: a hostile request must not make a hostile row.
_MAX_NAME = 256
_MAX_PATH = 8192
_MAX_HEADER = 4096
_MAX_REASON = 1000
_REASON_KEYS = ("detail", "error_description", "error", "message", "reason", "title", "errors")

_REDIRECTS = (301, 302, 307, 308)

#: In the routes of our pages in admin. They show events: recorded with their bodies, looking at
#: dead letters would make more of them.
_OWN_PAGES = "audit_logging/"

OMITTED_POLICY = Body(None, "omitted_policy")


@dataclass(slots=True)
class AuditEvent:
    """One audited interaction, redacted; the fields are those of the JSON event.

    ``request_ts`` and ``response_ts`` are epoch seconds with fractions; sizes are bytes.
    """

    request_id: str
    service_name: str
    endpoint_name: str
    path: str
    method: str
    response_code: int
    request_ts: float
    response_ts: float
    request_body: str | None = None
    response_body: str | None = None
    error_reason: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    trace_id: str | None = None
    consumer_id: str | None = None
    site_id: str | None = None
    user: str | None = None
    outcome: str = "completed"
    request_size: int | None = None
    response_size: int | None = None
    request_body_state: str = "full"
    response_body_state: str = "full"
    producer_epoch: str | None = None
    seq: int | None = None
    token_fingerprint: str | None = None

    def to_json(self) -> str:
        """Return the JSON form, on one line, valid as UTF-8."""
        text = "".join(_chunks(dict(zip(_FIELDS, _values(self), strict=True)), 0))
        if text.isascii():
            return text
        # Lone surrogates (from broken JSON escapes) have no UTF-8 form.
        return text.encode("utf-8", "replace").decode("utf-8")


_FIELDS = tuple(item.name for item in dataclasses.fields(AuditEvent))
_values = operator.attrgetter(*_FIELDS)
# One encoder for all events, where there is one in C: to make it takes as long as to use it.
_encoder = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)
_chunks: Callable[[Any, int], Iterable[str]] = (
    c_make_encoder(None, _encoder.default, encode_basestring, None, ":", ",", False, False, False)
    if c_make_encoder
    else lambda fields, _: _encoder.iterencode(fields)
)


class EventBuilder:
    """Turns exchanges into events by one service's settings.

    :param breathe: called wherever the work could pause: it shares the service's interpreter.
    """

    def __init__(self, conf: LoggingSettings, breathe: Callable[[], None] = lambda: None) -> None:
        self._conf = conf
        self._breathe = breathe
        self._service = conf.SERVICE_NAME or "unnamed-service"
        self._headers = _header_keys(tuple(conf.HEADERS))
        self._redactors: dict[int, Redactor] = {}
        self._fingerprints = Fingerprints(conf.FINGERPRINT_KEY_PATH)

    def build(self, exchange: Exchange) -> AuditEvent:
        """Return the event of one exchange; its bodies fit MAX_EVENT_BYTES once encoded."""
        meta = exchange.meta
        redactor = self._redactor(exchange.max_body_bytes)
        path = redactor.path(exchange.path, exchange.kwargs)
        query = redactor.query(_text(meta.get("QUERY_STRING", "")))
        request_body = self._request_body(exchange, redactor)
        response_body = self._response_body(exchange, redactor)
        traceparent = None
        if sent := meta.get("HTTP_TRACEPARENT"):
            traceparent = _TRACEPARENT.match(sent.strip().lower())
        return AuditEvent(
            request_id=request_id(exchange),
            service_name=self._service,
            endpoint_name=endpoint_name(exchange.route),
            path=_clip(f"{path}?{query}" if query else path, _MAX_PATH),
            method=_CONTROL.sub("\ufffd", (exchange.method or "")[:32].upper()) or "UNKNOWN",
            response_code=exchange.status,
            request_ts=round(exchange.started, 6),
            response_ts=round(exchange.started + exchange.duration, 6),
            request_body=request_body.text,
            response_body=response_body.text,
            error_reason=self._reason(exchange, response_body, redactor),
            headers=self._header_values(meta, redactor),
            trace_id=traceparent.group(1) if traceparent else None,
            consumer_id=_header(meta, redactor, "HTTP_WM_CONSUMER.ID", "HTTP_WM_CONSUMER_ID"),
            site_id=_header(meta, redactor, "HTTP_WM_SITE_ID"),
            user=exchange.user and redactor.header(exchange.user)[:_MAX_NAME],
            outcome=exchange.outcome,
            request_size=exchange.request_size,
            response_size=exchange.response_size,
            request_body_state=request_body.state,
            response_body_state=response_body.state,
            producer_epoch=exchange.producer_epoch,
            seq=exchange.seq,
            token_fingerprint=self._fingerprints.of(meta),
        )

    def encode(self, event: AuditEvent) -> str:
        """Return the event's JSON line, without its bodies if it would be too large with them."""
        line = event.to_json()
        limit = self._conf.MAX_EVENT_BYTES
        for body in ("response_body", "request_body"):
            if _utf8_size(line) <= limit:
                return line
            if getattr(event, body):
                setattr(event, f"{body}_state", "omitted_size")
                setattr(event, body, "[too large: the event would pass MAX_EVENT_BYTES]")
                line = event.to_json()
        if _utf8_size(line) > limit:
            event.headers = {}
            # A character may take twelve bytes, as a pair of escapes.
            event.path = _clip(event.path, 256)
            event.error_reason = event.error_reason and _clip(event.error_reason, 100)
            line = event.to_json()
        return line

    def _redactor(self, max_body_bytes: int) -> Redactor:
        redactor = self._redactors.get(max_body_bytes)
        if redactor is None:
            redactor = Redactor(self._conf.REDACT_KEYS, max_body_bytes, self._breathe)
            # The cap is a flag that changes seldom; keep no heap of old ones.
            self._redactors = {max_body_bytes: redactor}
        return redactor

    def _request_body(self, exchange: Exchange, redactor: Redactor) -> Body:
        if not exchange.wants_request_body or _OWN_PAGES in (exchange.route or ""):
            return OMITTED_POLICY
        meta = exchange.meta
        raw = exchange.request_body
        content_type = meta.get("CONTENT_TYPE", "")
        if raw is not None:
            return redactor.body(raw, content_type, meta.get("HTTP_CONTENT_ENCODING", ""))
        size = exchange.request_size
        media = media_label(content_type)
        if exchange.request_unread:
            return Body(f"[not read: {media}, length unknown]", "omitted_size")
        if not size:
            return Body("", "full")
        if not is_recordable(content_type):
            return Body(f"[not text: {media}, {size} bytes]", "omitted_binary")
        django_limit = settings.DATA_UPLOAD_MAX_MEMORY_SIZE
        if size > exchange.max_body_bytes or (django_limit is not None and size > django_limit):
            return Body(f"[too large: {media}, {size} bytes]", "omitted_size")
        taken = exchange.request_taken
        if taken:
            return Body(f"[read in part: {media}, {taken} of {size} bytes]", "truncated")
        if taken == 0:
            # The service answered without a look at it, or the caller left while sending it.
            return Body(f"[not read: {media}, {size} bytes]", "omitted_parse")
        # The service took it as a stream before us.
        return Body(f"[could not be read: {media}, {size} bytes]", "omitted_parse")

    def _response_body(self, exchange: Exchange, redactor: Redactor) -> Body:
        if not exchange.wants_response_body or _OWN_PAGES in (exchange.route or ""):
            return OMITTED_POLICY
        content_type = exchange.response_type
        media = media_label(content_type)
        size = exchange.response_size
        if exchange.response_body is None:
            if not exchange.response_size and not exchange.response_is_file:
                return Body("", "full")
            if exchange.response_is_file:
                return Body(f"[a file: {media}, {size} bytes]", "omitted_binary")
            return Body(f"[too large: {media}, {size} bytes]", "omitted_size")
        if exchange.response_truncated and not exchange.response_body:
            return Body(f"[too large: {media}, {size} bytes]", "omitted_size")
        return redactor.body(
            exchange.response_body,
            content_type,
            exchange.response_encoding,
            truncated=exchange.response_truncated,
        )

    def _header_values(self, meta: dict[str, Any], redactor: Redactor) -> dict[str, str]:
        values = {}
        for key, name in self._headers.items():
            value = meta.get(key)
            if isinstance(value, str) and value:
                text = MASK if redactor.is_sensitive(name) else redactor.header(_text(value))
                if name == "content-type" and media_label(value) == UNKNOWN_TYPE:
                    text = UNKNOWN_TYPE
                values[name] = _clip(text, _MAX_HEADER)
        return values

    def _reason(self, exchange: Exchange, body: Body, redactor: Redactor) -> str | None:
        if exchange.status < 400 and exchange.error is None:
            return None
        reason = exchange.error or _reason_in(body) or exchange.reason_phrase
        return _clip(redactor.text(reason), _MAX_REASON) or None


@lru_cache(maxsize=8)
def _header_keys(headers: tuple[str, ...]) -> dict[str, str]:
    """The keys of META that hold these headers, and what each is called in events."""
    names = [name.lower().replace("_", "-") for name in headers]
    keys = {f"HTTP_{name.upper().replace('-', '_')}": name for name in names}
    for special in ("content-type", "content-length"):
        if special in names:
            keys[special.upper().replace("-", "_")] = special
    return keys


def request_id(exchange: Exchange) -> str:
    """Return an exchange's id, always the same: two processes or threads that build one event,
    where one took over from the other, make one row."""
    number = f"{exchange.producer_epoch}:{exchange.seq}".encode()
    digest = hashlib.blake2b(number, digest_size=16).hexdigest()
    # As UUID(bytes=…, version=4) would write it.
    variant = "89ab"[int(digest[16], 16) & 3]
    return f"{digest[:8]}-{digest[8:12]}-4{digest[13:16]}-{variant}{digest[17:20]}-{digest[20:]}"


def is_incomplete(exchange: Exchange) -> bool:
    """Whether the service's own process can tell more: of a path that was redirected, perhaps to
    where a slash stands at its end, which has no route."""
    redirected = exchange.route is None and exchange.status in _REDIRECTS
    return redirected and not exchange.path.endswith("/") and len(exchange.path) <= _MAX_PATH


def complete(exchange: Exchange) -> None:
    """Fill in what a route would have taken from an incomplete exchange's path. It asks the
    service's own code, which may open connections to its databases."""
    try:
        exchange.kwargs = resolve(f"{exchange.path}/").captured_kwargs or {}
    except Exception:  # noqa: BLE001, S110
        # No such route; or none at all, or a converter of the service's that fails: an event
        # is not lost for that.
        pass


@lru_cache(maxsize=2048)
def endpoint_name(route: str | None) -> str:
    """Return a route as an endpoint's name: ``dsd/v1/shipments/<id>``, without converters."""
    if route is None:
        return UNMATCHED
    name = _ROUTE_GROUP.sub(r"<\1>", route)
    name = _ROUTE_CONVERTER.sub(r"<\1>", name)
    name = name.replace("^", "").replace("\\Z", "").replace("$", "").replace("\\", "")
    return name.strip("/")[:_MAX_NAME] or "root"


def _reason_in(body: Body) -> str:
    """The first thing in an error's JSON body that reads like a reason."""
    if body.state not in ("full", "redacted") or not body.text or len(body.text) > 65_536:
        return ""
    try:
        document = json.loads(body.text)
    except (ValueError, RecursionError):
        return ""
    if isinstance(document, dict):
        for key in _REASON_KEYS:
            if document.get(key):
                found = document[key]
                return found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)
        # Field errors, as DRF writes them.
        return json.dumps(document, ensure_ascii=False) if document else ""
    if isinstance(document, list) and document:
        return json.dumps(document[:3], ensure_ascii=False)
    return ""


def _header(meta: dict[str, Any], redactor: Redactor, *keys: str) -> str | None:
    for key in keys:
        value = meta.get(key)
        if isinstance(value, str) and value.strip():
            return _CONTROL.sub("\ufffd", redactor.header(_text(value.strip()))[:_MAX_NAME])
    return None


def _text(value: str) -> str:
    """Undo the Latin-1 reading that WSGI gives to UTF-8 bytes, where that is what it was."""
    if value.isascii():
        return value
    try:
        return value.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return value


def _clip(value: str, limit: int) -> str:
    return value if len(value) <= limit else f"{value[: limit - 1]}…"


def _utf8_size(line: str) -> int:
    return len(line) if line.isascii() else len(line.encode())
