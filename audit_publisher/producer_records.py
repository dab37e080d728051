"""Producer records: how many events a capture process says it has numbered.

They come in batches, beside events, and go to the events' topic, so that they take the same way
and wait for the same things. They are JSON, not Avro, and carry a header of their own, which keeps
them out of the lake: what is in there stays one row a request.
"""

from __future__ import annotations

from typing import Annotated, Literal
from uuid import UUID

import msgspec
from msgspec import Meta

from audit_logging.spool import Record

from . import routing
from .exceptions import InvalidEvent
from .names import CONTROL
from .serializers import check_service_name, decode_with, is_epoch_seconds, short_text

#: The header that tells such a record from an event, always the first one; its value names the
#: kind. Events never carry it: what is forwarded with them is a closed list.
HEADER = "audit-record"
KIND = b"producer"

#: The form has no room for more; with this bound the ledger's rows stay small.
MAX_BYTES = 8192

_LONG = 2**63 - 1
_Count = Annotated[int, Meta(ge=0, le=_LONG)]
_Counts = Annotated[
    dict[Annotated[str, Meta(min_length=1, max_length=64)], _Count], Meta(max_length=50)
]


class ProducerRecord(msgspec.Struct, tag_field="record", tag="producer", omit_defaults=False):
    """What one capture process says of itself. Unknown fields are ignored."""

    request_id: Annotated[UUID, Meta(description="Tells this record from others.")]
    service_name: Annotated[str, Meta(min_length=1, max_length=200)]
    producer_epoch: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=64,
            pattern=r"^[\x21-\x7e]+$",
            description="The process: the same as in its events.",
        ),
    ]
    seq: Annotated[
        int,
        Meta(
            ge=0,
            le=_LONG,
            description="How many numbers it has given, from 0: the next event's seq.",
        ),
    ]
    state: Annotated[
        Literal["open", "closed", "lost"],
        Meta(
            description="open: it goes on. closed: it ended in good order. lost: it was killed, "
            "and another process says so for it."
        ),
    ]
    started_at: Annotated[float, Meta(description="Epoch seconds.")]
    at: Annotated[float, Meta(description="Epoch seconds; when this was said.")]
    host: Annotated[str, Meta(max_length=255)] = ""
    pid: _Count = 0
    dropped: Annotated[
        _Counts, Meta(description="Numbered events that it dropped so far, by reason.")
    ] = {}
    skipped: Annotated[
        _Counts, Meta(description="Requests that it left out on purpose so far, by reason.")
    ] = {}


class _Kind(msgspec.Struct):
    record: msgspec.Raw = msgspec.Raw()


_decoder = msgspec.json.Decoder(ProducerRecord)
_kind = msgspec.json.Decoder(_Kind)


def is_producer_record(data: bytes) -> bool:
    """Whether JSON that is no event is a producer record."""
    try:
        return short_text(_kind.decode(data).record) == KIND.decode()
    except (ValueError, RecursionError):
        return False


def parse_producer_record(data: bytes) -> ProducerRecord:
    """Return the producer record in one JSON object.

    :raises InvalidEvent: names the field and the reason.
    :raises ValueError: it is not JSON.
    """
    if len(data) > MAX_BYTES:
        raise InvalidEvent("", f"it has {len(data):,} bytes; {MAX_BYTES:,} are allowed")
    record = decode_with(_decoder, data)
    for name in ("service_name", "producer_epoch", "host"):
        if CONTROL.search(getattr(record, name)):
            raise InvalidEvent(name, "it holds a control character")
    check_service_name(record.service_name)
    for name in ("started_at", "at"):
        if not is_epoch_seconds(getattr(record, name)):
            raise InvalidEvent(name, "it is not a time in epoch seconds, 1970 to 2200")
    return record


def to_record(record: ProducerRecord, now: int) -> tuple[str, Record]:
    """Return the topic and the event log's record.

    :param now: epoch microseconds; the record's timestamp.
    """
    headers = (
        (HEADER, KIND),
        (routing.REQUEST_ID_HEADER, str(record.request_id).encode()),
    )
    return routing.topic_for(record.service_name), Record(
        value=msgspec.json.encode(record),
        key=routing.record_key(record.service_name, record.producer_epoch),
        headers=headers,
        timestamp=now,
    )
