"""Records of a durable queue go from one of its streams to another, in one step."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from .spool import DurableQueue, StoredRecord
from .stored import dump_headers


def move(queue: DurableQueue, stream: str, target: str, records: Sequence[StoredRecord]) -> int:
    """Move `records` of `stream` to the end of `target`; return how many were still there.

    All or none, so that a record is in one stream at every moment, also when the process is
    killed. They keep key, value and time, and take the headers that are given. The queue's bound
    does not stand against it: nothing is added.

    :param records: their values are not looked at, so those of :func:`.spool_looks.heads` will do.
    :raises SpoolUnavailable: the disk or the file failed; none was moved.
    """

    def work(connection: sqlite3.Connection) -> int:
        connection.execute(
            "INSERT INTO stream VALUES (?, 0, 0, 0, 0) ON CONFLICT DO NOTHING", (target,)
        )
        (end,) = connection.execute(
            "SELECT next_offset FROM stream WHERE name = ?", (target,)
        ).fetchone()
        count = left = arrived = 0
        for record in records:
            found = connection.execute(
                "SELECT size, length(value) FROM record WHERE stream = ? AND offset = ?",
                (stream, record.offset),
            ).fetchone()
            if found is None:
                continue
            size = record.size - len(record.value) + found[1]
            connection.execute(
                "UPDATE record SET stream = ?, offset = ?, headers = ?, size = ?,"
                " leased_until = 0, lease = NULL, attempts = 0 WHERE stream = ? AND offset = ?",
                (
                    target,
                    end + count,
                    dump_headers(record.headers),
                    size,
                    stream,
                    record.offset,
                ),
            )
            count, left, arrived = count + 1, left + found[0], arrived + size
        connection.execute(
            "UPDATE stream SET next_offset = next_offset + ?, bytes = bytes + ?,"
            " records = records + ? WHERE name = ?",
            (count, arrived, count, target),
        )
        connection.execute(
            "UPDATE stream SET bytes = bytes - ?, records = records - ?,"
            " low_offset = coalesce((SELECT min(offset) FROM record WHERE stream = ?),"
            " next_offset) WHERE name = ?",
            (left, count, stream, stream),
        )
        return count

    return queue._remove(work)
