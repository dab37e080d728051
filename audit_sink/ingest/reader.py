"""Read one range of a partition, and keep what belongs to the sink."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from audit_publisher.eventlog.base import EventLog, Limits, StoredRecord
from audit_publisher.exceptions import OffsetOutOfRange
from audit_publisher.producer_records import ProducerRecord

from ..conf import conf
from ..exceptions import RangeUnavailable
from .producers import producer_record
from .sites import SiteFilter

#: Records and bytes asked for at once; what is not kept is let go of before the next are read.
_CHUNK_RECORDS = 5_000
_CHUNK_BYTES = 8 << 20
#: Only records that the high watermark promises are asked for, so this is waited for a slow
#: broker alone.
_READ_SECONDS = 5.0


@dataclass
class Range:
    """What was read of [`start`, `end`).

    :ivar kept: the sink's own records, in the order of the log.
    :ivar producers: what capture processes say of themselves, among its own; no rows of the lake.
    :ivar read: records read, of whatever owner.
    :ivar full: a limit was reached; there may be more.
    :ivar oldest: epoch micros of the first record, whoever owns it; None when there is none.
    """

    start: int
    end: int
    kept: list[StoredRecord] = field(default_factory=list)
    producers: list[ProducerRecord] = field(default_factory=list)
    kept_bytes: int = 0
    read: int = 0
    full: bool = False
    oldest: int | None = None


def read_range(
    log: EventLog,
    topic: str,
    partition: int,
    start: int,
    sites: SiteFilter,
    sink: str,
    *,
    end: int | None = None,
) -> Range:
    """Read from `start` until a limit of the settings is reached, or the log's end.

    :param end: read exactly up to this offset, whatever the limits: a claimed range is redone.
    :raises RangeUnavailable: the log no longer, or not yet, holds the range.
    """
    found = Range(start, start)
    stop = log.watermarks(topic, partition)[1] if end is None else end
    while found.end < stop and not found.full:
        records = _read(log, topic, partition, found.end)
        if end is not None:
            records = [record for record in records if record.offset < end]
        if not records:
            break
        if found.oldest is None:
            found.oldest = records[0].timestamp
        _keep(found, records, sites, sink, bounded=end is None)
    if end is not None and found.end != end:
        # A claimed range ends with a record that was read once, so it must come again; an empty
        # answer may only be a slow one.
        raise RangeUnavailable(
            f"{log.region} {topic}/{partition} gave records up to offset {found.end}; the ledger "
            f"has claimed up to {end}. If the topic was made anew, its old records are lost."
        )
    return found


def _read(log: EventLog, topic: str, partition: int, start: int) -> Sequence[StoredRecord]:
    try:
        return log.read(
            topic,
            partition,
            start,
            Limits(max_records=_CHUNK_RECORDS, max_bytes=_CHUNK_BYTES, timeout=_READ_SECONDS),
        )
    except OffsetOutOfRange as error:
        if start < error.low:
            what = (
                f"offsets {start} to {error.low} are gone: the log's retention passed before they "
                f"were stored. Accept it at /admin/audit_sink/lane/ to go on"
            )
        else:
            what = f"the log has no offset {start} (any more): was the topic made anew?"
        raise RangeUnavailable(f"{log.region} {topic}/{partition}: {what}.") from error


def _keep(
    found: Range, records: Sequence[StoredRecord], sites: SiteFilter, sink: str, *, bounded: bool
) -> None:
    max_records = conf.MAX_BATCH_RECORDS
    max_bytes = conf.MAX_BATCH_BYTES
    max_scan = conf.MAX_SCAN_RECORDS
    full = False
    for record in records:
        if sites.owner(record.headers) == sink:
            size = record.size
            taken = len(found.kept) + len(found.producers)
            if bounded and taken and found.kept_bytes + size > max_bytes:
                found.full = True
                return
            said = producer_record(record)
            if said is None:
                found.kept.append(record)
            else:
                found.producers.append(said)
            found.kept_bytes += size
            full = taken + 1 >= max_records
        found.read += 1
        found.end = record.offset + 1
        if bounded and (full or found.read >= max_scan):
            found.full = True
            return
