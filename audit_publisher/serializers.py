"""The JSON event: its fields, what each may hold, and what is said when one does not."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from itertools import islice
from typing import Annotated, Any, Literal, TypeVar
from uuid import UUID

import msgspec
from msgspec import Meta

from .conf import conf
from .exceptions import InvalidEvent, TooManyItems
from .names import has_control

T = TypeVar("T")

BodyState = Literal[
    "full",
    "redacted",
    "truncated",
    "omitted_size",
    "omitted_binary",
    "omitted_parse",
    "omitted_policy",
]
Outcome = Literal["completed", "failed", "disconnected"]

_LONG = 2**63 - 1
_Size = Annotated[int, Meta(ge=0, le=_LONG)]
_Name = Annotated[str, Meta(min_length=1, max_length=200)]
#: What becomes a record header or a column that people filter by.
_Id = Annotated[str, Meta(max_length=256)]

#: 1970-01-01 and 2200-01-01, in seconds.
EARLIEST, LATEST = 0, 7_258_118_400


#: Fields that become record headers, keys or names of folders.
WITHOUT_CONTROL = (
    "service_name",
    "endpoint_name",
    "method",
    "consumer_id",
    "site_id",
    "trace_id",
)


_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_ANY_UUID = re.compile(f"(?i){_UUID.pattern}|[0-9a-f]{{32}}")


class LogEvent(msgspec.Struct, gc=False, weakref=False):
    """One audited HTTP interaction, as clients send it. Unknown fields are ignored."""

    request_id: Annotated[str, Meta(extra_json_schema={"format": "uuid"})]
    service_name: _Name
    endpoint_name: Annotated[str, Meta(max_length=1000)]
    path: str
    method: Annotated[str, Meta(min_length=1, max_length=40)]
    response_code: Annotated[int, Meta(ge=0, le=999)]
    request_ts: int | float
    response_ts: int | float
    request_body: str | None = None
    response_body: str | None = None
    error_reason: str | None = None
    headers: dict[str, str] | None = None
    trace_id: _Id | None = None
    consumer_id: _Id | None = None
    site_id: _Id | None = None
    user: str | None = None
    outcome: Outcome | None = None
    request_size: _Size | None = None
    response_size: _Size | None = None
    request_body_state: BodyState | None = None
    response_body_state: BodyState | None = None
    producer_epoch: _Id | None = None
    seq: _Size | None = None
    token_fingerprint: _Id | None = None


_decoder = msgspec.json.Decoder(LogEvent)
_AT = re.compile(r" - at `\$\.?(?P<path>[^`]*)`$")
_MISSING = re.compile(r"Object missing required field `(?P<name>[^`]+)`")


def parse_event(data: bytes | msgspec.Raw) -> LogEvent:
    """Return the event in one JSON object.

    :raises InvalidEvent: it is JSON, but not a valid event; names the field and the reason.
    :raises ValueError: it is not JSON.
    """
    event = decode_with(_decoder, data)
    _check(event)
    return event


def decode_with(decoder: msgspec.json.Decoder[T], data: bytes | msgspec.Raw) -> T:
    """Return what `decoder` makes of one JSON object.

    :raises InvalidEvent: it is JSON, but not valid; names the field and the reason.
    :raises ValueError: it is not JSON.
    """
    try:
        return decoder.decode(data)
    except msgspec.ValidationError as error:
        raise _explain(str(error)) from error
    except RecursionError as error:
        raise InvalidEvent("", "it is nested too deeply") from error
    except msgspec.DecodeError as error:
        raise ValueError(_not_json(data, error)) from error


def _not_json(data: bytes | msgspec.Raw, error: Exception) -> str:
    """What to say of bytes that no parser takes."""
    first = bytes(memoryview(data)[:4])
    if first[:3] == b"\xef\xbb\xbf" or first[:2] in (b"\xff\xfe", b"\xfe\xff") or 0 in first:
        return "Send UTF-8, without a byte order mark."
    return str(error)


def split_array(data: bytes, limit: int) -> list[msgspec.Raw]:
    """Return the items of a JSON array, each still as its bytes.

    :param limit: items at most.
    :raises TooManyItems: there are more. Not all of them were looked at.
    :raises ValueError: it is not a JSON array.
    """
    # An item in memory takes forty times what "0," takes on the wire.
    if len(data) > 2 * _ITEMS_AT_ONCE and data.count(b",") >= max(limit, _ITEMS_AT_ONCE):
        _look_at_first(data, limit)
    try:
        items = msgspec.json.decode(data, type=list[msgspec.Raw])
    except msgspec.ValidationError as error:
        raise ValueError("The batch is not a JSON array of events.") from error
    except RecursionError as error:
        raise ValueError("The batch is nested too deeply.") from error
    except msgspec.DecodeError as error:
        raise ValueError(_not_json(data, error)) from error
    if len(items) > limit:
        raise TooManyItems(limit)
    return items


#: Items that may be made before they are counted.
_ITEMS_AT_ONCE = 250_000


@lru_cache(maxsize=2)
def _first(limit: int) -> msgspec.json.Decoder[Any]:
    """Takes the first items of an array, one more than `limit`, and passes over the others without
    making anything of them."""
    fields = [(f"item{index}", msgspec.Raw, msgspec.Raw()) for index in range(limit + 1)]
    return msgspec.json.Decoder(msgspec.defstruct("First", fields, array_like=True, gc=False))


def _look_at_first(data: bytes, limit: int) -> None:
    """Raise TooManyItems if a JSON array has more than `limit` items.

    No values are made: one item may be millions of lists. What is no array is left to others.
    """
    try:
        found = _first(limit).decode(data)
    except (msgspec.DecodeError, RecursionError):
        return
    if len(getattr(found, f"item{limit}")):
        raise TooManyItems(limit)


#: A line from its first visible character on; blank ones are passed over.
_LINE = re.compile(rb"[^ \t\r\n\x0b\x0c][^\n]*")


def split_lines(data: bytes, limit: int) -> list[bytes]:
    """Return the lines of `data` that are not blank.

    :param limit: lines at most.
    :raises TooManyItems: there are more. Not all of them were looked at.
    """
    lines = [match[0] for match in islice(_LINE.finditer(data), limit + 1)]
    if len(lines) > limit:
        raise TooManyItems(limit)
    return lines


def request_id_of(data: bytes | msgspec.Raw) -> str | None:
    """The request_id in something that may not be an event, or None; also of what is longer than
    an event may be, which is not looked at again."""
    if len(data) > conf.MAX_EVENT_BYTES:
        return None
    try:
        found = short_text(_only_id.decode(data).request_id)
    except (ValueError, RecursionError):
        return None
    return found if found is not None and len(found) <= 64 else None


def short_text(data: msgspec.Raw) -> str | None:
    """A JSON string of some ten characters, or None for anything else, of which nothing is made.

    :raises ValueError: it is a string that is malformed.
    """
    # Each character may be escaped, by six.
    if len(data) > 6 * 64 + 2 or bytes(data)[:1] != b'"':
        return None
    return msgspec.json.decode(data, type=str)


class _OnlyId(msgspec.Struct):
    request_id: msgspec.Raw = msgspec.Raw()


_only_id = msgspec.json.Decoder(_OnlyId)


def _explain(message: str) -> InvalidEvent:
    """Turn msgspec's sentence into the field and the reason."""
    missing = _MISSING.match(message)
    if missing:
        return InvalidEvent(missing["name"], "it is missing")
    at = _AT.search(message)
    reason = message[: at.start()] if at else message
    reason = reason.replace("`", "")
    if reason.startswith("Invalid enum value"):
        reason = "it is not one of the values allowed"
    return InvalidEvent(at["path"] if at else "", reason[:1].lower() + reason[1:])


def _check(event: LogEvent) -> None:
    if has_control(
        f"{event.service_name}{event.endpoint_name}{event.method}"
        f"{event.consumer_id}{event.site_id}{event.trace_id}"
    ):
        for name in WITHOUT_CONTROL:
            if has_control(getattr(event, name) or ""):
                raise InvalidEvent(name, "it holds a control character")
    check_service_name(event.service_name)
    if not _UUID.fullmatch(event.request_id):
        event.request_id = _uuid(event.request_id)
    for name in ("request_ts", "response_ts"):
        value = getattr(event, name)
        # A response may precede its request: clocks step back.
        if not is_epoch_seconds(value):
            hint = ": it looks like milliseconds, send seconds" if value > LATEST else ""
            raise InvalidEvent(name, f"it is not a time in epoch seconds, 1970 to 2200{hint}")


def _uuid(text: str) -> str:
    """The usual spelling of a UUID in capitals or without hyphens."""
    if not _ANY_UUID.fullmatch(text):
        raise InvalidEvent("request_id", "invalid UUID")
    return str(UUID(text))


def check_service_name(name: str) -> None:
    """Raise InvalidEvent if a service's name would not come out of a record's key again."""
    if "/" in name:
        raise InvalidEvent("service_name", "it holds a slash")


def is_epoch_seconds(value: int | float) -> bool:
    """Whether `value` is a time of the years 1970 to 2200."""
    return EARLIEST <= value <= LATEST


def micros(seconds: int | float) -> int:
    """Epoch seconds as microseconds. Every microsecond that was sent comes back, of the years 1970
    to 2200: a float is then off by less than half of one, if nothing is added to that; so seconds
    and their fraction are taken apart, which is exact."""
    if isinstance(seconds, int):
        return seconds * 1_000_000
    whole = int(seconds)
    return whole * 1_000_000 + round((seconds - whole) * 1_000_000)


def to_avro(
    event: LogEvent, *, headers: Mapping[str, str], site_id: str | None, consumer_id: str | None
) -> dict[str, Any]:
    """The event as log_event.avsc has it.

    :param headers: the event's own, by names in one spelling.
    """
    fields = msgspec.structs.asdict(event)
    fields["method"] = event.method.upper()
    fields["endpoint_name"] = event.endpoint_name.lstrip("/")
    fields["request_ts"] = micros(event.request_ts)
    fields["response_ts"] = micros(event.response_ts)
    fields["headers"] = headers
    fields["outcome"] = event.outcome or "completed"
    fields["request_body_state"] = event.request_body_state or "full"
    fields["response_body_state"] = event.response_body_state or "full"
    fields["site_id"] = site_id
    fields["consumer_id"] = consumer_id
    return fields
