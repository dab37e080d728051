"""The durable local queue: one SQLite file in WAL mode, shared by every process of a host.

One implementation serves the capture spool, the delivery spool, the publisher's spool, the
embedded Celery broker and the embedded event log. A file holds named *streams*; a stream is a
sequence of records with offsets 0, 1, 2 … that are never used twice, as in a Kafka partition.

What it promises:

- :meth:`DurableQueue.append` returns when the records are on disk (``synchronous=FULL``); a
  process killed at any byte leaves all of an append or none of it.
- It is bounded: an append that would pass `max_bytes` raises :class:`SpoolFull`.
- It can be emptied on a full disk: see :mod:`.reserve`. There, appends are refused before that.
- Consumers that share a stream *lease* records, so that two do not work on the same one; a lease
  that its owner did not settle runs out, and the record is handed out again (at least once).
"""

from __future__ import annotations

import os
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from .exceptions import SpoolError, SpoolFull, SpoolUnavailable
from .folders import make_private
from .forks import within
from .reserve import Reserve, may_be_full
from .stored import Header, Record, StoredRecord, StreamStats, dump_headers, take

__all__ = ["DurableQueue", "Header", "Record", "StoredRecord", "StreamStats"]

T = TypeVar("T")

_SCHEMA = """
CREATE TABLE IF NOT EXISTS stream (
    name TEXT PRIMARY KEY,
    next_offset INTEGER NOT NULL,
    low_offset INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    records INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS record (
    stream TEXT NOT NULL,
    offset INTEGER NOT NULL,
    timestamp INTEGER NOT NULL,
    key BLOB,
    value BLOB NOT NULL,
    headers TEXT NOT NULL,
    size INTEGER NOT NULL,
    leased_until REAL NOT NULL DEFAULT 0,
    lease TEXT,
    attempts INTEGER NOT NULL DEFAULT 0
);
CREATE UNIQUE INDEX IF NOT EXISTS record_position ON record (stream, offset);
"""

#: Connections that belong to a parent process.
_inherited: list[sqlite3.Connection] = []

_COLUMNS = "offset, timestamp, key, value, headers, attempts, lease"


@dataclass
class _Connections(threading.local):
    pid: int = 0
    connection: sqlite3.Connection | None = None


class DurableQueue:
    """Named streams of records in one SQLite file.

    Safe for threads and processes; connections are made per thread and never cross a fork.

    :param path: the file; it and its folder are made on first use, for their owner alone.
    :param max_bytes: bound over all streams, or None. The bound is on records' bytes.
    :param clock: returns epoch seconds.
    :param timeout: seconds to wait for another process's write.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        max_bytes: int | None = None,
        clock: Callable[[], float] = time.time,
        timeout: float = 5.0,
    ) -> None:
        self.path = Path(path)
        self.max_bytes = max_bytes
        self._clock = clock
        self._timeout = timeout
        self._local = _Connections()
        self._reserve = Reserve(self.path)

    def __repr__(self) -> str:
        return f"DurableQueue({str(self.path)!r})"

    # -- producing ------------------------------------------------------------------------

    def append(self, stream: str, records: Sequence[Record]) -> range:
        """Store `records` at the end of `stream`, durably; return their offsets.

        :raises SpoolFull: the records would pass `max_bytes`; none was stored.
        :raises SpoolUnavailable: the disk or the file failed; none was stored.
        """
        if not records:
            return range(0)
        try:
            return self._append(stream, records)
        except SpoolUnavailable as error:
            if not isinstance(error.__cause__, OSError):
                raise
        # No room for a larger reserve: an empty log needs less.
        self._checkpoint()
        return self._append(stream, records)

    def _append(self, stream: str, records: Sequence[Record]) -> range:
        now = int(self._clock() * 1_000_000)
        size = sum(record.size for record in records)
        with self._write() as connection:
            if self.max_bytes is not None:
                (used,) = connection.execute(
                    "SELECT coalesce(sum(bytes), 0) FROM stream"
                ).fetchone()
                if used + size > self.max_bytes:
                    raise SpoolFull(
                        f"{self.path.name} holds {used:,} of {self.max_bytes:,} bytes; "
                        f"{size:,} more do not fit."
                    )
            self._reserve.ensure(size)
            connection.execute(
                "INSERT INTO stream VALUES (?, 0, 0, 0, 0) ON CONFLICT DO NOTHING", (stream,)
            )
            (start,) = connection.execute(
                "SELECT next_offset FROM stream WHERE name = ?", (stream,)
            ).fetchone()
            connection.executemany(
                "INSERT INTO record (stream, offset, timestamp, key, value, headers, size)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    (
                        stream,
                        start + index,
                        record.timestamp or now,
                        record.key,
                        record.value,
                        dump_headers(record.headers),
                        record.size,
                    )
                    for index, record in enumerate(records)
                ),
            )
            connection.execute(
                "UPDATE stream SET next_offset = next_offset + ?, bytes = bytes + ?,"
                " records = records + ? WHERE name = ?",
                (len(records), size, len(records), stream),
            )
        return range(start, start + len(records))

    # -- reading by position --------------------------------------------------------------

    def read(
        self, stream: str, start: int, *, max_records: int = 1000, max_bytes: int = 16 << 20
    ) -> list[StoredRecord]:
        """Return records from offset `start` on, in order, without leasing them.

        Stops before `max_bytes` is passed, but returns one record at least if there is one.
        """
        with self._read() as connection:
            rows = connection.execute(
                f"SELECT {_COLUMNS} FROM record WHERE stream = ? AND offset >= ?"  # noqa: S608
                " ORDER BY offset LIMIT ?",
                (stream, start, max_records),
            )
            return take(rows, max_bytes)

    def watermarks(self, stream: str) -> tuple[int, int]:
        """Return (low, high): the first offset still kept, and the next one to be given."""
        with self._read() as connection:
            row = connection.execute(
                "SELECT low_offset, next_offset FROM stream WHERE name = ?", (stream,)
            ).fetchone()
        return (row[0], row[1]) if row else (0, 0)

    def offset_at(self, stream: str, timestamp: int) -> int:
        """Return the first offset whose record is at or after `timestamp` (epoch micros); without
        such a record, the next offset to be given."""
        with self._read() as connection:
            # In one look: what is appended between two would be taken for older.
            (offset,) = connection.execute(
                "SELECT coalesce("
                " (SELECT offset FROM record WHERE stream = ?1 AND timestamp >= ?2"
                "  ORDER BY offset LIMIT 1),"
                " (SELECT next_offset FROM stream WHERE name = ?1), 0)",
                (stream, timestamp),
            ).fetchone()
        return int(offset)

    def trim(self, stream: str, before: int) -> int:
        """Forget the records before offset `before`; return how many there were."""

        def remove(connection: sqlite3.Connection) -> int:
            count, size = connection.execute(
                "SELECT count(*), coalesce(sum(size), 0) FROM record"
                " WHERE stream = ? AND offset < ?",
                (stream, before),
            ).fetchone()
            connection.execute(
                "DELETE FROM record WHERE stream = ? AND offset < ?", (stream, before)
            )
            connection.execute(
                "UPDATE stream SET bytes = bytes - ?, records = records - ?,"
                " low_offset = max(low_offset, min(?, next_offset)) WHERE name = ?",
                (size, count, before, stream),
            )
            return int(count)

        return self._remove(remove)

    # -- consuming by lease ---------------------------------------------------------------

    def lease(
        self,
        stream: str,
        *,
        seconds: float,
        owner: str,
        max_records: int = 100,
        max_bytes: int = 16 << 20,
    ) -> list[StoredRecord]:
        """Hand out the oldest records that nobody holds, for `seconds`, in order.

        :param owner: who takes them; with the attempt it makes the lease's token, which
            :meth:`settle` and :meth:`release` want back, so that an owner whose lease ran out
            cannot settle what somebody else now holds.
        """
        now = self._clock()
        # Looking first without the write lock keeps idle pollers from blocking the writers.
        with self._read() as connection:
            waiting = connection.execute(
                "SELECT 1 FROM record WHERE stream = ? AND leased_until <= ? LIMIT 1",
                (stream, now),
            ).fetchone()
        if waiting is None:
            return []
        token = f"{owner}:{time.monotonic_ns()}"

        def mark(connection: sqlite3.Connection) -> list[StoredRecord]:
            taken = self._leasable(connection, stream, now, max_records, max_bytes)
            connection.executemany(
                "UPDATE record SET leased_until = ?, lease = ?, attempts = attempts + 1"
                " WHERE stream = ? AND offset = ?",
                [(now + seconds, token, stream, record.offset) for record in taken],
            )
            return taken

        return [
            StoredRecord(
                value=record.value,
                key=record.key,
                headers=record.headers,
                timestamp=record.timestamp,
                offset=record.offset,
                attempts=record.attempts + 1,
                lease=token,
            )
            for record in self._remove(mark)
        ]

    def _leasable(
        self,
        connection: sqlite3.Connection,
        stream: str,
        now: float,
        max_records: int,
        max_bytes: int,
    ) -> list[StoredRecord]:
        rows = connection.execute(
            f"SELECT {_COLUMNS} FROM record WHERE stream = ? AND leased_until <= ?"  # noqa: S608
            " ORDER BY offset LIMIT ?",
            (stream, now, max_records),
        )
        return take(rows, max_bytes)

    def settle(self, stream: str, records: Iterable[StoredRecord]) -> int:
        """Remove records that are done with; return how many were still ours to remove."""
        done = list(records)

        def remove(connection: sqlite3.Connection) -> int:
            removed = size = 0
            for record in done:
                row = connection.execute(
                    "DELETE FROM record WHERE stream = ? AND offset = ? AND lease IS ?"
                    " RETURNING size",
                    (stream, record.offset, record.lease),
                ).fetchone()
                if row:
                    removed += 1
                    size += row[0]
            connection.execute(
                "UPDATE stream SET bytes = bytes - ?, records = records - ?,"
                " low_offset = coalesce((SELECT min(offset) FROM record WHERE stream = ?),"
                " next_offset) WHERE name = ?",
                (size, removed, stream, stream),
            )
            return removed

        return self._remove(remove)

    def release(
        self,
        stream: str,
        records: Iterable[StoredRecord],
        delay: float = 0.0,
        *,
        tried: bool = True,
    ) -> None:
        """Give leased records back, to be handed out again after `delay` seconds.

        :param tried: whether the lease counts as one of the record's `attempts`; not when its
            owner could do nothing with any record.
        """
        until = self._clock() + delay if delay else 0.0
        returned = [
            (until, 0 if tried else 1, stream, record.offset, record.lease) for record in records
        ]

        def mark(connection: sqlite3.Connection) -> None:
            connection.executemany(
                "UPDATE record SET leased_until = ?, lease = NULL, attempts = attempts - ?"
                " WHERE stream = ? AND offset = ? AND lease IS ?",
                returned,
            )

        self._remove(mark)

    # -- looking --------------------------------------------------------------------------

    def streams(self) -> list[str]:
        """Names of all streams that were ever written."""
        with self._read() as connection:
            return [name for (name,) in connection.execute("SELECT name FROM stream ORDER BY name")]

    def stats(self, stream: str) -> StreamStats:
        """How full `stream` is."""
        with self._read() as connection:
            row = connection.execute(
                "SELECT records, bytes FROM stream WHERE name = ?", (stream,)
            ).fetchone()
            if row is None:
                return StreamStats()
            oldest = connection.execute(
                "SELECT timestamp FROM record WHERE stream = ? ORDER BY offset LIMIT 1", (stream,)
            ).fetchone()
        return StreamStats(row[0], row[1], oldest[0] if oldest else None)

    def leased(self, stream: str) -> int:
        """How many of the records of `stream` somebody holds."""
        with self._read() as connection:
            (held,) = connection.execute(
                "SELECT count(*) FROM record WHERE stream = ? AND leased_until > ?"
                " AND lease IS NOT NULL",
                (stream, self._clock()),
            ).fetchone()
        return int(held)

    def used_bytes(self) -> int:
        """Bytes of all records in the file."""
        with self._read() as connection:
            (used,) = connection.execute("SELECT coalesce(sum(bytes), 0) FROM stream").fetchone()
        return used

    def close(self) -> None:
        """Close this thread's connection; other threads open a new one at their next call."""
        local = self._local
        if local.connection is not None:
            if local.pid == os.getpid():
                local.connection.close()
            else:
                _inherited.append(local.connection)
        local.connection = None

    # -- connections ----------------------------------------------------------------------

    @contextmanager
    def _read(self) -> Iterator[sqlite3.Connection]:
        with within:
            try:
                yield self._connection()
            except (sqlite3.Error, OSError) as error:
                raise SpoolUnavailable(f"{self.path}: {error}") from error

    @contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        with within, self._transaction() as connection:
            yield connection

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        try:
            connection = self._connection()
            connection.execute("BEGIN IMMEDIATE")
        except (sqlite3.Error, OSError) as error:
            raise SpoolUnavailable(f"{self.path}: {error}") from error
        try:
            yield connection
            connection.execute("COMMIT")
        except BaseException as error:
            try:
                connection.execute("ROLLBACK")
            except sqlite3.Error:
                # A full disk may have rolled back already.
                pass
            if isinstance(error, sqlite3.Error | OSError):
                raise SpoolUnavailable(f"{self.path}: {error}") from error
            raise

    def _remove(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Do `work`, which makes the queue no larger, in a transaction; also on a full disk."""
        try:
            with self._write() as connection:
                return work(connection)
        except SpoolUnavailable as error:
            if not may_be_full(error.__cause__):
                raise
        # What the log holds already may have its place in the file, and leave the log free.
        self._checkpoint()
        with self._write() as connection:
            # Nothing is overwritten that need not be: it would all go through the log.
            connection.execute("PRAGMA secure_delete = FAST")
            # Under the lock, so that no append takes the room.
            self._reserve.give_up()
            done = work(connection)
        self._checkpoint()
        try:
            with self._write():
                self._reserve.ensure()
        except SpoolError:
            # The next append, or the next of these, tries again.
            pass
        return done

    def _checkpoint(self) -> None:
        """Move the write-ahead log into the file, and free its room."""
        try:
            self._connection().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        except (sqlite3.Error, OSError):
            # There is no room for it yet.
            pass

    def _connection(self) -> sqlite3.Connection:
        local = self._local
        if local.connection is not None and local.pid == os.getpid():
            return local.connection
        if local.connection is not None:
            # Inherited through a fork: SQLite asks that a child leave it alone, so that not even
            # the garbage collector may close it.
            _inherited.append(local.connection)
            local.connection = None
        _make_private(self.path)
        deadline = time.monotonic() + self._timeout
        while True:
            try:
                connection = self._connect()
                break
            except sqlite3.OperationalError as error:
                # The file of shared memory takes room, too.
                if may_be_full(error) and self._reserve.give_up():
                    continue
                # Of two that make the file at the same moment one is refused at once: the switch
                # to WAL does not wait as everything after it does.
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
        local.pid = os.getpid()
        local.connection = connection
        return connection

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.path, timeout=self._timeout, isolation_level=None, check_same_thread=False
        )
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.executescript(_SCHEMA)
        except BaseException:
            connection.close()
            raise
        return connection


def _make_private(path: Path) -> None:
    """Make `path` an empty file for its owner alone, unless it exists; its folder likewise.

    SQLite gives its other files the same mode. The file is not opened in its place: closing it
    there would end the locks that this process holds on it through SQLite.
    """
    if path.exists():
        return
    make_private(path.parent)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        path.hardlink_to(temporary)
    except FileExistsError:
        # Another thread or process was first.
        pass
    finally:
        temporary.unlink(missing_ok=True)
