"""What capture processes say of their numbering, from the event log to the ledger."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from audit_publisher.eventlog.base import StoredRecord
from audit_publisher.exceptions import InvalidEvent
from audit_publisher.producer_records import HEADER, KIND, ProducerRecord, parse_producer_record

from ..models import Producer

_Key = tuple[str, str]

#: Kinds of loss are a closed list; what somebody makes up shall not fill the ledger.
_MOST_REASONS = 50


def producer_record(record: StoredRecord) -> ProducerRecord | None:
    """Return what `record` says if it is a producer record; None for every other one.

    One that cannot be read is like an event that cannot be read: it goes to the dead letters.
    """
    # Asked of each record; the header is always the first.
    headers = record.headers
    if not headers or headers[0][0] != HEADER or headers[0][1] != KIND:
        return None
    try:
        return parse_producer_record(bytes(record.value))
    except (InvalidEvent, ValueError):
        return None


def record_producers(said: Sequence[ProducerRecord]) -> None:
    """Bring the ledger's producers up to what was said; call in a transaction that has written.

    In any order, and any number of times, the same records give the same rows: counts only grow,
    and an end stays the end.
    """
    news: dict[_Key, list[ProducerRecord]] = {}
    for record in said:
        news.setdefault((record.service_name, record.producer_epoch), []).append(record)
    # In one order everywhere, so that two lanes cannot deadlock.
    keys = sorted(news)
    for start in range(0, len(keys), 200):
        _record_some(keys[start : start + 200], news)


def _record_some(keys: Sequence[_Key], news: dict[_Key, list[ProducerRecord]]) -> None:
    Producer.objects.bulk_create(
        [_new(news[key][0]) for key in keys],
        ignore_conflicts=True,
    )
    rows = (
        Producer.objects.select_for_update()
        .filter(epoch__in=[epoch for _, epoch in keys])
        .order_by("service_name", "epoch")
    )
    changed = []
    for row in rows:
        records = news.get((row.service_name, row.epoch), ())
        for record in records:
            _merge(row, record)
        if records:
            changed.append(row)
    fields = ["seq", "state", "last_at", "dropped", "skipped"]
    Producer.objects.bulk_update(changed, fields, batch_size=50)


def _new(record: ProducerRecord) -> Producer:
    return Producer(
        service_name=record.service_name,
        epoch=record.producer_epoch,
        host=record.host,
        pid=record.pid,
        started_at=_when(record.started_at),
        last_at=_when(record.at),
    )


def _merge(row: Producer, record: ProducerRecord) -> None:
    row.seq = max(row.seq, record.seq)
    row.last_at = max(row.last_at, _when(record.at))
    if row.state == Producer.State.OPEN:
        row.state = record.state
    for totals, more in ((row.dropped, record.dropped), (row.skipped, record.skipped)):
        for reason, count in more.items():
            if reason in totals or len(totals) < _MOST_REASONS:
                totals[reason] = max(totals.get(reason, 0), count)


def _when(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
