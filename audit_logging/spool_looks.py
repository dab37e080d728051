"""Looking at a durable queue's records without reading what they carry."""

from __future__ import annotations

from .spool import DurableQueue, StoredRecord
from .stored import take


def heads(
    queue: DurableQueue, stream: str, start: int, count: int
) -> list[tuple[StoredRecord, int]]:
    """Return up to `count` records of `stream` from offset `start` on, with their sizes in bytes.

    Their values are empty: values may be large, and not for everybody who may see the rest.

    :raises SpoolUnavailable: the disk or the file failed.
    """
    with queue._read() as connection:
        rows = connection.execute(
            "SELECT offset, timestamp, key, x'', headers, attempts, lease, size FROM record"
            " WHERE stream = ? AND offset >= ? ORDER BY offset LIMIT ?",
            (stream, start, count),
        ).fetchall()
    records = take((row[:-1] for row in rows), 1 << 62)
    return [(record, row[-1]) for record, row in zip(records, rows, strict=True)]
