"""Hand records that cannot be stored to the topic ``<topic>_DLQ``, with Kafka Connect's headers.

The record goes as it came: key, value and its own headers; what is added says where it stood and
why it is there. It may be sent twice when a worker dies in between; never not at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from audit_publisher.eventlog.base import EventLog, Record, StoredRecord
from audit_publisher.exceptions import EventLogError
from audit_publisher.names import DEAD_LETTER_SUFFIX

from ..exceptions import DeadLetterFailed
from ..metrics import DEAD_LETTERS
from .claims import Poison

_PREFIX = "__connect.errors."
#: Records handed over at once.
_CHUNK = 500


def dead_letter_topic(topic: str) -> str:
    """The topic of `topic`'s unusable records."""
    return f"{topic}{DEAD_LETTER_SUFFIX}"


def send(
    log: EventLog,
    sink: str,
    topic: str,
    partition: int,
    poison: Sequence[Poison],
    records: Iterable[StoredRecord],
) -> None:
    """Append the `poison` ones of `records` to the dead-letter topic; return when durable.

    :raises DeadLetterFailed: one was not acknowledged.
    """
    if not poison:
        return
    by_offset = {item.offset: item for item in poison}
    letters = [
        _letter(record, by_offset[record.offset], sink, topic, partition)
        for record in records
        if record.offset in by_offset
    ]
    target = dead_letter_topic(topic)
    try:
        log.ensure_topic(target, 1)
        for start in range(0, len(letters), _CHUNK):
            for receipt in log.append(target, letters[start : start + _CHUNK]):
                if receipt.error is not None:
                    raise receipt.error
    except EventLogError as error:
        raise DeadLetterFailed(f"{log.region} {target} does not take a record: {error}") from error
    for item in poison:
        DEAD_LETTERS.labels(sink, item.reason).inc()


def _letter(record: StoredRecord, why: Poison, sink: str, topic: str, partition: int) -> Record:
    added = {
        "topic": topic,
        "partition": str(partition),
        "offset": str(record.offset),
        "connector.name": f"audit-sink-{sink}",
        "exception.class.name": f"audit_sink.PoisonRecord.{why.reason}",
        "exception.message": why.message,
    }
    return Record(
        value=record.value,
        key=record.key,
        headers=(
            *record.headers,
            *((_PREFIX + name, text.encode("utf-8", "replace")) for name, text in added.items()),
        ),
        timestamp=record.timestamp,
    )
